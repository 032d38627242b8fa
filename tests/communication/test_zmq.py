import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from flare_core import ConfigurationError
from flare_core.communication import CHUNK_BYTES, ZmqDealer, ZmqRouter

ANY_PORT = "tcp://127.0.0.1:0"


def test_server_and_sites_exchange_frames() -> None:
    with ZmqRouter(ANY_PORT) as server:
        first, second = ZmqDealer(server.endpoint), ZmqDealer(server.endpoint)
        first.send([b"first", b"", b"\0" * 1_000_000])
        one = server.receive(timeout_s=5)
        second.send([b"second"])
        other = server.receive(timeout_s=5)
        assert one is not None
        assert other is not None

        assert server.send(one.peer, [b"to the first"])
        assert server.send(other.peer, [b"to the second", b""])

        assert one.frames == [b"first", b"", b"\0" * 1_000_000]
        assert other.frames == [b"second"]
        assert first.receive(timeout_s=5) == [b"to the first"]
        assert second.receive(timeout_s=5) == [b"to the second", b""]
        first.close()
        second.close()


def test_a_port_is_never_had_twice() -> None:
    with (
        ZmqRouter(ANY_PORT) as server,
        pytest.raises(ConfigurationError, match="is another server running there"),
    ):
        ZmqRouter(server.endpoint)


