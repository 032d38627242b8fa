"""Chunks of 2 MiB over ZeroMQ and nothing else, bare and under CURVE: its limits."""

from multiprocessing.connection import Connection
from typing import Any, final

import numpy as np
import zmq

from flare_core.communication import CHUNK_BYTES, WINDOW
from flare_core.communication._malloc import keep_memory

_QUEUE = 2 * WINDOW


def serve(pipe: Connection) -> None:
    """Send and receive what the client asks for, until it says nothing."""
    _serve(pipe, b"", b"")


def serve_secured(pipe: Connection) -> None:
    """Do the same under CURVE."""
    _serve(pipe, *zmq.curve_keypair())


def _serve(pipe: Connection, public: bytes, secret: bytes) -> None:
    keep_memory()
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.linger = 0
        router.router_mandatory = True  # waits at the limit of its queue
        if secret:
            router.curve_server = True
            router.curve_secretkey = secret
        router.sndhwm = router.rcvhwm = _QUEUE
        router.bind("tcp://127.0.0.1:0")
        pipe.send((router.getsockopt_string(zmq.LAST_ENDPOINT), public))
        memory = memoryview(bytearray(0))
        while True:
            peer, verb, size = router.recv_multipart()
            num_bytes = int(size)
            if len(memory) != num_bytes:
                memory = memoryview(np.ones(num_bytes, np.uint8).data)
            if verb == b"upload":
                _receive(router, memory)
                router.send_multipart([peer, b"!"])
            elif verb == b"download":
                _send(router, memory, peer)
            else:
                return


@final
class Client:
    """Uploads from memory and downloads to it.

    Args:
        address: The server's endpoint, and its public key if it has one.
    """

    def __init__(self, address: tuple[str, bytes]) -> None:
        endpoint, server_key = address
        keep_memory()
        self._context: zmq.Context[Any] = zmq.Context()
        self._dealer = self._context.socket(zmq.DEALER)
        self._dealer.linger = 1000
        if server_key:
            public, secret = zmq.curve_keypair()
            self._dealer.curve_serverkey = server_key
            self._dealer.curve_publickey = public
            self._dealer.curve_secretkey = secret
        self._dealer.sndhwm = self._dealer.rcvhwm = _QUEUE
        self._dealer.connect(endpoint)

    def upload(self, memory: memoryview) -> None:
        """Send the bytes, and wait until they are there."""
        self._dealer.send_multipart([b"upload", b"%d" % len(memory)])
        _send(self._dealer, memory)
        self._dealer.recv()

    def download(self, memory: memoryview) -> None:
        """Fill the memory."""
        self._dealer.send_multipart([b"download", b"%d" % len(memory)])
        _receive(self._dealer, memory)

    def close(self) -> None:
        """Say that there is nothing more."""
        self._dealer.send_multipart([b"over", b"0"])
        self._dealer.close()
        self._context.term()


def _send(socket: Any, memory: memoryview, *route: bytes) -> None:
    for start in range(0, len(memory), CHUNK_BYTES):
        chunk = memory[start : start + CHUNK_BYTES]
        socket.send_multipart([*route, chunk], copy=False)


def _receive(socket: Any, memory: memoryview) -> None:
    position = 0
    while position < len(memory):
        chunk = socket.recv_multipart(copy=False)[-1].buffer
        memory[position : position + len(chunk)] = chunk
        position += len(chunk)
