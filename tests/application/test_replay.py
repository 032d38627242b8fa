"""What was kept of a run makes the same models again, or one is told where not."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

import flare_core as flare
from flare_core._plan import Setting
from flare_core.application import RoundPlayed, RoundRecord, replay
from flare_core.application._archive import FOLDER, INDEX
from flare_core.communication import SHORT_BYTES
from packages import Install
from site_scripts import WAIT_S, Local, add, model, plan, play
from support import RunServer, SiteFile

SITES = ("a", "b", "c")
ENCODINGS = {
    "as they are": flare.Encoding(),
    "xor": flare.Encoding(up="xor", down="xor"),
    "int8": flare.Encoding(up="int8", down="int8"),
    "topk, int4": flare.Encoding(up="topk", keep=0.01, down="int4"),
}


@dataclass
class Run:
    """A run that was played."""

    plan: flare.Plan
    records: Sequence[RoundRecord]
    folder: Path

    def partings(self) -> list[tuple[str, ...]]:
        """Derive its models again; return where each round parts."""
        return [one.partings for one in replay(self.plan, self.records, self.folder)]

    def kept(self, what: str, number: int, site: str = "") -> Path:
        """Return the file of a model or an update."""
        for line in (self.folder / INDEX).read_text().splitlines():
            entry = msgspec.json.decode(line)
            found = (entry["what"], entry["round"], entry.get("site", ""))
            if found == (what, number, site):
                return Path(self.folder, FOLDER, entry["blake3"])
        raise AssertionError(what, number, site)

    def rewrite(self, old: str, new: str) -> None:
        """Change the first such words of the index."""
        index = self.folder / INDEX
        assert old in index.read_text()
        index.write_text(index.read_text().replace(old, new, 1))


Played: TypeAlias = Callable[..., Run]


@pytest.fixture
def played(
    run_server: RunServer, site_file: SiteFile, pool: ThreadPoolExecutor, tmp_path: Path
) -> Played:
    """Play a run of three rounds that keeps its updates."""

    def played(
        num_bytes: int = 400,
        encoding: flare.Encoding = ENCODINGS["as they are"],
        *,
        shared: bool = False,
        strategy: str = "fedavg",
        aggregation: flare.AggregationSettings | None = None,
        model: Callable[[int], flare.ModelState] = _model,
    ) -> Run:
        what = flare.Plan(
            rounds=3,
            selection=flare.Selection(sites=len(SITES)),
            aggregation=aggregation or flare.AggregationSettings(),
            strategy=flare.StrategySettings(name=strategy),
            encoding=encoding,
            keep_updates=True,
        )
        folder = tmp_path / "run"
        server = run_server(what, folder=folder, share_spool=shared, num_threads=2)
        spool = folder / "spool" if shared else None
        sites = [
            pool.submit(
                play,
                site_file(name, server.endpoint, spool=spool),
                model(num_bytes),
                _train(name),
            )
            for name in SITES
        ]
        for site in sites:
            site.result(WAIT_S)
        assert server.result().error == ""
        records = [e.record for e in server.told(RoundPlayed)]
        return Run(what, records, folder)

    return played


def _model(num_bytes: int) -> flare.ModelState:
    values = np.random.default_rng(0).standard_normal(num_bytes // 8, np.float32)
    arrays: dict[str, npt.ArrayLike] = {
        "w": values,
        "running": values.copy(),
        "count": np.int64(3),
        "m.lora_A.weight": np.ones((2, 9), np.float32),
        "m.lora_B.weight": np.zeros((7, 2), np.float32),
    }
    return flare.ModelState(arrays, classes={"running": flare.TensorClass.BUFFER})


def _with_control(num_bytes: int) -> flare.ModelState:
    found = _model(num_bytes)
    control = np.zeros(num_bytes // 8, np.float32)
    classes = {**found.layout.classes, "control": flare.TensorClass.CONTROL}
    return flare.ModelState({**found, "control": control}, classes=classes)


def _train(site: str) -> Callable[[flare.ClientRound], Local]:
    def train(current: flare.ClientRound) -> Local:
        rng = np.random.default_rng([current.number, *site.encode()])
        moved = {
            name: (values + rng.standard_normal(values.shape) * 9).astype(values.dtype)
            for name, values in current.weights.items()
        }
        return moved, 10 + ord(site) + current.number

    return train


@pytest.mark.parametrize("num_bytes", [400, 4 * SHORT_BYTES])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_model_is_derived_again_bit_for_bit(
    played: Played, encoding: str, num_bytes: int, *, shared: bool
) -> None:
    run = played(num_bytes, ENCODINGS[encoding], shared=shared)

    again = list(replay(run.plan, run.records, run.folder))

    assert [one.partings for one in again] == [(), (), ()]
    assert [one.blake3 for one in again] == [one.blake3 for one in run.records]
    assert len({one.blake3 for one in again}) == len(again)
    assert len(list((run.folder / FOLDER).iterdir())) == 4 + 3 * 3


def test_controls_are_derived_again_too(played: Played) -> None:
    run = played(4 * SHORT_BYTES, strategy="fedadam", model=_with_control)

    assert run.partings() == [(), (), ()]


@pytest.mark.parametrize("strategy", ["fedavgm", "fedadam", "diloco"])
def test_what_a_strategy_remembered_is_derived_again_too(
    played: Played, strategy: str
) -> None:
    run = played(4 * SHORT_BYTES, strategy=strategy)

    again = list(replay(run.plan, run.records, run.folder))

    assert [one.partings for one in again] == [(), (), ()]
    assert [one.blake3 for one in again] == [one.blake3 for one in run.records]


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam"])
@pytest.mark.parametrize(
    ("aggregation", "settings"),
    [
        ("median", {}),
        ("trimmed_mean", {}),
        ("geometric_median", {}),
        ("norm_bounding", {"most_norm": 100}),
        ("centred_clipping", {"radius": 100, "iterations": 2}),
    ],
)
def test_other_combinations_than_the_mean_are_derived_again_too(
    played: Played, aggregation: str, settings: dict[str, Setting], strategy: str
) -> None:
    rule = flare.AggregationSettings(name=aggregation, settings=settings)
    run = played(4 * SHORT_BYTES, strategy=strategy, aggregation=rule)

    again = list(replay(run.plan, run.records, run.folder))

    assert [one.partings for one in again] == [(), (), ()]
    assert [one.blake3 for one in again] == [one.blake3 for one in run.records]


def test_what_follows_from_what_cannot_be_derived_is_said_to_be_unknown(
    played: Played,
) -> None:
    run = played(strategy="fedadam")
    run.kept("update", 1, "b").unlink()

    before, missing, after = run.partings()

    assert before == ()
    assert "site 'b': its update" in missing[0]
    assert after == (
        "what the server remembered is unknown: the round before was not derived",
    )


_BY_LOSS = """
import flare_core