@pytest.mark.parametrize("address", ["", "tcp://", "nonsense", "tcp://host:x"])
def test_what_is_no_address_is_said_to_be_none(address: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot connect"):
        ZmqDealer(address)
    with pytest.raises(ConfigurationError, match="cannot listen"):
        ZmqRouter(address)


def test_nothing_is_received_when_nothing_comes() -> None:
    with ZmqRouter(ANY_PORT) as server:
        site = ZmqDealer(server.endpoint)

        assert server.receive(timeout_s=0) is None
        assert site.receive(timeout_s=0.01) is None
        site.close()


def test_waking_ends_the_wait() -> None:
    with ZmqRouter(ANY_PORT) as server:
        waker = threading.Thread(target=server.wake)
        waker.start()

        assert server.receive(timeout_s=20) is None
        waker.join()


def test_waking_a_site_ends_its_wait_with_a_connection_and_without() -> None:
    with ZmqRouter(ANY_PORT) as server:
        site = ZmqDealer(server.endpoint)
        for _ in range(2):
            waker = threading.Thread(target=site.wake)
            waker.start()

            assert site.receive(timeout_s=20) is None
            waker.join()
            site.disconnect()
        site.close()


def test_waking_a_closed_socket_wakes_nobody_else() -> None:
    closed = ZmqRouter(ANY_PORT)
    closed.close()
    with ZmqRouter(ANY_PORT) as server:  # may get the descriptors that are free now
        site = ZmqDealer(server.endpoint)
        site.send([b"hello"])

        closed.wake()

        received = server.receive(timeout_s=5)
        assert received is not None
        assert received.frames == [b"hello"]
        site.close()


def test_a_peer_that_was_never_there_gets_nothing() -> None:
    with ZmqRouter(ANY_PORT) as server:
        assert not server.send(b"nobody", [b"hello"])


def test_a_chunk_gets_through_whole() -> None:
    with ZmqRouter(ANY_PORT) as server:
        site = ZmqDealer(server.endpoint)
        chunk = [bytes(25), b"\1" * CHUNK_BYTES]

        site.send(chunk)

        received = server.receive(timeout_s=5)
        assert received is not None
        assert received.frames == chunk
        site.close()


def test_what_is_longer_than_a_chunk_ends_its_connection_and_no_other() -> None:
    with ZmqRouter(ANY_PORT) as server:
        site, greedy = ZmqDealer(server.endpoint), ZmqDealer(server.endpoint)

        greedy.send([bytes(2 * CHUNK_BYTES)])

        assert greedy.receive(timeout_s=5) is None
        assert greedy.broken
        site.send([b"hello"])
        received = server.receive(timeout_s=5)
        assert received is not None
        assert received.frames == [b"hello"]
        greedy.close(abandon=True)
        site.close()


def test_a_site_that_does_not_read_does_not_stop_the_server() -> None:
    with ZmqRouter(ANY_PORT) as server:
        site = ZmqDealer(server.endpoint)
        site.send([b"hello"])
        received = server.receive(timeout_s=5)
        assert received is not None
        message = bytes(1 << 16)

        assert all(server.send(received.peer, [message]) for _ in range(5000))

        site.close()


def test_a_broken_connection_is_noticed_and_a_new_one_can_be_made(
    tmp_path: Path,
) -> None:
    address = f"ipc://{tmp_path}/s"
    with ZmqRouter(address) as server:
        site = ZmqDealer(address)
        site.send([b"before"])
        assert server.receive(timeout_s=5) is not None
        assert not site.broken

    assert site.receive(timeout_s=5) is None
    assert site.broken
    site.disconnect()
    assert not site.connected
    site.send([b"meanwhile"])  # to nobody
    assert site.receive(timeout_s=0) is None
    with ZmqRouter(address) as server:
        site.connect()
        site.send([b"after"])

        received = server.receive(timeout_s=5)

        assert received is not None
        assert received.frames == [b"after"]
        assert not site.broken
        site.close()


def test_the_last_word_of_a_server_is_heard_before_the_break() -> None:
    with ZmqRouter(ANY_PORT) as server:
        site = ZmqDealer(server.endpoint)
        site.send([b"hello"])
        received = server.receive(timeout_s=5)
        assert received is not None
        site.wake()
        assert site.receive(timeout_s=5) is None
        server.send(received.peer, [b"the last word"])

    assert not any(site.broken for _ in range(10_000))  # while both arrive
    assert site.receive(timeout_s=5) == [b"the last word"]
    assert site.receive(timeout_s=5) is None
    assert site.broken
    assert site.receive() is None  # and does not wait for more
    site.close()


def test_garbage_bytes_are_no_message() -> None:
    with ZmqRouter(ANY_PORT) as server:
        port = int(server.endpoint.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n" + b"\0" * 100)
            assert stranger.recv(1) != b""  # its greeting, before it hangs up
        site = ZmqDealer(server.endpoint)
        site.send([b"hello"])

        received = server.receive(timeout_s=5)

        assert received is not None
        assert received.frames == [b"hello"]
        site.close()


def test_closing_sends_what_is_left() -> None:
    with ZmqRouter(ANY_PORT) as server:
        site = ZmqDealer(server.endpoint)
        site.send([b"to whom it may concern"])  # there is no connection yet
        site.close()

        received = server.receive(timeout_s=5)

    assert received is not None
    assert received.frames == [b"to whom it may concern"]


def test_a_server_that_is_not_there_is_a_break_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    site = ZmqDealer(f"tcp://127.0.0.1:{port}")

    assert site.receive(timeout_s=20) is None
    assert site.broken
    site.close(abandon=True)


def test_abandoning_waits_for_nobody() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, says nothing
        site = ZmqDealer(f"tcp://127.0.0.1:{silent.getsockname()[1]}")
        site.send([b"hello"])
        closing = threading.Thread(target=site.close, kwargs={"abandon": True})
        closing.start()

        closing.join(1.5)

        assert not closing.is_alive()


_FORGETFUL = """
import gc
from flare_core.communication import ZmqDealer, ZmqRouter

server = ZmqRouter("tcp://127.0.0.1:0")
site = ZmqDealer("tcp://127.0.0.1:9")
site.send([b"to nobody"])
server.itself, site.itself = server, site  # as in a traceback, or a server's methods
del server, site
gc.collect()
"""


def test_sockets_that_nobody_closed_do_not_hang_the_collection_of_garbage() -> None:
    program = [sys.executable, "-W", "error", "-c", _FORGETFUL]

    ended = subprocess.run(program, timeout=20, capture_output=True, check=False)

    assert (ended.returncode, ended.stderr) == (0, b"")
