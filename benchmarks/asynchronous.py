"""Time to a target score where one site of four is five times slower than the others.

    python benchmarks/asynchronous.py --json asynchronous.json
    python benchmarks/asynchronous.py --quick

Four hospitals learn to recognise heart disease, with the data and the network of
`examples/lightning_heart.py` (`pip install --no-deps -r examples/requirements.txt`) in
a loop of plain PyTorch.  A local round is ten steps; it takes 0.2 s at three hospitals
and 1 s at the fourth, which is where a sleep makes up for a slower machine or more
data.  The same script runs under the star and under `topology.name = "async"`, until
the sites find a mean loss of 0.43 or less on all test patients; the time is that of the
rounds until then, without starting and ending processes.
"""

import tempfile
from pathlib import Path

import typer
from _report import JsonFile, Quick, Report
from _simulated import simulate

from flare_core.application import RoundRecord

_EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
_TOPOLOGIES = {
    "star": ["topology.name=star"],
    "async, buffer of 3": ["topology.name=async", "topology.buffer=3"],
    "async, buffer of 2": ["topology.name=async", "topology.buffer=2"],
}
_STOP = ["stop.metric=loss", "stop.target=0.43"]
_MOST_ROUNDS = 200
_SCRIPT = """\
import sys, time
import torch
from torch.nn.functional import cross_entropy

import flare_core

seed, fast_s, slow_s, examples = sys.argv[1:]
sys.path.insert(0, examples)
from lightning_heart import HeartModel, load

site = flare_core.site()
torch.manual_seed(int(seed))
torch.set_num_threads(1)
net = HeartModel().layers
train, (x, y) = load(site.index, site.count)[0], load(site.index, site.count)[1].tensors
optimizer = torch.optim.SGD(net.parameters(), 0.03)


def score(weights):
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            tensor.copy_(torch.from_numpy(weights[name].copy()))
        return cross_entropy(net(x), y).item()


def state():
    return {name: tensor.numpy() for name, tensor in net.state_dict().items()}


with flare_core.join(state()) as run:
    for round in run:
        loss, began = score(round.weights), time.perf_counter()
        for _ in range(10):
            batch = torch.randint(len(train), (32,))
            inputs, labels = train[batch]
            optimizer.zero_grad()
            cross_entropy(net(inputs), labels).backward()
            optimizer.step()
        cost = float(slow_s if site.index == 3 else fast_s)
        time.sleep(max(0.0, began + cost - time.perf_counter()))
        round.submit(state(), num_examples=320, global_metrics={"loss": loss})
    run.report({"loss": score(run.weights)})
"""


def main(json_file: JsonFile = None, *, quick: Quick = False) -> None:
    """Print the time to the target, and how many times shorter it is."""
    report = Report("asynchronous")
    seeds = range(1 if quick else 5)
    seconds: dict[str, list[float]] = {}
    for topology, settings in _TOPOLOGIES.items():
        played = [_play(settings, seed) for seed in seeds]
        seconds[topology] = [sum(one.seconds for one in rounds) for rounds in played]
        report.add(f"{topology}: to the target", "s", seconds[topology])
        report.add(f"{topology}: to the target", "rounds", map(len, played))
        stale = [_mean_staleness(rounds) for rounds in played]
        report.add(f"{topology}: staleness of the slow site", "models", stale)
    for topology in list(_TOPOLOGIES)[1:]:
        pairs = zip(seconds["star"], seconds[topology], strict=True)
        ratios = [star / other for star, other in pairs]
        report.add(f"{topology}: times shorter than the star", "", ratios)
    report.finish(json_file)


def _play(settings: list[str], seed: int) -> list[RoundRecord]:
    """Return the rounds until the target was reached."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "train.py")
        script.write_text(_SCRIPT)
        run = simulate(
            script,
            *(seed, "0.2", "1.0", _EXAMPLES),
            sites=4,
            rounds=_MOST_ROUNDS,
            settings=(*settings, *_STOP),
        )
    if not run.result.stopped:
        msg = f"the target was not reached in {_MOST_ROUNDS} rounds: {settings}"
        raise RuntimeError(msg)
    return run.records


def _mean_staleness(rounds: list[RoundRecord]) -> float:
    found = [one.sites["site-4"].staleness for one in rounds if "site-4" in one.sites]
    return sum(found) / len(found) if found else 0.0


if __name__ == "__main__":
    typer.run(main)
