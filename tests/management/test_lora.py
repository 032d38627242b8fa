"""What the command says of LoRA weights that were combined."""

from pathlib import Path

import msgspec

from flare_core.application import RoundRecord
from simulated import Flare, WriteScript

_TRAINS_LORA = """\
rng = np.random.default_rng(me.index)
initial = {
    "q.lora_A.weight": rng.normal(size=(2, 6)),
    "q.lora_B.weight": np.zeros((5, 2)),
}
with flare.join(initial) as run:
    for round in run:
        new = {n: one + rng.normal(size=one.shape) for n, one in round.weights.items()}
        round.submit(new, num_examples=1, metrics={"loss": 0.5})
"""


def test_each_round_and_the_summary_say_what_was_lost(
    flare: Flare, script: WriteScript, tmp_path: Path
) -> None:
    done = flare("simulate", script(_TRAINS_LORA), "--run-dir", tmp_path / "run")

    lines = (tmp_path / "run" / "rounds.jsonl").read_bytes().splitlines()
    records = [msgspec.json.decode(line, type=RoundRecord) for line in lines]
    assert len(records) == 3
    for record in records:
        assert record.lora is not None
        assert record.lora.worst_module == "q"
        assert 0 < record.lora.error < record.lora.averaging_error
        said = f"LoRA by product: off by {record.lora.error:.2g}, most in q"
        assert said in done.stdout
    assert "last round: LoRA by product" in done.stdout


def test_factors_that_are_averaged_all_the_same_are_told_once_why(
    flare: Flare, script: WriteScript
) -> None:
    done = flare(
        "simulate", script(_TRAINS_LORA), "--set", "strategy.name=fedavgm", "--rounds=2"
    )

    assert "LoRA by fedavg: off by " in done.stdout
    assert done.stderr.count("such as 'fedavgm' or 'fednova': it goes on from") == 1
