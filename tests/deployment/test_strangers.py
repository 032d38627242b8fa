"""Who has no key, or not the right one, gets nowhere, and it is written down."""

import secrets
import socket
from contextlib import closing, suppress

import pytest

import flare_core as flare
from deployed import Beside, Deployment
from flare_core.communication import (
    Control,
    Hello,
    Identity,
    KeyPair,
    Secured,
    Status,
    WhoAmI,
)
from flare_core.management._enrolment import accept_invitation
from proxy import Proxy
from site_scripts import WAIT_S, Stranger, hello

_GREETING, _HELLO, _WELCOME = 64, 202, 170
"""Bytes of ZMTP 3.1 (RFC 37) and CURVE (RFC 26)."""
_ENDED = "ended before it said anything"


def _port(deployed: Deployment) -> tuple[str, int]:
    return "127.0.0.1", int(deployed.endpoint.rpartition(":")[2])


def _all_of(raw: socket.socket) -> bytes:
    """Return what a server says until it hangs up."""
    raw.settimeout(WAIT_S)
    said = b""
    try:
        while piece := raw.recv(1 << 16):
            said += piece
    except ConnectionResetError:
        pass
    return said


def test_who_has_no_key_is_not_heard(
    deployed: Deployment, beside: Beside, undisturbed: str
) -> None:
    with closing(Stranger(deployed.endpoint)) as stranger:
        stranger.say(hello("beside.x"))

        assert stranger.is_cut_off()

    deployed.audited("refused", what=_ENDED, user="")
    assert beside.blake3() == undisturbed


def test_a_key_that_nobody_knows_is_denied(
    deployed: Deployment, beside: Beside, undisturbed: str
) -> None:
    keys = KeyPair.new()
    secured = Secured(keys, deployed.server_key())
    with (
        Control(deployed.endpoint, name="mallory", secured=secured) as control,
        pytest.raises(flare.AccessDeniedError, match="mallory"),
    ):
        control.ask(Status(), object)

    deployed.audited("refused", what="unknown key", key=keys.public.decode())
    assert beside.blake3() == undisturbed


def test_who_does_not_know_the_servers_key_is_not_heard(
    deployed: Deployment, beside: Beside, undisturbed: str
) -> None:
    deployed.member("a")
    secured = Secured(deployed.account("a").secured.keys, KeyPair.new().public)
    with closing(Stranger(deployed.endpoint, secured=secured)) as stranger:
        stranger.say(hello("a"))

        assert stranger.is_cut_off()
        assert not stranger.denied

    deployed.audited("refused", what=_ENDED, user="")
    assert beside.blake3() == undisturbed


@pytest.mark.parametrize(
    "garbage", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 9 + b"\x7f" + b"\0" * 54]
)
def test_who_speaks_no_zeromq_is_not_heard(
    garbage: bytes, deployed: Deployment, beside: Beside, undisturbed: str
) -> None:
    with socket.create_connection(_port(deployed)) as raw:
        raw.sendall(garbage)
        with suppress(OSError):  # the server was faster
            raw.shutdown(socket.SHUT_WR)
        _all_of(raw)

    deployed.audited("refused", what=_ENDED, user="")
    assert beside.blake3() == undisturbed


def test_a_conversation_that_was_listened_to_opens_nothing_when_it_is_said_again(
    deployed: Deployment, beside: Beside, undisturbed: str
) -> None:
    deployed.member("a")
    with Proxy(deployed.endpoint) as proxy:
        secured = deployed.account("a").secured
        with Control(proxy.endpoint, name="a", secured=secured) as control:
            assert control.ask(WhoAmI(), Identity).name == "a"
        recorded = proxy.said
    assert len(recorded) > 500  # greeting, hello, initiate, and the request

    with socket.create_connection(_port(deployed)) as raw:
        raw.sendall(recorded[:_GREETING])
        raw.recv(_GREETING, socket.MSG_WAITALL)
        raw.sendall(recorded[_GREETING : _GREETING + _HELLO])
        welcome = raw.recv(_WELCOME, socket.MSG_WAITALL)
        raw.sendall(recorded[_GREETING + _HELLO :])
        rest = _all_of(raw)

    assert b"WELCOME" in welcome
    assert rest == b""  # no READY: the server's answer has another short-term key
    deployed.audited("refused", what=_ENDED, user="")
    assert beside.blake3() == undisturbed


def test_the_same_refusal_again_and_again_is_counted_and_not_written(
    deployed: Deployment,
) -> None:
    for _ in range(50):
        secured = Secured(KeyPair.new(), deployed.server_key())
        with (
            Control(deployed.endpoint, name="m", secured=secured) as control,
            pytest.raises(flare.AccessDeniedError),
        ):
            control.ask(Status(), object)
    deployed.close()

    lines = [e for e in deployed.audit() if e.get("what") == "unknown key"]
    assert [line["event"] for line in lines] == ["refused"] * 10 + ["repeated"]
    assert lines[-1]["times"] == 40


def test_a_site_does_not_learn_the_names_of_runs_that_do_not_await_it(
    deployed: Deployment, beside: Beside, undisturbed: str
) -> None:
    deployed.member("a")
    with closing(deployed.peer("a")) as peer:
        peer.say(Hello(site="a", session=secrets.token_bytes(16), run="secret-*"))

        answer = peer.hear()

    assert "none of this server's" in str(answer)
    assert "beside" not in str(answer)
    assert beside.blake3() == undisturbed


def test_a_folder_that_has_a_member_takes_no_second_one(deployed: Deployment) -> None:
    home = deployed.member("a")

    with pytest.raises(flare.ConfigurationError, match="there is a member in this"):
        accept_invitation(deployed.invitation("b"), home)
