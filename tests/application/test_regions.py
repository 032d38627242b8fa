"""Regions with servers of their own: the same bits as with one server for all."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import TypeAlias, final

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import xxhash

import flare_core as flare
from flare_core.application import plan_below
from flare_core.communication import (
    Commit,
    Committed,
    Offer,
    Refused,
    Start,
    Summand,
    pack,
)
from site_scripts import WAIT_S, Local, Stranger, Train, model, stream_id
from support import RunningServer, RunServer, SiteFile

_Model: TypeAlias = dict[str, npt.ArrayLike]
_SMALL: _Model = {"w": np.linspace(-1, 1, 50, dtype=np.float32)}
_LARGE: _Model = {
    "w": np.linspace(-1, 1, 300_000, dtype=np.float32).reshape(300, 1000),
    "h": np.linspace(-2, 2, 77, dtype=np.float16),
    "n": np.arange(5),
    "": np.zeros(0, np.float64),
}
_NORTH = ("north.a", "north.b", "north.c")
_SOUTH = ("south.x",)
_WEST = ("west-1", "west")
"""Sites of no region; of the names with a dot, those of a region come together."""


def _plan(sites: int, **tables: object) -> flare.Plan:
    tree = {"rounds": 3, "topology": {"name": "hierarchical"}, **tables}
    tree = {**tree, "selection": {"sites": sites}}
    return msgspec.convert(tree, flare.Plan)


def _trains(site: str) -> Train:
    """Return a training of as many examples and steps as the site's name says."""
    seed = list(site.encode())

    def train(current: flare.ClientRound) -> Local:
        rng = np.random.default_rng([current.number, *seed])
        return {
            name: weights + 1
            if weights.dtype.kind == "i"
            else weights + rng.standard_normal(weights.shape).astype(weights.dtype)
            for name, weights in current.weights.items()
        }, 1 + sum(seed) % 13

    return train


def _play(path: object, site: str, initial: _Model) -> flare.ModelState:
    train = _trains(site)
    with flare.join(initial, site=str(path)) as client:
        for current in client:
            weights, num_examples = train(current)
            if site.endswith("ill") and current.number == 1:
                weights = {**weights, "w": np.full_like(weights["w"], np.nan)}
            current.submit(
                weights,
                num_examples=num_examples,
                num_steps=1 + len(site),
                global_metrics={"loss": float(len(site)) / (1 + current.number)},
            )
    return client.weights


@final
class _Federation:
    """Servers and their sites, each in a thread."""

    def __init__(
        self, run_server: RunServer, site_file: SiteFile, pool: ThreadPoolExecutor
    ) -> None:
        self._run_server = run_server
        self._site_file = site_file
        self._pool = pool

    def server(self, plan: flare.Plan) -> RunningServer:
        """Start a server that has none above."""
        return self._run_server(plan)

    def region(
        self, name: str, above: RunningServer, plan: flare.Plan
    ) -> RunningServer:
        """Start the server of a region."""
        site = flare.site(self._site_file(name, above.endpoint))
        return self._run_server(plan, above=site)

    def start(
        self, server: RunningServer, sites: Sequence[str], initial: _Model
    ) -> list[Future[flare.ModelState]]:
        """Start the sites of a server."""
        files = [self._site_file(site, server.endpoint) for site in sites]
        return [
            self._pool.submit(_play, file, site, initial)
            for file, site in zip(files, sites, strict=True)
        ]


@pytest.fixture
def federation(
    run_server: RunServer, site_file: SiteFile, pool: ThreadPoolExecutor
) -> _Federation:
    return _Federation(run_server, site_file, pool)


