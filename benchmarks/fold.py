"""How fast updates are folded, beside what the memory of this machine can do.

    python benchmarks/fold.py --json fold.json
    python benchmarks/fold.py --quick

The aggregator sums float32 in float64, in a mapped file, as the server has it do: the
first update of a round is copied, the second one scales it, further ones are added.
Beside it stand `np.copyto` and `np.add(y, x, out=y)` of float32 arrays of that size.
GB/s are those of the update alone (of `x`), whatever else is read and written; for
`finish`, which divides, rounds, checks, hashes and writes, of the model that comes out.
A mapped update is mapped anew each time, as the server does, and lies in the page
cache; what its pages cost is counted.  Half precision has as many elements, so half
the bytes.

Encodings are measured on a model of 100 MB that has moved a little, by one thread; GB/s
are those of the plain model.
"""

import os
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias, final

import ml_dtypes
import numpy as np
import typer
from _federation import FailedError, leave_when_told, need
from _report import JsonFile, Quick, Report

import flare_core as flare
from flare_core.application._aggregator import Aggregator
from flare_core.application._publication import Publication
from flare_core.application._spool import Spool
from flare_core.application._worker import Worker
from flare_core.communication import (
    Residual,
    decoded_file,
    encode_model,
    file_bytes,
    mapped,
    pack,
    unpack,
    write_file,
)
from flare_core.communication._malloc import keep_memory
from flare_core.federation import FedAvg, Fold, Mean

Load: TypeAlias = Callable[[], flare.ModelState]
Seconds: TypeAlias = dict[str, list[float]]

_MB = 1_000_000
_UNIT = "GB/s"
_NUM_TENSORS = 10
_MOST_THREADS = 4
"""As the server has it by default."""
_DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
_ENCODINGS = ("bf16", "int8", "int4", "topk", "xor")
_KEEP = 0.01
_MOVED = 1e-3
_ENCODED_BYTES = 100 * _MB
_MODELS = 6
"""Models of float32 that arrays, sums and files take, at most."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Setting:
    """How much is measured.

    Attributes:
        num_elements: Of the model that is folded.
        samples: Of each case.
        threads: How many threads work, from case to case.
        folder: For files.
    """

    num_elements: int
    samples: int
    threads: list[int]
    folder: Path


def main(*, json_file: JsonFile = None, quick: Quick = False) -> None:
    """Measure; --quick takes 100 MB instead of 400, and fewer samples."""
    leave_when_told()
    report = Report("fold")
    keep_memory()  # as a server does
    prefix = "flare-benchmark-"
    with tempfile.TemporaryDirectory(prefix=prefix) as folder:
        setting = _Setting(
            num_elements=(100 if quick else 400) * _MB // 4,
            samples=3 if quick else 5,
            threads=sorted({1, min(os.cpu_count() or 1, _MOST_THREADS)}),
            folder=Path(folder),
        )
        try:
            need(_MODELS * 4 * setting.num_elements)
        except FailedError as error:
            report.fail("all", str(error))
        else:
            _add_memory(report, setting)
            for name in _DTYPES:
                _add_folds(report, setting, name)
            _add_encodings(report, setting)
    report.finish(json_file)


def _add_memory(report: Report, setting: _Setting) -> None:
    """Add what copying and adding takes, without any of our code."""
    x, y = (np.ones(setting.num_elements, np.float32) for _ in range(2))

    def copy(part: slice) -> None:
        np.copyto(y[part], x[part])

    def add(part: slice) -> None:
        np.add(y[part], x[part], out=y[part])

    for number in setting.threads:
        parts = _parts(setting.num_elements, number)
        with ThreadPoolExecutor(number) as pool:
            for name, work in (("copy", copy), ("np.add", add)):
                every = partial(_on_all, pool, work, parts)
                seconds = [_timed(every) for _ in range(setting.samples + 1)]
                case = f"{name}, float32, {_on(number)}"
                report.add(case, _UNIT, _rates(x.nbytes, seconds[1:]))


def _on_all(
    pool: ThreadPoolExecutor, work: Callable[[slice], None], parts: list[slice]
) -> None:
    deque(pool.map(work, parts), 0)


def _parts(length: int, number: int) -> list[slice]:
    step = -(-length // number)
    return [slice(start, start + step) for start in range(0, length, step)]


def _add_folds(report: Report, setting: _Setting, name: str) -> None:
    """Add the rows of one element type."""
    plan = flare.Plan(rounds=1)
    strategy = FedAvg()
    weights = _model(setting.num_elements, _DTYPES[name])
    path = setting.folder / "update.safetensors"
    spool = Spool(setting.folder)
    spool.make()
    stream = write_file(path, file_bytes(weights.layout), pack(weights))
    sources: dict[str, Load] = {
        f"{name} mapped": lambda: unpack(mapped(path)),
        f"{name} in memory": lambda: weights,
    }
    for number in setting.threads:
        found: Seconds = {}
        for where, load in sources.items():
            with closing(Worker(lambda _: None, num_threads=number)) as worker:
                aggregator = Aggregator(
                    plan,
                    weights.layout,
                    strategy=strategy,
                    rule=Mean(),
                    spool=spool,
                    each=worker.each,
                )
                before = aggregator.first(path, stream)
                rounds = _rounds(aggregator, load, before, setting.samples)
            found |= {f"{what}, {where}": seconds for what, seconds in rounds.items()}
        if name == "float32":
            case = f"further update, {name} and sums in memory"
            found[case] = _in_memory(weights, number, setting.samples)
        for case, seconds in found.items():
            rates = _rates(weights.layout.num_bytes, seconds)
            report.add(f"{case}, {_on(number)}", _UNIT, rates)
    path.unlink()


def _rounds(
    aggregator: Aggregator, load: Load, before: Publication, samples: int
) -> Seconds:
    """Play rounds of three updates each; the first round is not counted."""
    seconds: Seconds = defaultdict(list)
    update = flare.Contribution(site="a", num_examples=3)
    for _ in range(samples + 1):
        for what in ("first update", "second update", "further update"):
            seconds[what].append(
                _timed(lambda: aggregator.add(load(), update, before.weights))
            )
        seconds["finish"].append(_timed(lambda: aggregator.finish(before)))
    return {what: found[1:] for what, found in seconds.items()}


def _in_memory(weights: flare.ModelState, number: int, samples: int) -> list[float]:
    """Fold into sums that are no file's."""
    with closing(Worker(lambda _: None, num_threads=number)) as worker:
        fold = Fold(weights.layout)
        seconds = [
            _timed(lambda: fold.add(weights, 3, worker.each))
            for _ in range(samples + 2)
        ]
    return seconds[2:]


