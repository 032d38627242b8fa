"""A member that takes part in a run and means ill changes no other site's result."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from threading import Event

import pytest

import flare_core as flare
from deployed import Beside, Deployment
from flare_core.application import verify_audit
from flare_core.communication import (
    INITIAL,
    Aborted,
    Again,
    Commit,
    Committed,
    Join,
    Leave,
    Offer,
    Ping,
    Pong,
    Refused,
    Start,
    Welcome,
    pack,
)
from site_scripts import WAIT_S, Local, Stranger, add, hello, model, plan, play
from site_scripts import stream_id as new_stream

_LAYOUT = flare.ModelState(model(0)).layout
_LEAVE = Leave(metrics={}, reason="because " * 10_000)
_LATE = "update that nobody waits for"


def _file(value: float) -> list[bytes]:
    return [bytes(piece) for piece in pack(flare.ModelState(model(value)))]


def _heard_out(peer: Stranger) -> None:
    """Wait until a server has dealt with all that a peer has said."""
    peer.say(Ping())
    while not isinstance(peer.hear(), Pong):
        pass


class _Game:
    """Run "demo" of the sites a, which is honest, and b, in the middle of round 1."""

    def __init__(self, deployed: Deployment, pool: ThreadPoolExecutor) -> None:
        deployed.member("a")
        deployed.member("b")
        deployed.create("demo", plan(rounds=2, quorum=1))
        self._may_go = Event()
        self._deployed = deployed
        self.a: Future[flare.ModelState] = pool.submit(
            play, deployed.site("a", "demo"), model(0), self._train
        )
        self.b = deployed.peer("b")
        self.b.join("b", _LAYOUT)
        assert isinstance(self.b.hear(), Start)
        self.stream = new_stream()
        answer = self.b.hand_in(_file(3), stream=self.stream)
        assert isinstance(answer, Committed)
        assert isinstance(self.b.hear(), Start)

    def _train(self, current: flare.ClientRound) -> Local:
        assert current.number == 0 or self._may_go.wait(WAIT_S)
        return add(1)(current)

    def final(self) -> list[float]:
        """Play it to its end with an honest update of b; return the final model."""
        assert isinstance(self.b.hand_in(_file(5), round_number=1), Committed)
        self._may_go.set()
        weights = self.a.result(WAIT_S)["w"].tolist()
        assert [*weights] == [4]  # (1 + 3) / 2 = 2, then (3 + 5) / 2
        self.b.close()
        return [*weights]

    def close(self) -> None:
        self._may_go.set()
        self.b.close()


@pytest.fixture
def game(deployed: Deployment, pool: ThreadPoolExecutor) -> Iterator[_Game]:
    with closing(_Game(deployed, pool)) as game:
        yield game


@pytest.mark.parametrize("same_stream", [False, True])
def test_an_old_rounds_update_that_is_sent_again_counts_nothing(
    *,
    same_stream: bool,
    game: _Game,
    deployed: Deployment,
    beside: Beside,
    undisturbed: str,
) -> None:
    stream = game.stream if same_stream else new_stream()
    game.b.hand_in_at_once(_file(1000), round_number=0, stream=stream)
    _heard_out(game.b)

    assert game.final() == [4]
    if not same_stream:  # else it is known to have arrived
        deployed.audited("refused", what=_LATE, user="b", run="demo", round="0")
    assert beside.blake3() == undisturbed


def test_an_update_that_is_sent_twice_counts_once(
    game: _Game, deployed: Deployment, beside: Beside, undisturbed: str
) -> None:
    assert isinstance(game.b.hand_in(_file(5), round_number=1), Committed)
    game.b.hand_in_at_once(_file(1000), round_number=1)
    _heard_out(game.b)
    game._may_go.set()

    assert game.a.result(WAIT_S)["w"].tolist() == [4]
    deployed.audited("refused", what=_LATE, user="b", run="demo", round="1")
    assert beside.blake3() == undisturbed


@pytest.mark.parametrize("number", [INITIAL, 2, 2**63, -(2**63)])
def test_an_update_of_a_round_that_is_not_played_counts_nothing(
    number: int, game: _Game, deployed: Deployment, beside: Beside, undisturbed: str
) -> None:
    game.b.hand_in_at_once(_file(1000), round_number=number)
    _heard_out(game.b)

    assert game.final() == [4]
    deployed.audited("refused", what=_LATE, user="b", round=str(number))
    assert beside.blake3() == undisturbed


def test_who_joins_late_hands_nothing_in(
    game: _Game, deployed: Deployment, beside: Beside, undisturbed: str
) -> None:
    deployed.member("c")
    with closing(deployed.peer("c")) as c:
        c.say(hello("c"))
        assert isinstance(c.hear(), Aborted)
        c.hand_in_at_once(_file(1000), round_number=1)
        assert isinstance(c.hear(), Again)  # it takes no part

    assert game.final() == [4]
    assert beside.blake3() == undisturbed


def test_a_commit_of_nothing_counts_nothing(
    game: _Game, beside: Beside, undisturbed: str
) -> None:
    for stream in (game.stream, new_stream()):
        game.b.say(Commit(stream=stream, digest=bytes(16)))
    _heard_out(game.b)

    assert game.final() == [4]
    assert beside.blake3() == undisturbed


@pytest.mark.parametrize("num_examples", [0, -1, 2**53, 2**63, 2**64 - 1, -(2**63)])
def test_a_weight_that_is_no_count_is_refused_and_the_run_goes_on(
    num_examples: int,
    game: _Game,
    deployed: Deployment,
    beside: Beside,
    undisturbed: str,
) -> None:
    game.b.hand_in_at_once(_file(9), round_number=1, num_examples=num_examples)
    while not isinstance(answer := game.b.hear(), Refused):
        assert isinstance(answer, Committed)
    game._may_go.set()

    assert game.a.result(WAIT_S)["w"].tolist() == [3]
    deployed.audited("update refused", run="demo", site="b")
    assert beside.blake3() == undisturbed


def test_a_site_that_understood_another_plan_is_refused_and_may_come_again(
    deployed: Deployment, pool: ThreadPoolExecutor, beside: Beside, undisturbed: str
) -> None:
    deployed.member("a")
    deployed.member("b")
    deployed.create("demo", plan(rounds=2))
    with closing(deployed.peer("b")) as other:
        other.say(hello("b"))
        assert isinstance(other.hear(), Welcome)
        other.say(Join(layout=_LAYOUT, plan="f" * 64))
        a = pool.submit(play, deployed.site("a", "demo"), model(0), add(1))

        assert isinstance(refused := other.hear(), Refused)

    assert refused.refusal.reason == "plan"
    line = deployed.audited("update refused", run="demo", site="b")
    assert "site 'b': plan: expected that of the run" in line["why"]
    b = pool.submit(play, deployed.site("b", "demo"), model(0), add(3))
    assert a.result(WAIT_S)["w"].tolist() == b.result(WAIT_S)["w"].tolist() == [4]
    assert beside.blake3() == undisturbed


@pytest.mark.parametrize(
    ("policy", "rule"),
    [
        ({"smallest_cohort": 3}, "smallest_cohort"),
        ({"runs": ["heart-*"]}, "runs"),
        ({"most_rounds": 1}, "most_rounds"),
        ({"tensors": ["!w"]}, "tensors"),
        ({"privacy": "differential"}, "privacy"),
        ({"plans": ["0" * 64]}, "plans"),
        ({"most_bytes": 1}, "most_bytes"),
    ],
)
def test_what_a_sites_own_policy_forbids_is_refused_there_and_noted_at_both_ends(
    *,
    policy: dict[str, object],
    rule: str,
    deployed: Deployment,
    pool: ThreadPoolExecutor,
    beside: Beside,
    undisturbed: str,
) -> None:
    deployed.member("a")
    home = deployed.member("b")
    deployed.create("demo", plan(rounds=2, quorum=1))
    a = pool.submit(play, deployed.site("a", "demo"), model(0), add(1))

    with pytest.raises(flare.PolicyError, match=rule):
        play(deployed.site("b", "demo", policy=policy), model(0), add(3))

    line = deployed.audited("left", run="demo", site="b")
    assert f"own policy does not allow it (policy.{rule})" in line["why"]
    assert any(one.get("rule") == f"policy.{rule}" for one in deployed.audit_of(home))
    assert verify_audit(home).problems == ()
    if rule != "most_bytes":  # known before it joined: the run waits for somebody
        other = deployed.site("b", "demo")
        assert play(other, model(0), add(3))["w"].tolist() == [4]
    assert a.result(WAIT_S)["w"].tolist() == [2 if rule == "most_bytes" else 4]
    assert beside.blake3() == undisturbed


def test_an_offer_of_an_absurd_length_is_refused(
    game: _Game, deployed: Deployment, beside: Beside, undisturbed: str
) -> None:
    game.b.say(Offer(stream=new_stream(), num_bytes=2**61, round_number=1))

    assert isinstance(game.b.hear(), Refused)
    game._may_go.set()
    assert game.a.result(WAIT_S)["w"].tolist() == [3]
    deployed.audited("update refused", run="demo", site="b")
    assert beside.blake3() == undisturbed


def test_a_site_that_comes_and_goes_does_not_fill_the_audit(
    deployed: Deployment, beside: Beside, undisturbed: str
) -> None:
    deployed.member("b")
    deployed.create("demo", plan())
    with closing(deployed.peer("b")) as b:
        for _ in range(100):
            b.join("b", _LAYOUT)
            b.say(_LEAVE)
            b.hear()

    assert beside.blake3() == undisturbed
    lines = [line for line in deployed.audit() if line["run"] == "demo"]
    assert [line["event"] for line in lines].count("joined") == 10
    assert [line["event"] for line in lines].count("left") == 10
    assert max(len(line["why"]) for line in lines if line["event"] == "left") == 2000


def test_what_a_site_says_does_not_reach_a_terminal_as_a_command(
    deployed: Deployment,
) -> None:
    deployed.member("b")
    deployed.create("demo", plan())
    with closing(deployed.peer("b")) as b:
        b.join("b", _LAYOUT)
        b.say(Leave(metrics={}, reason="\x1b[2J\x9b2J\u202eall is\nwell"))
        b.hear()

    deployed.said("demo", "b left: [2J 2J all is well")