@pytest.mark.parametrize("initial", [_SMALL, _LARGE], ids=["small", "large"])
@pytest.mark.parametrize(
    "tables",
    [
        {},
        {"strategy": {"name": "fedadam"}},
        {"strategy": {"name": "fednova"}},
        {"strategy": {"name": "qfedavg", "settings": {"learning_rate": 0.1}}},
        {"encoding": {"up": "int8", "down": "int8"}},
        {"encoding": {"up": "xor", "down": "xor"}},
    ],
    ids=["fedavg", "fedadam", "fednova", "qfedavg", "int8", "xor"],
)
def test_regions_give_the_bits_of_one_server(
    tables: dict[str, object], initial: _Model, federation: _Federation
) -> None:
    flat = federation.server(_plan(6, **tables))
    everybody = federation.start(flat, [*_NORTH, *_SOUTH, *_WEST], initial)
    expected = flat.result()
    for site in everybody:
        site.result(WAIT_S)

    plan = _plan(4, **tables)
    root = federation.server(plan)
    north = federation.region("north", root, plan_below(plan, sites=3))
    south = federation.region("south", root, plan_below(plan, sites=1))
    sites = [
        *federation.start(north, _NORTH, initial),
        *federation.start(south, _SOUTH, initial),
        *federation.start(root, _WEST, initial),
    ]
    results = [one.result() for one in (root, north, south)]

    assert {one.blake3 for one in results} == {expected.blake3}
    assert [one.rounds for one in results] == [3, 3, 3]
    finals = [site.result(WAIT_S) for site in sites]
    assert all(one == everybody[0].result() for one in finals)


def test_a_region_may_have_regions(federation: _Federation) -> None:
    sites = ["eu.de.a", "eu.de.b", "eu.fr", "us.x"]
    flat = federation.server(_plan(4))
    everybody = federation.start(flat, sites, _LARGE)
    expected = flat.result().blake3

    plan = _plan(2)
    root = federation.server(plan)
    eu = federation.region("eu", root, plan_below(plan, sites=2))
    de = federation.region("eu.de", eu, plan_below(plan, sites=2))
    served = {"eu.de.a": de, "eu.de.b": de, "eu.fr": eu, "us.x": root}
    for site, server in served.items():
        everybody += federation.start(server, [site], _LARGE)

    assert {one.result().blake3 for one in (root, eu, de)} == {expected}
    assert len({one.result(WAIT_S)["w"].tobytes() for one in everybody}) == 1


def test_two_levels_are_the_mean_of_all(federation: _Federation) -> None:
    """In float64 the sums differ from those of a star by their rounding only."""
    initial: _Model = {"w": np.linspace(-1, 1, 50)}
    finals: list[npt.NDArray[np.float64]] = []
    for topology in ("star", "hierarchical"):
        server = federation.server(_plan(6, topology={"name": topology}))
        sites = federation.start(server, [*_NORTH, *_SOUTH, *_WEST], initial)
        finals.append(np.asarray(sites[0].result(WAIT_S)["w"]))
        server.result()
    np.testing.assert_allclose(finals[0], finals[1], rtol=0, atol=1e-14)


def test_the_run_above_ends_when_it_has_what_it_wants(federation: _Federation) -> None:
    plan = _plan(2, rounds=10, stop={"metric": "loss", "target": 4.0, "mode": "min"})
    root = federation.server(plan)
    north = federation.region("north", root, plan_below(plan, sites=3))
    south = federation.region("south", root, plan_below(plan, sites=1))
    sites = federation.start(north, _NORTH, _SMALL)
    sites += federation.start(south, _SOUTH, _SMALL)
    results = [one.result() for one in (root, north, south)]
    # the mean loss is about 7 in round 0, and half of it in round 1
    assert [one.rounds for one in results] == [2, 2, 2]
    assert "target" in results[0].stopped
    assert results[1].stopped == "the run above has ended"
    assert len({one.result(WAIT_S)["w"].tobytes() for one in sites}) == 1


def test_a_region_that_fails_is_named_above_and_why(federation: _Federation) -> None:
    plan = _plan(2)
    root = federation.server(plan)
    north = federation.region("north", root, plan_below(plan, sites=1))
    south = federation.region("south", root, plan_below(plan, sites=1))
    sites = federation.start(south, _SOUTH, _SMALL)
    sites += federation.start(north, ["north.ill"], _SMALL)
    error = north.result().error
    assert error.startswith("round 1: site 'north.ill': tensor 'w': expected finite")
    assert f"site 'north' failed: {error}" in root.result().error
    assert f"the server above: {root.result().error}" in south.result().error
    for site in sites:
        with pytest.raises(flare.FlareError):
            site.result(WAIT_S)