def _add_encodings(report: Report, setting: _Setting) -> None:
    """Add encoding and decoding."""
    base = _model(_ENCODED_BYTES // 4, np.dtype(np.float32))
    moved = {
        name: array + np.float32(_MOVED) * np.roll(array, 1)
        for name, array in base.items()
    }
    values = flare.ModelState(moved)
    for name in _ENCODINGS:
        samples = [
            _coded(name, values, base, setting.folder) for _ in range(setting.samples)
        ]
        for what, seconds in zip(
            ("encode", "decode"), zip(*samples, strict=True), strict=True
        ):
            rates = _rates(base.layout.num_bytes, seconds)
            report.add(f"{what}, {name}", _UNIT, rates)


def _coded(
    name: str, values: flare.ModelState, base: flare.ModelState, folder: Path
) -> tuple[float, float]:
    """Return how many seconds encoding and decoding took."""
    residual = Residual(folder, site="site", run="run")
    begun = time.perf_counter()
    encoded = encode_model(
        name, values, base, folder=folder, keep=_KEEP, residual=residual
    )
    residual.commit()
    took = time.perf_counter() - begun
    file = memoryview(b"".join(encoded.frames))
    return took, _timed(lambda: deque(decoded_file(name, file, base), 0))


def _model(num_elements: int, dtype: "np.dtype[np.generic]") -> flare.ModelState:
    random = np.random.default_rng(0)
    return flare.ModelState(
        {
            f"tensor_{index}": random.standard_normal(
                num_elements // _NUM_TENSORS, np.float32
            ).astype(dtype)
            for index in range(_NUM_TENSORS)
        }
    )


def _on(number: int) -> str:
    return "1 thread" if number == 1 else f"{number} threads"


def _rates(num_bytes: int, seconds: Sequence[float]) -> list[float]:
    return [num_bytes / 1e9 / took for took in seconds]


def _timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


if __name__ == "__main__":
    typer.run(main)