class ByLoss(flare_core.Strategy, frozen=True):
    def weight(self, update):
        return update.metrics["loss"]
"""


def test_what_sites_said_of_their_local_models_weighs_them_again(
    run_server: RunServer,
    site_file: SiteFile,
    pool: ThreadPoolExecutor,
    tmp_path: Path,
    install: Install,
) -> None:
    install("flare_core.strategies", _BY_LOSS, by_loss="ByLoss")
    strategy = flare.StrategySettings(name="by_loss")
    settings = msgspec.structs.replace(plan(), strategy=strategy, keep_updates=True)
    server = run_server(settings, folder=tmp_path / "run")

    def site(name: str, step: float, loss: float) -> flare.ModelState:
        file = site_file(name, server.endpoint)
        with flare.join(model(0), site=file) as client:
            for current in client:
                weights = {"w": current.weights["w"] + np.float32(step)}
                current.submit(weights, num_examples=1, metrics={"loss": loss})
        return client.weights

    a, b = pool.submit(site, "a", 1.0, 3.0), pool.submit(site, "b", 5.0, 1.0)

    assert a.result(WAIT_S)["w"] == b.result(WAIT_S)["w"] == 2.0
    records = [e.record for e in server.told(RoundPlayed)]
    assert Run(settings, records, tmp_path / "run").partings() == [()]


def test_a_round_of_fewer_sites_is_derived_again(
    run_server: RunServer, site_file: SiteFile, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    def leaves(current: flare.ClientRound) -> Local:
        if current.number == 1:
            msg = "no more"
            raise RuntimeError(msg)
        return add(3)(current)

    what = msgspec.structs.replace(plan(rounds=2, sites=2, quorum=1), keep_updates=True)
    server = run_server(what, folder=tmp_path / "run")
    leaving, staying = (
        pool.submit(play, site_file(name, server.endpoint), model(0), train)
        for name, train in (("a", leaves), ("b", add(1)))
    )
    staying.result(WAIT_S)
    assert isinstance(leaving.exception(WAIT_S), RuntimeError)
    server.result()
    records = [e.record for e in server.told(RoundPlayed)]

    again = list(replay(what, records, tmp_path / "run"))

    assert [one.num_updates for one in again] == [2, 1]
    assert [one.partings for one in again] == [(), ()]


def test_an_update_that_was_changed_is_named(played: Played) -> None:
    run = played()
    path = run.kept("update", 1, "b")
    path.write_bytes(path.read_bytes()[:-1] + b"\x55")

    before, changed, after = run.partings()

    (words,) = changed
    assert f"site 'b': its update {path} was changed after it was kept" in words
    assert before == after == ()


def test_an_update_that_is_missing_is_named(played: Played) -> None:
    run = played()
    path = run.kept("update", 0, "c")
    path.unlink()

    missing, *others = run.partings()

    (words,) = missing
    assert words.startswith(f"site 'c': its update {path} is missing; restore it ")
    assert others == [(), ()]


@pytest.mark.parametrize("number", range(4))
def test_a_model_that_was_changed_is_named(played: Played, number: int) -> None:
    run = played()
    path = run.kept("model", number)
    path.write_bytes(path.read_bytes()[:-1] + b"\x55")

    partings = run.partings()

    (words,) = partings.pop(max(0, number - 1))
    which = "that it starts from" if number == 0 else "that came out"
    assert f"the model {which}: {path} was changed after it was kept" in words
    assert partings == [(), ()]


def test_another_number_of_examples_is_named_with_its_site(played: Played) -> None:
    run = played()
    run.rewrite(
        '"round":1,"site":"c","num_examples":110',
        '"round":1,"site":"c","num_examples":111',
    )

    before, changed, after = run.partings()

    assert changed == (f"site 'c': 111 examples in {INDEX}, and 110 on record",)
    assert before == after == ()


def test_a_site_of_which_no_update_is_kept_is_named(played: Played) -> None:
    run = played()
    run.rewrite('"round":2,"site":"a"', '"round":2,"site":"z"')

    *before, changed = run.partings()

    one_each = f"expected one update in {INDEX} and one on record, got"
    assert changed == (f"site 'a': {one_each} 0 and 1", f"site 'z': {one_each} 1 and 0")
    assert before == [(), ()]


def test_a_model_that_differs_though_all_updates_are_right_is_told_apart(
    played: Played,
) -> None:
    run = played()
    path = run.kept("update", 1, "b")
    run.rewrite(path.name, run.kept("update", 1, "a").name)

    before, changed, after = run.partings()

    (words,) = changed
    assert "the model differs though all 3 updates are as they were kept" in words
    assert f"expected BLAKE3 {run.records[1].blake3}, got " in words
    assert before == after == ()


def test_another_plan_makes_other_models(played: Played) -> None:
    run = played(4 * SHORT_BYTES, ENCODINGS["int8"])
    run.plan = run.plan.with_setting("encoding.down=int4")

    partings = run.partings()

    assert all("the model differs" in words for (words,) in partings)


def test_a_record_that_was_changed_parts_from_what_was_kept(played: Played) -> None:
    run = played()
    last = msgspec.structs.replace(run.records[-1], blake3="0" * 64)
    run.records = [*run.records[:-1], last]

    *before, changed = run.partings()

    assert before == [(), ()]
    assert ["the model differs" in changed[0], INDEX in changed[1]] == [True, True]


def test_a_damaged_line_of_the_index_is_named(played: Played) -> None:
    run = played()
    run.rewrite('"what":"update"', '"what":"upd"')

    with pytest.raises(flare.ConfigurationError, match="line 2 is damaged"):
        run.partings()


def test_what_was_kept_is_not_written_over_by_a_later_run(played: Played) -> None:
    run = played()
    server = flare.Server(run.plan, folder=run.folder)

    with pytest.raises(flare.ConfigurationError, match="kept: File exists"):
        server.run()

    assert run.partings() == [(), (), ()]


def test_a_run_without_a_folder_cannot_keep_anything() -> None:
    what = flare.Plan(rounds=1, keep_updates=True)

    with pytest.raises(flare.ConfigurationError, match="no folder to keep them in"):
        flare.Server(what)
