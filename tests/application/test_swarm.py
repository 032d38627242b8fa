"""Sites that combine their updates themselves, and a server that cannot read them."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias, final

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

import flare_core as flare
from flare_core.application import Published
from flare_core.communication import GroupKey
from site_scripts import WAIT_S
from support import RunningServer, RunServer, SiteFile

_Model: TypeAlias = dict[str, npt.ArrayLike]
_SMALL: _Model = {"w": np.linspace(-1, 1, 50, dtype=np.float32)}
_LARGE: _Model = {
    "w": np.linspace(-1, 1, 700_000, dtype=np.float32).reshape(700, 1000),
    "h": np.linspace(-2, 2, 77, dtype=np.float16),
    "n": np.arange(5),
}
_SITES = ("a", "b", "c")
_KEY = GroupKey(bytes(range(32)))


def _plan(topology: str, **tables: object) -> flare.Plan:
    tree = {
        "rounds": 4,
        "topology": {"name": topology},
        "selection": {"sites": len(_SITES)},
    }
    return msgspec.convert({**tree, **tables}, flare.Plan)


@final
class _Group:
    """Sites with a key of the group, in threads."""

    def __init__(
        self, run_server: RunServer, site_file: SiteFile, pool: ThreadPoolExecutor
    ) -> None:
        self.server = run_server
        self._site_file = site_file
        self._pool = pool
        self.keys = dict.fromkeys(_SITES, _KEY)

    def start(
        self, server: RunningServer, initial: _Model, sites: Sequence[str] = _SITES
    ) -> list[Future[flare.ModelState]]:
        """Start the sites."""
        return [
            self._pool.submit(_play, self.file(site, server), site, initial)
            for site in sites
        ]

    def file(self, site: str, server: RunningServer) -> Path:
        """Write the site file of a site, with its key."""
        path = self._site_file(site, server.endpoint)
        path.with_name(f"{site}.group").write_text(self.keys[site].text())
        with path.open("a") as file:
            file.write(f'group_key = "{site}.group"\n')
        return path


@pytest.fixture
def group(
    run_server: RunServer, site_file: SiteFile, pool: ThreadPoolExecutor
) -> _Group:
    return _Group(run_server, site_file, pool)


def _play(path: Path, site: str, initial: _Model) -> flare.ModelState:
    with flare.join(initial, site=str(path)) as client:
        for current in client:
            rng = np.random.default_rng([current.number, *site.encode()])
            weights = {
                name: one + 1
                if one.dtype.kind == "i"
                else one + rng.standard_normal(one.shape).astype(one.dtype)
                for name, one in current.weights.items()
            }
            current.submit(
                weights,
                num_examples=ord(site),
                num_steps=1 + ord(site) % 7,
                global_metrics={"loss": 1 / (1 + current.number)},
            )
    return client.weights


def _play_ill(path: Path) -> None:
    with flare.join(_SMALL, site=path) as client:
        for current in client:
            w = np.full_like(current.weights["w"], np.nan)
            current.submit({"w": w}, num_examples=1)


@pytest.mark.parametrize("initial", [_SMALL, _LARGE], ids=["small", "large"])
@pytest.mark.parametrize(
    "tables",
    [
        {},
        {"strategy": {"name": "fednova"}},
        {"aggregation": {"name": "median"}},
        {"local": {"name": "fedprox", "mu": 0.1}},
        {"selection": {"sites": 3, "choose": "random", "k": 2}},
    ],
    ids=["fedavg", "fednova", "median", "fedprox", "random"],
)
def test_the_sites_end_with_the_bits_of_a_star(
    tables: dict[str, object], initial: _Model, group: _Group
) -> None:
    finals: list[flare.ModelState] = []
    for topology in ("star", "swarm"):
        server = group.server(_plan(topology, **tables))
        sites = [one.result(WAIT_S) for one in group.start(server, initial)]
        result = server.result()
        assert (result.rounds, result.error) == (4, "")
        assert sites[0] == sites[1] == sites[2]
        finals.append(sites[0])
    assert finals[0] == finals[1]


def test_the_server_sees_a_row_of_bytes(group: _Group) -> None:
    server = group.server(_plan("swarm"))
    secret = np.full(5000, 1.2345, np.float32)
    for one in group.start(server, {"a secret name": secret}):
        one.result(WAIT_S)
    server.result()
    models = server.told(Published)
    assert len(models) == 5
    for model in models:
        assert list(model.weights) == ["sealed"]
    assert secret[:2].tobytes() not in models[0].weights["sealed"].tobytes()
    assert "a secret name" not in str(list(server.events))


def test_a_site_with_another_key_is_refused_by_name(group: _Group) -> None:
    """It cannot open the model that the first site by name has sealed."""
    group.keys["b"] = GroupKey.new()
    server = group.server(_plan("swarm"))
    sites = group.start(server, _SMALL)
    with pytest.raises(flare.ProtocolError, match="same `group_key`"):
        sites[1].result(WAIT_S)
    assert "site 'b' failed" in server.result().error
    for site in (sites[0], sites[2]):
        with pytest.raises(flare.RunAbortedError, match="site 'b' failed"):
            site.result(WAIT_S)


def test_a_site_without_a_key_says_what_it_lacks(
    group: _Group, site_file: SiteFile
) -> None:
    server = group.server(_plan("swarm"))
    file = site_file("a", server.endpoint)
    with pytest.raises(flare.ConfigurationError, match="expected `group_key`"):
        _play(file, "a", _SMALL)


def test_models_that_differ_are_refused_though_nobody_sees_them(group: _Group) -> None:
    server = group.server(_plan("swarm"))
    sites = group.start(server, _SMALL, ["a", "b"])
    sites += group.start(server, {"v": _SMALL["w"]}, ["c"])
    with pytest.raises(flare.LayoutError, match="layout of the sealed model"):
        sites[2].result(WAIT_S)
    assert "site 'c'" in server.result().error
    for site in sites[:2]:
        with pytest.raises(flare.RunAbortedError):
            site.result(WAIT_S)


def test_an_ill_update_is_found_by_the_site_that_combines(group: _Group) -> None:
    """The server cannot see that it is not finite; another site says so, by name."""
    selection = {"sites": 3, "quorum": 2}
    server = group.server(_plan("swarm", selection=selection))
    sites = group.start(server, _SMALL, ["a", "b"])
    with pytest.raises(flare.UpdateError, match="'c': tensor 'w': expected finite"):
        _play_ill(group.file("c", server))
    result = server.result()
    assert (result.rounds, result.error) == (4, "")
    assert sites[0].result(WAIT_S) == sites[1].result(WAIT_S)


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"strategy": {"name": "fedadam"}}, "has not what it remembers"),
        (
            {"aggregation": {"name": "centred_clipping", "settings": {"radius": 1}}},
            "has not what it remembers",
        ),
    ],
    ids=["moments", "centre"],
)
def test_what_remembers_is_refused(
    tables: dict[str, object], words: str, group: _Group
) -> None:
    with pytest.raises(flare.ConfigurationError, match=words):
        group.server(_plan("swarm", **tables))


@pytest.mark.parametrize(
    "tables",
    [
        {"keep_updates": True},
        {"encoding": {"up": "int8"}},
        {"encoding": {"down": "xor"}},
        {"round": {"late_weight": 0.5}},
        {"local": {"name": "scaffold"}},
    ],
    ids=["kept", "up", "down", "late", "scaffold"],
)
def test_what_the_server_would_have_to_read_is_refused(
    tables: dict[str, object],
) -> None:
    with pytest.raises(msgspec.ValidationError, match="do not go together"):
        _plan("swarm", **tables)
