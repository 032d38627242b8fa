"""A swarm goes on whoever is killed, in whosever turn."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar, final

import msgspec
import numpy as np
import pytest

import flare_core as flare
from deployed import Deployment, deployment
from flare_core.application._envelope import Envelope, facts_of
from flare_core.communication import (
    Combine,
    Committed,
    GroupKey,
    Hello,
    Join,
    Propose,
    Start,
    Unfit,
    Welcome,
    pack,
)
from flare_core.management._deployment import check_server
from site_scripts import WAIT_S, Stranger, play, stream_id, wander

_SITES = ("a", "b", "c")
_INITIAL = {"w": np.zeros(100_000, np.float32)}
_M = TypeVar("_M")
_KEY = GroupKey(bytes(range(32)))


def _plan(topology: str) -> flare.Plan:
    tree = {
        "rounds": 3,
        "topology": {"name": topology},
        "selection": {"sites": len(_SITES)},
    }
    return msgspec.convert(tree, flare.Plan)


def _file(deployed: Deployment, site: str) -> Path:
    path = deployed.site(site, "demo", group_key="group.key")
    path.with_name("group.key").write_text(_KEY.text())
    return path


@pytest.fixture(scope="module")
def star() -> flare.ModelState:
    """The final model where the server combines."""
    with deployment() as deployed, ThreadPoolExecutor() as pool:
        for site in _SITES:
            deployed.member(site)
        deployed.create("demo", _plan("star"))
        sites = [
            pool.submit(play, _file(deployed, site), _INITIAL, wander(site))
            for site in _SITES
        ]
        return sites[0].result(WAIT_S)


@final
class _Dying:
    """The site a up to its first turn, which it never takes."""

    def __init__(self, deployed: Deployment) -> None:
        self._peer: Stranger = deployed.peer("a")
        state = flare.ModelState(_INITIAL)
        envelope = Envelope(flare.site(_file(deployed, "a")), "demo", state.layout)
        self._peer.say(Hello(site="a", session=stream_id(), run="demo"))
        welcome = self._wait(Welcome)
        join = Join(
            layout=envelope.layout,
            sealed=state.layout.hash,
            plan=welcome.plan.fingerprint,
        )
        self._peer.say(join)
        self._wait(Propose)
        answer = self._peer.hand_in(
            pack(envelope.leaving(pack(state), -1, b"")), round_number=-1
        )
        assert isinstance(answer, Committed)
        self._wait(Start)
        model = flare.GlobalModel(round_number=0, weights=state)
        current = flare.ClientRound(model, "a", lambda _: None)
        trained, num_examples = wander("a")(current)
        update = pack(flare.ModelState(trained))
        facts = facts_of(num_examples, 0, {})
        sealed = pack(envelope.leaving(update, 0, facts))
        answer = self._peer.hand_in(sealed, num_examples=num_examples)
        assert isinstance(answer, Committed | Combine)
        if not isinstance(answer, Combine):
            answer = self._wait(Combine)
        self._token = answer.token

    def shirk(self) -> None:
        """Say that nothing comes of it, and of no update why."""
        self._peer.say(Unfit(combines=self._token))
        self._wait(Start)

    def die(self) -> None:
        """Go without a word."""
        self._peer.close()

    def _wait(self, kind: type[_M]) -> _M:
        while not isinstance(message := self._peer.hear(), kind):
            pass
        return message


@pytest.mark.parametrize("killed", ["gone", "back", "server", "shirks"])
def test_whoever_combines_comes_to_the_same_bits(
    killed: str, pool: ThreadPoolExecutor, star: flare.ModelState
) -> None:
    patience_s = 1.0 if killed == "gone" else 30.0
    with deployment(process=True, patience_s=patience_s) as deployed:
        for site in _SITES:
            deployed.member(site)
        deployed.create("demo", _plan("swarm"))

        def start(site: str) -> Future[flare.ModelState]:
            file = _file(deployed, site)
            return pool.submit(play, file, _INITIAL, wander(site))

        left = Path(_file(deployed, "b")).with_name("turn-b-demo")
        (left / "models").mkdir(parents=True)  # by one that was killed in its turn
        sites = [start("b"), start("c")]
        dying = _Dying(deployed)
        if killed == "server":
            deployed.kill()
            deployed.start()
        if killed == "shirks":
            dying.shirk()
        dying.die()
        if killed == "gone":  # its turn passes to another site
            deployed.said("demo", "round 1")
        sites.append(start("a"))

        assert all(one.result(WAIT_S) == star for one in sites)
        assert not list(deployed.path.rglob("turn-*"))
        info = deployed.ended("demo")
        assert (info.state, info.rounds, info.error) == ("finished", 3, "")
        assert all(one.level != "wrong" for one in check_server(deployed.folder))
