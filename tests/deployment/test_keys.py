"""A key that is changed, or taken away."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

import flare_core as flare
from deployed import Beside, Deployment, deployment
from flare_core.communication import (
    Done,
    Identity,
    KeyPair,
    ListMembers,
    Member,
    Rotate,
    WhoAmI,
)
from flare_core.management._account import Account
from flare_core.management._enrolment import accept_invitation, rotate_key
from proxy import Proxy
from site_scripts import WAIT_S, Local, add, hello, model, plan, play

_ME = Identity(name="a", role="site")


def _whoami(account: Account) -> Identity:
    with account.control() as control:
        return control.ask(WhoAmI(), Identity)


def _whoami_until_denied(account: Account) -> None:
    while True:
        _whoami(account)


def test_a_changed_key_opens_at_once_and_the_one_before_for_a_while(
    deployed: Deployment,
) -> None:
    home = deployed.member("a")
    before = deployed.account("a")

    rotate_key(home)

    after = deployed.account("a")
    assert after.secured.keys != before.secured.keys
    assert _whoami(after) == _ME
    assert _whoami(before) == _ME
    deployed.audited("key changed", user="a", key=after.secured.keys.public.decode())


def test_a_key_that_was_changed_is_denied_when_its_time_is_over() -> None:
    with deployment(old_key_s=0.2) as deployed:
        home = deployed.member("a")
        before = deployed.account("a")
        rotate_key(home)

        with pytest.raises(flare.AccessDeniedError):
            _whoami_until_denied(before)

        deployed.audited("refused", what="expired key of a")
        assert _whoami(deployed.account("a")) == _ME


def test_a_key_changed_in_the_middle_of_a_run_loses_nothing(
    deployed: Deployment, pool: ThreadPoolExecutor
) -> None:
    """The running site goes on under the old key, even over a new connection."""
    home = deployed.member("a")
    deployed.member("b")
    deployed.create("demo", plan(rounds=3))
    with Proxy(deployed.endpoint) as proxy:

        def train(current: flare.ClientRound) -> Local:
            if current.number == 1:
                rotate_key(home)
                proxy.cut("up", 0)
            return add(1)(current)

        site = deployed.site("a", "demo", server=proxy.endpoint)
        a = pool.submit(play, site, model(0), train)
        b = pool.submit(play, deployed.site("b", "demo"), model(0), add(3))

        assert a.result(WAIT_S)["w"].tolist() == b.result(WAIT_S)["w"].tolist() == [6]
        assert proxy.num_cuts == 1
    assert deployed.ended("demo").state == "finished"
    deployed.audited("key changed", user="a")


def test_a_run_that_lasts_longer_than_the_old_key_goes_on_under_the_new_one(
    pool: ThreadPoolExecutor,
) -> None:
    with deployment(old_key_s=1e-3) as deployed, Proxy(deployed.endpoint) as proxy:
        home = deployed.member("a")
        deployed.create("demo", plan(rounds=2, sites=1))

        def train(current: flare.ClientRound) -> Local:
            if current.number == 1:
                rotate_key(home)
                proxy.cut("up", 0)
            return add(1)(current)

        site = deployed.site("a", "demo", server=proxy.endpoint)
        a = pool.submit(play, site, model(0), train)

        assert a.result(WAIT_S)["w"].tolist() == [2]
        deployed.audited("refused", what="expired key of a")
        assert deployed.ended("demo").state == "finished"


def test_a_member_has_a_few_keys_at_a_time_and_no_more(deployed: Deployment) -> None:
    deployed.member("a")
    with deployed.account("a").control() as control:
        for _ in range(7):
            control.ask(Rotate(key=KeyPair.new().public.decode()), Done)

        with pytest.raises(flare.RequestDeniedError, match="has 8 keys that hold"):
            control.ask(Rotate(key=KeyPair.new().public.decode()), Done)

    deployed.audited("refused", what="change one's own key", user="a")
    with deployed.admin() as admin:
        members = admin.ask(ListMembers(), list[Member])
    assert [len(one.keys) for one in members if one.name == "a"] == [8]


def test_nobody_takes_the_key_of_another_member(deployed: Deployment) -> None:
    deployed.member("a")
    deployed.member("eve")
    theirs = deployed.account("a").secured.keys.public.decode()

    with (
        deployed.account("eve").control() as eve,
        pytest.raises(flare.RequestDeniedError, match="or is known"),
    ):
        eve.ask(Rotate(key=theirs), Done)

    deployed.audited("refused", what="change one's own key", user="eve")
    assert _whoami(deployed.account("a")) == _ME


def test_a_revoked_key_does_not_come_in_again(
    deployed: Deployment, beside: Beside, undisturbed: str
) -> None:
    deployed.member("a")
    deployed.revoke("a")

    with pytest.raises(flare.AccessDeniedError):
        _whoami(deployed.account("a"))

    deployed.audited("refused", what="revoked key of a")
    assert beside.blake3() == undisturbed


def test_a_revoked_key_is_cut_off_at_once(
    deployed: Deployment, beside: Beside, undisturbed: str
) -> None:
    deployed.member("a")
    with closing(deployed.peer("a")) as peer:
        peer.say(hello("a"))
        peer.hear()

        deployed.revoke("a")

        assert peer.is_cut_off()
    deployed.audited("revoked", user="admin", name="a")
    assert beside.blake3() == undisturbed


def test_who_is_invited_again_after_a_revocation_needs_another_key(
    deployed: Deployment,
) -> None:
    home = deployed.member("a")
    deployed.revoke("a")
    (home / "site.toml").unlink()  # but keeps the key

    with pytest.raises(flare.RequestDeniedError, match="move the file of the secret"):
        accept_invitation(deployed.invitation("a"), home)

    fresh = deployed.path / "fresh"
    assert accept_invitation(deployed.invitation("a"), fresh)[1] == _ME


@pytest.mark.parametrize("waits", [True, False], ids=["waiting", "training"])
def test_a_site_that_is_revoked_in_a_round_learns_it_and_the_run_goes_on(
    *,
    waits: bool,
    deployed: Deployment,
    pool: ThreadPoolExecutor,
    beside: Beside,
    undisturbed: str,
) -> None:
    deployed.member("a")
    deployed.member("b")
    deployed.create("demo", plan(rounds=3, quorum=1))
    a_may_go, b_may_go = threading.Event(), threading.Event()
    b_is_there = threading.Event()

    def at_a(current: flare.ClientRound) -> Local:
        assert current.number == 0 or a_may_go.wait(WAIT_S)
        return add(1)(current)

    def at_b(current: flare.ClientRound) -> Local:
        if current.number == 1:
            b_is_there.set()
            assert waits or b_may_go.wait(WAIT_S)
        return add(3)(current)

    a = pool.submit(play, deployed.site("a", "demo"), model(0), at_a)
    b = pool.submit(play, deployed.site("b", "demo"), model(0), at_b)
    assert b_is_there.wait(WAIT_S)
    if waits:
        deployed.said("demo", "b round 1")
    began = time.monotonic()
    deployed.revoke("b")
    b_may_go.set()

    error = b.exception(WAIT_S)

    assert isinstance(error, flare.AccessDeniedError)
    assert "'b'" in str(error)
    assert time.monotonic() - began < 5
    a_may_go.set()
    # round 0: (1 + 3) / 2; round 1: the update of b counts if it was in; round 2: a's
    assert a.result(WAIT_S)["w"].tolist() == [5 if waits else 4]
    assert deployed.ended("demo").state == "finished"
    deployed.audited("revoked", name="b")
    deployed.audited("left", site="b", why="its key was revoked")
    assert beside.blake3() == undisturbed


def test_a_run_that_needs_a_site_that_is_revoked_says_so(
    deployed: Deployment, pool: ThreadPoolExecutor, beside: Beside, undisturbed: str
) -> None:
    deployed.member("a")
    deployed.member("b")
    deployed.create("demo", plan(rounds=3))
    there = threading.Barrier(3)

    def train(current: flare.ClientRound) -> Local:
        if current.number == 1:
            there.wait(WAIT_S)
            there.wait(WAIT_S)
        return add(1)(current)

    sites = {
        name: pool.submit(play, deployed.site(name, "demo"), model(0), train)
        for name in "ab"
    }
    there.wait(WAIT_S)
    deployed.revoke("b")
    there.wait(WAIT_S)

    assert isinstance(sites["b"].exception(WAIT_S), flare.AccessDeniedError)
    deployed.said("demo", "1 of these must come back: b (its key was revoked)")
    info = deployed.info("demo")
    assert info.state == "paused"
    assert "b (its key was revoked)" in info.error
    deployed.end("demo")
    assert isinstance(sites["a"].exception(WAIT_S), flare.RunAbortedError)
    assert beside.blake3() == undisturbed
