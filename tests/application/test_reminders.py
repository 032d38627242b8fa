"""What is lost on a connection that holds, and a server that stays away."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

import flare_core as flare
from flare_core.communication import (
    Bye,
    Courier,
    Hello,
    Join,
    Leave,
    Start,
    Welcome,
    ZmqRouter,
    _courier,
    decode_to_server,
    encode,
)
from site_scripts import WAIT_S, plan, stream_id

_SOON_S = 0.05
_JOIN = Join(layout=flare.Layout(()), plan="")


@pytest.fixture
def router() -> Iterator[ZmqRouter]:
    """The socket of a server that answers what the test has it answer."""
    with ZmqRouter("tcp://127.0.0.1:0") as router:
        yield router


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """A thread for the site."""
    with ThreadPoolExecutor(1) as pool:
        yield pool


def _hears(router: ZmqRouter, kind: type[Hello | Join | Leave]) -> bytes:
    """Wait for a sentence of a kind; return whose it is."""
    while True:
        received = router.receive(timeout_s=WAIT_S)
        assert received is not None
        if isinstance(decode_to_server(received.frames), kind):
            return received.peer


def _courier_to(router: ZmqRouter, *, patience_s: float) -> tuple[Courier, Hello]:
    hello = Hello(site="a", session=stream_id())
    return Courier(router.endpoint, hello, patience_s=patience_s), hello


def test_a_request_that_was_lost_is_said_again(
    router: ZmqRouter, pool: ThreadPoolExecutor
) -> None:
    courier, hello = _courier_to(router, patience_s=WAIT_S)
    with closing(courier):
        greeting = pool.submit(courier.ask, hello, Welcome)
        peer = _hears(router, Hello)
        welcome = Welcome(plan=plan(), run="demo", ping_s=_SOON_S)
        router.send(peer, encode(welcome))
        greeting.result(WAIT_S)

        joining = pool.submit(courier.ask, _JOIN, Start)
        for _ in range(3):  # as if the first two had been lost
            peer = _hears(router, Join)
        start = Start(round_number=0, stream=bytes(16), num_bytes=0)
        router.send(peer, encode(start))

        assert joining.result(WAIT_S) == start


def test_a_server_that_was_met_is_waited_for_longer_than_one_that_never_was(
    router: ZmqRouter, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_courier, "_FIRST_PATIENCE_S", 0.2)
    hello = Hello(site="a", session=stream_id())
    never = Courier("tcp://127.0.0.1:9", hello, patience_s=WAIT_S)  # nobody is there
    with closing(never), pytest.raises(flare.ServerUnreachableError, match=r"0\.2 s"):
        never.ask(hello, Welcome)

    met, hello = _courier_to(router, patience_s=1.0)
    with closing(met):
        greeting = pool.submit(met.ask, hello, Welcome)
        peer = _hears(router, Hello)
        router.send(peer, encode(Welcome(plan=plan(), run="demo")))
        greeting.result(WAIT_S)
        with pytest.raises(flare.ServerUnreachableError, match="waited 1 s"):
            met.ask(Leave(metrics={}), Bye)
