import itertools
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3

import flare_core as flare
from drawn import from_bits, to_bits
from flare_core._model import Array, all_finite
from flare_core.application import (
    Event,
    Published,
    RoundPlayed,
    RunEnded,
    RunOpened,
    SiteJoined,
    SiteLeft,
    Updated,
)
from flare_core.communication import pack
from site_scripts import WAIT_S, Local, Turns, Watch, add, model, plan, play
from support import RunServer, SiteFile


def test_two_sites_train_one_model(
    pool: ThreadPoolExecutor, run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(plan(rounds=3))

    a = pool.submit(play, site_file("a", server.endpoint), model(0, 1), add(1, 1))
    b = pool.submit(play, site_file("b", server.endpoint), model(7, 7), add(5, 3))

    assert a.result(WAIT_S)["w"].tolist() == [12, 13]  # three times (1 + 3 * 5) / 4
    assert to_bits(b.result()["w"]) == to_bits(a.result()["w"])
    result = server.result()
    assert (result.rounds, result.error, result.failed_site) == (3, "", "")


def test_what_happens_is_told_in_order(
    pool: ThreadPoolExecutor, run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(plan(rounds=2))
    for name in "ab":
        pool.submit(play, site_file(name, server.endpoint), model(0), add(1))
    server.result()

    told = server.events
    no_update = [type(e) for e in told if not isinstance(e, (Updated, SiteLeft))]
    of_a_round = [Published, RoundPlayed]
    joining = [RunOpened, *[SiteJoined] * 2, Published]
    assert no_update == [*joining, *of_a_round * 2, RunEnded]
    for played in (e for e in told if isinstance(e, RoundPlayed)):
        before = told[: told.index(played)]
        updates = [e for e in before if isinstance(e, Updated)]
        number = played.record.round
        assert sum(update.round_number == number for update in updates) == 2
    assert [type(e) for e in told].count(SiteLeft) == 2
    published = [e for e in told if isinstance(e, Published)]
    assert [e.round_number for e in published] == [0, 1, 2]
    assert [e.final for e in published] == [False, False, True]


def _with_metrics(path: os.PathLike[str], loss: float, num_examples: int) -> None:
    with flare.join(model(0), site=path) as client:
        for current in client:
            current.submit(
                current.weights,
                num_examples=num_examples,
                metrics={"loss": loss},
                global_metrics={"loss": loss + 1},
            )
        client.report({"auc": loss})


def test_a_round_is_recorded_with_each_site_and_the_mean(
    pool: ThreadPoolExecutor, run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(plan())
    pool.submit(_with_metrics, site_file("a", server.endpoint), 1.0, 1)
    pool.submit(_with_metrics, site_file("b", server.endpoint), 2.0, 3)

    result = server.result()

    (played,) = server.told(RoundPlayed)
    record = played.record
    assert (record.round, record.num_examples) == (0, 4)
    assert record.metrics == {"loss": 1.75}
    assert record.global_metrics == {"loss": 2.75}
    assert list(record.sites) == ["a", "b"]
    assert record.sites["b"].metrics == {"loss": 2.0}
    assert record.sites["b"].num_examples == 3
    assert record.bytes_up == sum(site.bytes_up for site in record.sites.values())
    assert record.bytes_down >= 2 * 4
    assert record.seconds >= record.sites["a"].seconds > 0
    assert result.sites == {"a": {"auc": 1.0}, "b": {"auc": 2.0}}
    assert result.metrics == {"auc": 1.75}


def test_the_hash_is_that_of_the_file_of_the_model(
    pool: ThreadPoolExecutor, run_server: RunServer, site_file: SiteFile
) -> None:
    files: list[bytes] = []

    def keep(event: Event) -> None:
        if isinstance(event, Published):
            files.append(event.path.read_bytes())

    server = run_server(plan(rounds=2, sites=1), observer=keep)
    pool.submit(play, site_file("a", server.endpoint), model(0, 1), add(1))
    result = server.result()

    published = server.told(Published)
    records = [e.record for e in server.told(RoundPlayed)]

    assert files == [
        b"".join(pack(flare.ModelState(model(i, i + 1)))) for i in (0, 1, 2)
    ]
    hashes = [blake3(file).hexdigest() for file in files]
    assert [e.blake3 for e in published] == hashes
    assert [record.blake3 for record in records] == hashes[1:]
    assert result.blake3 == hashes[-1]
    assert len(set(hashes)) == 3


def test_a_published_model_is_there_when_its_file_is_gone(
    pool: ThreadPoolExecutor, run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(plan(rounds=2, sites=1))
    pool.submit(play, site_file("a", server.endpoint), model(0, 1), add(1))
    server.result()

    published = server.told(Published)

    assert [e.weights["w"].tolist() for e in published] == [[0, 1], [1, 2], [2, 3]]
    assert not [e.path for e in published if e.path.exists()]


def test_nothing_is_left_in_the_folder_when_a_run_ends(
    pool: ThreadPoolExecutor,
    run_server: RunServer,
    site_file: SiteFile,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    seen: list[str] = []

    def look(event: Event) -> None:
        if isinstance(event, Published):
            seen.extend(path.suffix for path in folder.rglob("*") if path.is_file())

    server = run_server(plan(rounds=2, sites=1), observer=look, folder=folder)
    pool.submit(play, site_file("a", server.endpoint), model(0, 1), add(1))
    server.result()

    assert ".safetensors" in seen
    assert not list(folder.rglob("*"))


def test_nothing_is_left_in_the_system_s_folder_either(
    pool: ThreadPoolExecutor,
    run_server: RunServer,
    site_file: SiteFile,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    server = run_server(plan(sites=1))
    pool.submit(play, site_file("a", server.endpoint), model(0, 1), add(1))

    server.result()

    assert not list(folder.iterdir())


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_the_run_starts_from_the_first_site_by_name_whoever_joins_first(
    order: str, pool: ThreadPoolExecutor, run_server: RunServer, site_file: SiteFile
) -> None:
    watch = Watch()
    server = run_server(plan(), observer=watch)
    initial = {"a": model(1), "b": model(2)}

    for name in order:
        path = site_file(name, server.endpoint)
        last = pool.submit(play, path, initial[name], add(0))
        assert watch.until(SiteJoined).site == name

    assert last.result(WAIT_S)["w"].tolist() == [1]


# Float64 sums of these differ with their order, even after rounding to float32.
_VALUES = {"a": 2.0**60, "b": 1.0 + 2**-20, "c": -(2.0**60)}


def _hash_of(
    order: tuple[str, ...], pool: ThreadPoolExecutor, run: RunServer, file: SiteFile
) -> str:
    turns = Turns(order)
    server = run(plan(sites=3), observer=turns.observer)

    def script(name: str) -> None:
        def train(_: flare.ClientRound) -> Local:
            turns.wait(name)
            return {"w": np.asarray([_VALUES[name], 3], np.float32)}, 1

        play(file(name, server.endpoint), model(0, 0), train)

    list(pool.map(script, order))
    updates = [e.site for e in server.told(Updated)]
    assert updates == list(order)
    return server.result().blake3


def test_the_hash_does_not_depend_on_the_order_of_arrival(
    pool: ThreadPoolExecutor, run_server: RunServer, site_file: SiteFile
) -> None:
    orders = itertools.permutations("abc")

    hashes = {_hash_of(order, pool, run_server, site_file) for order in orders}

    assert len(hashes) == 1


def _of_every_type() -> dict[str, Array]:
    rng = np.random.default_rng(5)
    tensors = {}
    for code, dtype in flare.DTYPES.items():
        array = from_bits(code, (2, 4), rng.bytes(8 * dtype.itemsize))
        while not all_finite(array):
            array = from_bits(code, (2, 4), rng.bytes(8 * dtype.itemsize))
        tensors[code] = array
    return {**tensors, "scalar": np.asarray(1.5), "empty": np.zeros((0, 3), "f4")}


def test_one_site_is_no_federation_in_any_type(
    pool: ThreadPoolExecutor, run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(plan(rounds=2, sites=1))
    initial = _of_every_type()

    def unchanged(current: flare.ClientRound) -> Local:
        return current.weights, 17

    final = pool.submit(play, site_file("a", server.endpoint), initial, unchanged)

    assert final.result(WAIT_S).layout == flare.ModelState(initial).layout
    for name, array in initial.items():
        assert to_bits(final.result()[name]) == to_bits(array)


def test_a_model_of_many_chunks_and_parts_travels_and_is_averaged(
    pool: ThreadPoolExecutor, run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(plan(rounds=2))
    rng = np.random.default_rng(2)
    initial: dict[str, Array] = {
        "large": rng.normal(size=(1000, 1031)).astype(np.float32),  # 4 MB
        "wide": rng.normal(size=300_001),
        **{f"small.{i}": np.full(3, i, np.float32) for i in range(50)},
    }
    a = pool.submit(play, site_file("a", server.endpoint), initial, add(1, 1))
    b = pool.submit(play, site_file("b", server.endpoint), initial, add(5, 3))

    final = a.result(WAIT_S)

    assert b.result(WAIT_S) == final
    for name, array in initial.items():
        expected = array.astype(np.float64)
        for _ in range(2):
            one, other = (
                (expected.astype(array.dtype) + step).astype(np.float64)
                for step in (1, 5)
            )
            expected = (one + 3 * other) / 4
        np.testing.assert_array_equal(final[name], expected.astype(array.dtype))


def test_a_counter_takes_the_maximum(
    pool: ThreadPoolExecutor, run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(plan())
    initial = {"num_batches_tracked": np.asarray(0)}
    a = pool.submit(play, site_file("a", server.endpoint), initial, add(7))
    pool.submit(play, site_file("b", server.endpoint), initial, add(10))

    counter = a.result(WAIT_S)["num_batches_tracked"]

    assert (counter.dtype.name, int(counter)) == ("int64", 10)


def test_the_plan_is_the_server_s(run_server: RunServer, site_file: SiteFile) -> None:
    settings = flare.Plan(
        rounds=1,
        schedule=flare.Schedule(every_n_steps=5),
        local=flare.FedProx(mu=0.25),
        select=["head.*"],
        optimizer_state="reset",
    )
    server = run_server(settings)

    link = flare.connect(flare.site(site_file("a", server.endpoint)))

    assert link.plan() == settings
    link.leave({})


def test_the_weights_of_a_round_cannot_be_written_to(
    pool: ThreadPoolExecutor, run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(plan(sites=1))

    def train(current: flare.ClientRound) -> Local:
        assert not current.weights["w"].flags.writeable
        return current.weights, 1

    script = pool.submit(play, site_file("a", server.endpoint), model(1), train)

    script.result(WAIT_S)


_SCRIPT = """
import numpy as np
import flare_core as flare

with flare.join({"w": np.zeros(2, np.float32)}) as client:
    for round in client:
        w = round.weights["w"] + (1 + flare.site().index)
        round.submit({"w": w}, num_examples=10, metrics={"round": round.number})
print(client.weights["w"].tolist())
"""


def test_sites_in_processes_of_their_own_train_one_model(
    run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(plan(rounds=2))
    sites = [
        subprocess.Popen(
            [sys.executable, "-c", _SCRIPT],
            env={**os.environ, "FLARE_SITE": str(site_file(name, server.endpoint, i))},
            stdout=subprocess.PIPE,
            text=True,
        )
        for i, name in enumerate("ab")
    ]

    printed = [site.communicate(timeout=60)[0] for site in sites]

    assert printed == ["[3.0, 3.0]\n"] * 2
    assert server.result().rounds == 2
