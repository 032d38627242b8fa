"""A site that leaves and comes back: what it may change, and which round it is in."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pytest

import flare_core as flare
from deployed import Deployment
from flare_core.communication import (
    INITIAL,
    Aborted,
    Again,
    Bye,
    Chunk,
    Committed,
    Done,
    Join,
    Leave,
    Notice,
    Offer,
    Ping,
    Pong,
    Propose,
    Refused,
    Start,
    StopRun,
    Welcome,
    pack,
)
from site_scripts import (
    WAIT_S,
    Local,
    Stranger,
    add,
    hello,
    model,
    plan,
    play,
    stream_id,
)

_LONG = 10_000
"""Too large to go along with what announces it: updates are files."""
_INITIAL = model(*[0] * _LONG)
_LAYOUT = flare.ModelState(_INITIAL).layout
_OTHER_LAYOUT = flare.ModelState(model(0)).layout
_OPEN = flare.Plan(rounds=1, selection=flare.Selection(sites=1, newcomers=True))


def _file(value: float) -> Sequence[bytes]:
    weights = {"w": np.full(_LONG, value, np.float32)}
    return [bytes(piece) for piece in pack(flare.ModelState(weights))]


def _heard_out(peer: Stranger) -> None:
    """Wait until a server has dealt with all that a peer has said."""
    peer.say(Ping())
    while not isinstance(peer.hear(), Pong):
        pass


def _started(peer: Stranger) -> Start:
    """Wait for a global model, whatever else is said of the run."""
    while not isinstance(message := peer.hear(), Start):
        assert isinstance(message, Notice)
    return message


def test_who_waits_for_a_sites_name_is_told_when_the_run_ends_meanwhile(
    deployed: Deployment,
) -> None:
    deployed.member("b")
    deployed.create("demo", plan(sites=1))
    with closing(deployed.peer("b")) as silent, closing(deployed.peer("b")) as other:
        silent.join("b", _LAYOUT)
        assert isinstance(silent.hear(), Propose)
        other.say(hello("b"))
        assert isinstance(silent.hear(), Ping)  # is it there still?

        deployed.end("demo")

        assert isinstance(other.hear(), Again)
        other.say(hello("b"))
        assert isinstance(other.hear(), Aborted)


def test_a_site_that_comes_back_cannot_write_over_its_update_that_is_in(
    deployed: Deployment, pool: ThreadPoolExecutor
) -> None:
    for name in "ab":
        deployed.member(name)
    deployed.create("demo", plan())
    may_go = threading.Event()

    def held(current: flare.ClientRound) -> Local:
        assert may_go.wait(WAIT_S)
        return add(1)(current)

    a = pool.submit(play, deployed.site("a", "demo"), _INITIAL, held)
    with closing(deployed.peer("b")) as b:
        b.join("b", _LAYOUT)
        assert isinstance(b.hear(), Start)
        assert isinstance(b.hand_in(_file(3)), Committed)
        b.say(Leave(metrics={}, reason="to come back"))
        assert isinstance(b.hear(), Bye)
        b.join("b", _LAYOUT)

        forged, stream = b"".join(_file(np.nan)), stream_id()
        b.say(Offer(stream=stream, num_bytes=len(forged), round_number=0))
        _heard_out(b)
        b.say(Chunk(stream, 0, [forged]))
        _heard_out(b)
        may_go.set()

        assert isinstance(b.hear(), Start)
        b.say(Leave(metrics={}))
    assert set(a.result(WAIT_S)["w"].tolist()) == {2}


@pytest.mark.parametrize("quorum", [None, 2])
def test_a_site_that_left_before_the_server_was_restarted_is_in_the_round_still(
    quorum: int | None, deployed: Deployment, pool: ThreadPoolExecutor
) -> None:
    for name in "abc":
        deployed.member(name)
    deployed.create("demo", plan(sites=3, quorum=quorum))
    may_go = threading.Event()

    def held(current: flare.ClientRound) -> Local:
        assert may_go.wait(WAIT_S)
        return add(1)(current)

    sites = [
        pool.submit(play, deployed.site(name, "demo"), _INITIAL, held) for name in "ab"
    ]
    with closing(deployed.peer("c")) as c:
        c.join("c", _LAYOUT)
        assert isinstance(c.hear(), Start)
        c.say(Leave(metrics={}, reason="to come back"))
        assert isinstance(c.hear(), Bye)
    deployed.stop()
    deployed.start()

    info = deployed.info("demo")
    assert info.state == ("playing" if quorum else "paused")
    assert ("round 0 needs 3 updates" in info.error) is (quorum is None)
    assert info.sites == ["a", "b"]
    events = [line["event"] for line in deployed.audit() if line["site"] == "c"]
    assert events == ["joined", "left"]
    with closing(deployed.peer("c")) as c:
        c.join("c", _LAYOUT)
        assert _started(c).round_number == 0
        assert isinstance(c.hand_in(_file(4)), Committed)
        may_go.set()
        assert _started(c).final
        c.say(Leave(metrics={}))
    assert [set(one.result(WAIT_S)["w"].tolist()) for one in sites] == [{2}, {2}]


def test_a_site_that_has_a_run_pause_again_and_again_fills_no_file(
    deployed: Deployment,
) -> None:
    for name in "ab":
        deployed.member(name)
    deployed.create("demo", plan())

    with closing(deployed.peer("a")) as a, closing(deployed.peer("b")) as b:
        b.join("b", _LAYOUT)
        a.join("a", _LAYOUT)
        assert isinstance(a.hear(), Propose)
        a.hand_in(_file(0), round_number=INITIAL)
        assert _started(b).round_number == 0
        for _ in range(50):
            b.say(Leave(metrics={}, reason="to come back"))
            while not isinstance(b.hear(), Bye):
                pass
            b.join("b", _LAYOUT)
        _heard_out(b)

    events = [line["event"] for line in deployed.audit() if line["run"] == "demo"]
    assert events.count("paused") == events.count("resumed") == 10
    progress = (deployed.folder.runs / "demo" / "progress.log").read_text()
    assert len(progress.splitlines()) < 50
    assert deployed.info("demo").state == "playing"


def test_what_a_refused_site_sent_writes_nothing_onto_the_terminals_of_others(
    deployed: Deployment,
) -> None:
    for name in "ab":
        deployed.member(name)
    deployed.create("demo", plan())

    with closing(deployed.peer("a")) as a, closing(deployed.peer("b")) as b:
        b.join("b", _LAYOUT)
        a.join("a", _LAYOUT)
        assert isinstance(a.hear(), Propose)
        a.hand_in(_file(0), round_number=INITIAL)
        assert isinstance(b.hear(), Start)
        b.say(Join(layout=_LAYOUT, plan="\x1b[2J"))
        assert isinstance(b.hear(), Refused)

        while not isinstance(notice := a.hear(), Notice):
            pass
    assert "these must come back: b (refused: " in notice.words
    assert notice.words.isprintable()


def test_what_a_site_says_of_its_base_writes_nothing_onto_the_terminals_of_others(
    deployed: Deployment,
) -> None:
    for name in "ab":
        deployed.member(name)
    deployed.create("demo", plan())

    with closing(deployed.peer("a")) as a, closing(deployed.peer("b")) as b:
        for name, peer, base in (("a", a, "\x1b[2J"), ("b", b, "fedcba")):
            peer.say(hello(name))
            welcome = peer.hear()
            assert isinstance(welcome, Welcome)
            fingerprint = welcome.plan.fingerprint
            peer.say(Join(layout=_LAYOUT, plan=fingerprint, base=base))
        refused = b.hear()

    assert isinstance(refused, Refused)
    assert refused.refusal.expected == "fingerprint  [2J as at site 'a'"


def test_why_a_run_was_stopped_writes_nothing_onto_the_terminals_of_its_sites(
    deployed: Deployment,
) -> None:
    deployed.member("a")
    deployed.create("demo", plan())
    with closing(deployed.peer("a")) as a, deployed.admin() as admin:
        a.join("a", _LAYOUT)
        _heard_out(a)

        admin.ask(StopRun(run="demo", reason="\x1b[2Jall is well"), Done)

        told = a.hear()
    assert isinstance(told, Aborted)
    assert told.reason == "stopped by admin:  [2Jall is well"


def test_a_newcomer_that_does_not_fit_ends_nobody_elses_run(
    deployed: Deployment, pool: ThreadPoolExecutor
) -> None:
    for name in "ab":
        deployed.member(name)
    deployed.create("demo", _OPEN)
    begun, may_go = threading.Event(), threading.Event()

    def held(current: flare.ClientRound) -> Local:
        begun.set()
        assert may_go.wait(WAIT_S)
        return add(1)(current)

    a = pool.submit(play, deployed.site("a", "demo"), _INITIAL, held)
    assert begun.wait(WAIT_S)
    with closing(deployed.peer("b")) as b:
        b.join("b", _OTHER_LAYOUT)
        assert isinstance(b.hear(), Refused)
        again = hello("b", session=stream_id())
        b.say(again)
        assert isinstance(b.hear(), Welcome)
        b.say(again)  # as after a break
        assert isinstance(b.hear(), Welcome)
        may_go.set()

        assert set(a.result(WAIT_S)["w"].tolist()) == {1}


def test_a_newcomer_that_does_not_fit_again_and_again_is_in_quarantine(
    deployed: Deployment, pool: ThreadPoolExecutor
) -> None:
    for name in "ab":
        deployed.member(name)
    deployed.create("demo", _OPEN)
    begun, may_go = threading.Event(), threading.Event()

    def held(current: flare.ClientRound) -> Local:
        begun.set()
        assert may_go.wait(WAIT_S)
        return add(1)(current)

    a = pool.submit(play, deployed.site("a", "demo"), _INITIAL, held)
    assert begun.wait(WAIT_S)
    with closing(deployed.peer("b")) as b:
        for _ in range(3):
            b.join("b", _OTHER_LAYOUT)
            assert isinstance(b.hear(), Refused)
        b.say(hello("b"))
        answer = b.hear()
        may_go.set()
        a.result(WAIT_S)

    assert isinstance(answer, Aborted)
    assert "'b' is in quarantine: it was refused 3 times" in answer.reason
