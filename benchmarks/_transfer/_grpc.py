"""gRPC streams of bytes without TLS, as federated frameworks use them."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import final

import grpc
import numpy as np

_PIECE_BYTES = 4 << 20
"""Its fastest; the default limit of a message is just above."""
_OPTIONS = [("grpc.max_receive_message_length", _PIECE_BYTES + 4096)]


def serve(pipe: Connection) -> None:
    """Answer calls until the pipe is closed."""
    server = grpc.server(ThreadPoolExecutor(1), options=_OPTIONS)
    server.add_generic_rpc_handlers([_Handlers()])
    pipe.send(server.add_insecure_port("127.0.0.1:0"))
    server.start()
    try:
        pipe.recv()
    except EOFError:
        server.stop(0)


@final
class _Handlers(grpc.GenericRpcHandler):
    def __init__(self) -> None:
        self._memory = memoryview(bytearray(0))

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler:
        if handler_call_details.method == "/transfer/upload":
            return grpc.stream_unary_rpc_method_handler(self._upload)
        return grpc.unary_stream_rpc_method_handler(self._download)

    def _upload(self, pieces: Iterator[bytes], _: object) -> bytes:
        position = 0
        for piece in pieces:
            if not position:
                self._fit(int.from_bytes(piece, "little"))
                position = 8
                continue
            self._memory[position - 8 : position - 8 + len(piece)] = piece
            position += len(piece)
        return b"!"

    def _download(self, order: bytes, _: object) -> Iterator[bytes]:
        self._fit(int.from_bytes(order, "little"))
        yield from _pieces(self._memory)

    def _fit(self, num_bytes: int) -> None:
        if len(self._memory) != num_bytes:
            self._memory = memoryview(np.ones(num_bytes, np.uint8).data)


@final
class Client:
    """Uploads from memory and downloads to it.

    Args:
        address: The server's port.
    """

    def __init__(self, address: int) -> None:
        self._channel = grpc.insecure_channel(f"127.0.0.1:{address}", options=_OPTIONS)
        self._upload = self._channel.stream_unary("/transfer/upload")
        self._download = self._channel.unary_stream("/transfer/download")

    def upload(self, memory: memoryview) -> None:
        """Send the bytes, and wait until they are there."""

        def pieces() -> Iterator[bytes]:
            yield len(memory).to_bytes(8, "little")
            yield from _pieces(memory)

        self._upload(pieces())

    def download(self, memory: memoryview) -> None:
        """Fill the memory."""
        position = 0
        for piece in self._download(len(memory).to_bytes(8, "little")):
            memory[position : position + len(piece)] = piece
            position += len(piece)

    def close(self) -> None:
        """Hang up."""
        self._channel.close()


def _pieces(memory: memoryview) -> Iterator[bytes]:
    for start in range(0, len(memory), _PIECE_BYTES):
        yield bytes(memory[start : start + _PIECE_BYTES])
