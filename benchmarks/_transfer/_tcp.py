"""A TCP connection and nothing else: the limit."""

import os
import socket
import struct
import tempfile
from multiprocessing.connection import Connection
from typing import final

import numpy as np

_ORDER = struct.Struct("<cQ")
_PIECE_BYTES = 1 << 20


def serve(pipe: Connection) -> None:
    """Send and receive what the client asks for, until it hangs up."""
    _serve(pipe, None)


def serve_file(pipe: Connection) -> None:
    """Do the same, and receive into a file, whose room is taken already."""
    with tempfile.TemporaryFile() as file:
        _serve(pipe, file.fileno())


def _serve(pipe: Connection, fd: int | None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        pipe.send(listening.getsockname()[1])
        connection, _ = listening.accept()
    memory = memoryview(bytearray(0))
    with connection:
        while order := connection.recv(_ORDER.size, socket.MSG_WAITALL):
            verb, num_bytes = _ORDER.unpack(order)
            if len(memory) != num_bytes:
                memory = memoryview(np.ones(num_bytes, np.uint8).data)
                if fd is not None:
                    os.posix_fallocate(fd, 0, num_bytes)
            if verb == b"u":
                _receive(connection, memory, fd)
                connection.sendall(b"!")
            else:
                connection.sendall(memory)


@final
class Client:
    """Uploads from memory and downloads to it.

    Args:
        address: The server's port.
    """

    def __init__(self, address: int) -> None:
        self._connection = socket.create_connection(("127.0.0.1", address))

    def upload(self, memory: memoryview) -> None:
        """Send the bytes, and wait until they are there."""
        self._connection.sendall(_ORDER.pack(b"u", len(memory)))
        self._connection.sendall(memory)
        self._connection.recv(1)

    def download(self, memory: memoryview) -> None:
        """Fill the memory."""
        self._connection.sendall(_ORDER.pack(b"d", len(memory)))
        _receive(self._connection, memory)

    def close(self) -> None:
        """Hang up."""
        self._connection.close()


def _receive(
    connection: socket.socket, memory: memoryview, fd: int | None = None
) -> None:
    position = 0
    while position < len(memory):
        piece = memory[position : position + _PIECE_BYTES]
        if fd is None:
            position += connection.recv_into(piece)
        else:  # through the beginning of the memory, which stays in the cache
            size = connection.recv_into(memory[: len(piece)])
            position += os.pwrite(fd, memory[:size], position)
