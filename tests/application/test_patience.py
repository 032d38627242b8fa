"""Before round 0 sites come and go; the run is that of those who are there then."""

import tempfile
from collections import deque
from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import flare_core as flare
from flare_core.application._ledger import Ledger
from flare_core.application._run import Run
from flare_core.application._spool import Spool
from flare_core.application._worker import Worker
from flare_core.communication import (
    INITIAL,
    SHORT_BYTES,
    Chunk,
    Hello,
    Join,
    Leave,
    Offer,
    Outgoing,
    Propose,
    Refused,
    Session,
    Start,
    ToServer,
    ToSite,
    Welcome,
    decode_to_server,
    encode,
    pack,
)
from site_scripts import plan, stream_id

_SITES = ("0", "a", "b")
_LONG = SHORT_BYTES  # floats: too long to go along with the offer
_PLAN = plan(rounds=1)


def _weights(value: float, length: int) -> flare.ModelState:
    return flare.ModelState({"w": np.full(length, value, np.float32)})


class _Site:
    """A site's own side of the conversation; what it says waits until it is carried."""

    def __init__(self, name: str, attempt: int, *, fits: bool) -> None:
        self.name = name
        self.value = 100.0 * _SITES.index(name) + attempt
        self.started = self.refused = False
        self._session = Session(Hello(site=name, session=stream_id()))
        self.length = _LONG if fits else _LONG + 1
        self._weights = _weights(self.value, self.length)

    def join(self) -> None:
        layout = self._weights.layout
        join = Join(layout=layout, plan=_PLAN.fingerprint)
        self._session.ask(join, Propose, Start)

    def hand_in(self, weights: flare.ModelState, round_number: int) -> None:
        pieces = pack(weights)
        offer = Offer(
            stream=stream_id(),
            num_bytes=Outgoing(pieces).num_bytes,
            round_number=round_number,
            num_examples=1,
        )
        self._session.send(offer, pieces, Start)

    def hear(self, message: ToSite | Chunk) -> None:
        answer = self._session.receive(encode(message))
        if answer is None:
            return
        if isinstance(answer[0], Propose):
            self.hand_in(self._weights, INITIAL)
        self.started = isinstance(answer[0], Start)
        self.refused = isinstance(answer[0], Refused)

    def said(self) -> ToServer | Chunk | None:
        """Return what it says next."""
        outbox = self._session.outbox
        return decode_to_server(outbox.popleft()) if outbox else None


class ComingAndGoing(RuleBasedStateMachine):
    """Sites join, fit or do not, leave, and hand in; all takes its time."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        spool = Spool(Path(self._folder.name, "spool"))
        spool.make()
        self._results: deque[Callable[[], object]] = deque()
        self._worker = Worker(self._results.append, num_threads=1)
        self._sites: dict[str, _Site] = {}
        self._attempts = 0
        self._run = Run(
            Welcome(plan=_PLAN, run="demo"),
            spool=spool,
            share=False,
            send=self._send,
            worker=self._worker,
            ledger=Ledger(self._worker),
            observer=lambda _: None,
            preflight=False,
            patient=True,
        )

    def teardown(self) -> None:
        for name, site in list(self._sites.items()):
            if not self._gathered and site.length != _LONG:
                self.go_away(name)
        for name in _SITES:  # those who are missing come, and nobody goes
            self.come(name, 1)
            self._settle()
        self._play_to_the_end()
        self._worker.close()
        self._run.close()
        self._folder.cleanup()

    def _send(self, site: str, message: ToSite | Chunk) -> None:
        if site in self._sites:
            self._sites[site].hear(message)

    @property
    def _begun(self) -> bool:
        return any(site.started for site in self._sites.values())

    @property
    def _gathered(self) -> bool:
        """Whether the weights to start from are here: who goes now, leaves a round."""
        return self._run._rounds.begun

    not_begun = precondition(lambda self: not self._gathered)
    someone = precondition(lambda self: not self._gathered and self._sites)

    @not_begun
    @rule(name=st.sampled_from(_SITES), fits=st.integers(0, 5))
    def come(self, name: str, fits: int) -> None:
        if name in self._sites or not self._run.lobby.awaits(name):
            return
        self._attempts += 1
        site = self._sites[name] = _Site(name, self._attempts, fits=bool(fits))
        self._run.welcome(name)
        site.join()
        self._carry(site)

    @someone
    @rule(data=st.data(), crash=st.booleans())
    def go(self, data: st.DataObject, *, crash: bool) -> None:
        self.go_away(data.draw(st.sampled_from(sorted(self._sites))), crash=crash)

    def go_away(self, name: str, *, crash: bool = False) -> None:
        del self._sites[name]
        if crash:
            self._run.site_left(name, "it was not heard of", failed=True)
        else:
            self._run.receive(name, Leave(metrics={}, reason="no disk", failed=True))

    @someone
    @rule(data=st.data())
    def carry(self, data: st.DataObject) -> None:
        """Carry one message to the server; its answers are there at once."""
        self._carry(self._sites[data.draw(st.sampled_from(sorted(self._sites)))])

    def _carry(self, site: _Site) -> bool:
        message = site.said()
        if message is not None:
            self._run.receive(site.name, message)
            # the worker is quick; that its results are late is another rule
            self._worker._jobs.submit(lambda: None).result()
        return message is not None

    @precondition(lambda self: self._results)
    @rule()
    def deliver(self) -> None:
        """Bring a result of the worker to the server."""
        self._results.popleft()()
        self._worker._jobs.submit(lambda: None).result()

    @rule()
    def who_was_refused_goes(self) -> None:
        for name in [n for n, site in self._sites.items() if site.refused]:
            del self._sites[name]

    @invariant()
    def begins_with_all_who_are_there_and_the_weights_of_the_first(self) -> None:
        assert not self._run.over, self._run.result
        if not self._begun:
            return
        self.who_was_refused_goes()
        assert set(self._sites) == self._run.lobby.present
        assert len(self._sites) == _PLAN.selection.sites
        assert all(site.started for site in self._sites.values())
        first = self._sites[min(self._sites)]
        np.testing.assert_array_equal(self._global(), np.float32(first.value))

    def _global(self) -> object:
        assert self._run._rounds._model is not None
        return self._run._rounds._model.weights["w"]

    def _settle(self) -> None:
        """Carry all there is to say, and deliver all results."""
        busy = True
        while busy:
            self.who_was_refused_goes()
            carried = [self._carry(site) for site in list(self._sites.values())]
            busy = any(carried)
            while self._results:
                busy = True
                self.deliver()

    def _play_to_the_end(self) -> None:
        """Play the one round; the final model is the mean, as of any other run."""
        assert self._begun
        for number, name in enumerate(sorted(self._sites)):
            site = self._sites[name]
            site.hand_in(_weights(10.0 + number, site.length), 0)
        self._settle()
        np.testing.assert_array_equal(self._global(), np.float32(10.5))
        for name in list(self._sites):
            self._run.receive(name, Leave(metrics={}))
        self._settle()
        assert self._run.over
        assert self._run.result.error == ""


TestComingAndGoing = ComingAndGoing.TestCase
TestComingAndGoing.settings = settings(
    deadline=None, stateful_step_count=60, max_examples=80
)


def test_a_site_is_asked_again_when_another_came_before_it_and_left() -> None:
    there = ComingAndGoing()
    there.come("a", fits=1)
    there.come("b", fits=1)  # a is asked, and offers
    there.go_away("b")
    there.come("0", fits=1)  # 0 is asked
    there.go_away("0")

    there.come("b", fits=1)

    there.teardown()  # plays it to its end
