"""What a member may not do is refused, and it is written down."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

import flare_core as flare
from deployed import Beside, Deployment
from flare_core._plan import Plan
from flare_core.communication import (
    Aborted,
    AwaitRuns,
    CreateRun,
    Invite,
    KeyPair,
    ListMembers,
    ListRuns,
    ReadRun,
    Request,
    Revoke,
    Role,
    Rotate,
    ShowRun,
    Status,
    StopRun,
    WhoAmI,
)
from flare_core.management._deployment import MAY
from flare_core.management._deployment._roles import ROLES, act_of
from site_scripts import WAIT_S, add, hello, model, plan, play


def _refused(deployed: Deployment, who: str, request: Request) -> str:
    """Return what somebody is told who asks for what he may not have."""
    with (
        deployed.account(who).control() as control,
        pytest.raises(flare.RequestDeniedError) as denied,
    ):
        control.ask(request, object)
    return str(denied.value)


def test_a_researcher_does_not_invite(
    deployed: Deployment, beside: Beside, undisturbed: str
) -> None:
    deployed.member("rita", role="researcher")

    told = _refused(deployed, "rita", Invite(name="friend", role="admin", valid_s=60))

    assert told == (
        "'rita' is a researcher, and may not invite, revoke and list members: only "
        "admin may"
    )
    what = "may not invite, revoke and list members"
    deployed.audited("refused", what=what, user="rita", role="researcher")
    assert beside.blake3() == undisturbed


def test_an_observer_does_not_stop_a_run(
    deployed: Deployment, beside: Beside, undisturbed: str
) -> None:
    deployed.member("otto", role="observer")

    _refused(deployed, "otto", StopRun(run="beside", reason="because I can"))

    deployed.audited("refused", what="may not create and stop runs", user="otto")
    assert beside.blake3() == undisturbed


def test_a_site_does_not_list_runs(
    deployed: Deployment, beside: Beside, undisturbed: str
) -> None:
    deployed.member("a")

    _refused(deployed, "a", ListRuns())

    deployed.audited("refused", what="may not see runs and their records", user="a")
    assert beside.blake3() == undisturbed


def test_a_site_does_not_speak_for_another_one(
    deployed: Deployment, beside: Beside, undisturbed: str
) -> None:
    deployed.member("eve")
    with closing(deployed.peer("eve")) as eve:
        eve.say(hello("beside.x"))

        answer = eve.hear()

    assert isinstance(answer, Aborted)
    assert "this key is that of site 'eve', and the site file says 'beside.x'" in (
        answer.reason
    )
    what = "takes part as another"
    deployed.audited("refused", what=what, user="eve", claimed="beside.x")
    assert beside.blake3() == undisturbed


def test_a_site_file_with_anothers_name_says_what_is_wrong(
    deployed: Deployment,
) -> None:
    deployed.member("eve")
    deployed.create("demo", plan(sites=1))
    site = deployed.site("eve", "demo", name="beside.x")

    with pytest.raises(flare.RunAbortedError, match="use the site file that"):
        play(site, model(0), add(1))


@pytest.mark.parametrize("role", ["admin", "researcher", "observer"])
def test_who_is_no_site_takes_part_in_no_run(
    role: Role, deployed: Deployment, beside: Beside, undisturbed: str
) -> None:
    deployed.member("else", role=role)
    deployed.create("demo", plan(sites=1))

    with pytest.raises(flare.RunAbortedError, match="takes part in no run"):
        play(deployed.site("else", "demo"), model(0), add(1))

    deployed.audited("refused", what="may not take part in runs", user="else")
    assert beside.blake3() == undisturbed


_KEY = KeyPair.new().public.decode()
_ASKED: tuple[Request, ...] = (
    AwaitRuns(known=["nothing"]),
    CreateRun(name="demo", plan=Plan(rounds=1)),
    Invite(name="friend", role="site", valid_s=60),
    ListMembers(),
    ListRuns(),
    ReadRun(run="beside", file="plan.toml"),
    ReadRun(run="beside", file="global.safetensors"),
    Revoke(name="friend"),
    Rotate(key=_KEY),
    ShowRun(run="beside"),
    Status(),
    StopRun(run="demo", reason="the test is over"),
    WhoAmI(),
)


@pytest.mark.parametrize("role", ROLES)
def test_a_role_may_do_what_the_table_says_and_nothing_else(
    role: Role, deployed: Deployment, beside: Beside, undisturbed: str
) -> None:
    deployed.member("someone", role=role)
    deployed.invitation("friend")

    with deployed.account("someone").control() as control:
        for request in _ASKED:
            act = act_of(request)
            assert act is not None
            try:
                control.ask(request, object)
            except flare.RequestDeniedError as exc:
                may = " may not " not in str(exc)  # what is done may still be denied
            else:
                may = True

            assert may is (role in MAY[act]), request

    assert beside.blake3() == undisturbed


@pytest.mark.parametrize("request_", _ASKED, ids=lambda one: type(one).__name__)
def test_an_invitation_is_good_for_enrolling_and_for_nothing_else(
    request_: Request, deployed: Deployment
) -> None:
    with (
        deployed.invited(deployed.invitation("a")) as control,
        pytest.raises(flare.RequestDeniedError) as denied,
    ):
        control.ask(request_, object)

    assert "is the holder of an invitation, and may not" in str(denied.value)
    act = act_of(request_)
    deployed.audited("refused", what=f"may not {act}", role="")


def test_the_holder_of_an_invitation_takes_part_in_no_run(
    deployed: Deployment, beside: Beside, undisturbed: str
) -> None:
    invitation = deployed.invitation("a")
    deployed.create("demo", plan(sites=1))
    with closing(deployed.invited_peer(invitation)) as peer:
        peer.say(hello("a"))

        answer = peer.hear()

    assert isinstance(answer, Aborted)
    assert "is not enrolled here, and takes part in no run" in answer.reason
    deployed.audited("refused", what="may not take part in runs", claimed="a")
    assert beside.blake3() == undisturbed


def test_what_is_no_message_is_noted_and_the_next_one_is_heard(
    deployed: Deployment, beside: Beside, undisturbed: str
) -> None:
    deployed.member("a")
    with closing(deployed.peer("a")) as peer:
        peer.say(b"\xc1 is nothing in msgpack")
        peer.say(hello("a"))

        assert isinstance(peer.hear(), Aborted)  # no run awaits it

    deployed.audited("refused", what="no message", user="a")
    assert beside.blake3() == undisturbed


def test_a_record_that_is_gone_is_denied_to_who_waits_for_more_of_it(
    deployed: Deployment, pool: ThreadPoolExecutor, beside: Beside, undisturbed: str
) -> None:
    deployed.create("demo", plan(sites=1))
    deployed.member("otto", role="observer")
    record = deployed.folder.runs / "demo" / "progress.log"
    size = record.stat().st_size
    wait = ReadRun(run="demo", file="progress.log", offset=size, wait=True)
    with deployed.account("otto").control() as control:
        waiting = pool.submit(control.ask, wait, object, wait_s=WAIT_S)
        deployed.info("demo")  # asked after it
        record.unlink()
        deployed.create("other", plan(sites=1))  # there may be news for who waits

        error = waiting.exception(WAIT_S)

    assert isinstance(error, flare.RequestDeniedError)
    assert beside.blake3() == undisturbed