def test_regions_that_do_not_fit_together_are_told_so(federation: _Federation) -> None:
    plan = _plan(2)
    root = federation.server(plan)
    north = federation.region("north", root, plan_below(plan, sites=1))
    south = federation.region("south", root, plan_below(plan, sites=1))
    sites = federation.start(north, ["north.a"], _SMALL)
    sites += federation.start(south, ["south.x"], {"w": np.zeros(7, np.float32)})
    assert "'south'" in root.result().error
    assert "tensor 'w'" in south.result().error
    for server in (north, south):
        assert server.result().rounds == 0
    for site in sites:
        with pytest.raises(flare.RunAbortedError, match="the server above"):
            site.result(WAIT_S)


@pytest.mark.parametrize(
    ("topology", "counts", "num_bytes", "weight", "expected"),
    [
        ("star", [1, 1], 8, 2, "the update of one site"),
        ("hierarchical", [1, 2], 8, 2, "3 examples, as of its sites together"),
        ("hierarchical", [1, 1], 4, 2, "bytes"),
        ("hierarchical", [3, -1], 8, 2, "at least 1"),
        ("hierarchical", [1, 1], 8, 2.1, "a weight of 2 of its sites"),
        ("hierarchical", [1, 1], 8, np.nan, "a weight of 2 of its sites"),
    ],
    ids=["no region", "examples", "bytes", "counts", "weight", "no weight"],
)
def test_a_sum_that_cannot_be_right_is_refused(
    topology: str,
    counts: list[int],
    num_bytes: int,
    weight: float,
    expected: str,
    *,
    run_server: RunServer,
) -> None:
    server = run_server(_plan(1, topology={"name": topology}, rounds=1))
    sums = b"".join(pack(flare.ModelState({"w": np.ones(1)})))
    short = sums[: None if num_bytes == 8 else -4]
    offer = Offer(
        stream=stream_id(),
        num_bytes=len(short),
        round_number=0,
        num_examples=2,
        short=short,
        summands=tuple(Summand(site=f"s{n % 7}", num_examples=n) for n in counts),
        weight=weight,
    )

    answer = _handed_in(server, offer)

    assert isinstance(answer, Refused)
    assert expected in answer.refusal.expected


def _handed_in(server: RunningServer, offer: Offer) -> object:
    """Play a region up to round 0, hand in a sum, and return the answer."""
    with closing(Stranger(server.endpoint)) as region:
        region.join("region", flare.ModelState(model(1)).layout)
        region.hear()
        first = pack(flare.ModelState(model(1)))
        assert isinstance(region.hand_in(first, round_number=-1), Committed)
        assert isinstance(region.hear(), Start)
        region.say(offer)
        digest = xxhash.xxh3_128_digest(offer.short)
        region.say(Commit(stream=offer.stream, digest=digest))
        return region.hear()


@pytest.mark.parametrize("squared_norm", [-0.1, -3.0, np.nan])
def test_a_length_that_is_none_is_refused_with_its_site(
    squared_norm: float, run_server: RunServer
) -> None:
    fair = {"name": "qfedavg", "settings": {"learning_rate": 0.1, "q": 1}}
    server = run_server(_plan(1, strategy=fair, rounds=1))
    sums = b"".join(pack(flare.ModelState({"w": np.ones(1)})))
    summand = Summand(
        site="s1",
        num_examples=1,
        global_metrics={"loss": 1.0},
        squared_norm=squared_norm,
    )
    offer = Offer(
        stream=stream_id(),
        num_bytes=len(sums),
        round_number=0,
        num_examples=1,
        short=sums,
        summands=(summand,),
        weight=1.0,
    )

    answer = _handed_in(server, offer)

    assert isinstance(answer, Refused)
    assert answer.refusal.expected == "a squared length, at least 0, of its site 's1'"


def test_complex_tensors_have_no_regions(federation: _Federation) -> None:
    plan = _plan(1)
    root = federation.server(plan)
    north = federation.region("north", root, plan_below(plan, sites=1))
    (site,) = federation.start(north, ["north.a"], {"z": np.ones(2, np.complex64)})
    assert "tensor 'z' is complex" in north.result().error
    with pytest.raises(flare.RunAbortedError):
        site.result(WAIT_S)
