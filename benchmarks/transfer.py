"""A model between two processes: raw TCP, gRPC, and our streams, bare and under CURVE.

    python benchmarks/transfer.py [--quick] [--json FILE]

A client uploads from its memory and waits until the server has it; a download fills the
client's memory.  Our server receives into a file, as it does in a run, and hashes what
it gets; the others receive into memory that is there already, but for a TCP connection
that writes to a file too.  Extra memory is the peak over what each process had before
its first transfer, without the model itself.  All ways take turns, so that what else
the machine does meets all of them.
"""

import multiprocessing
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
import typer
from _memory import Watched, anonymous_mb
from _report import JsonFile, Quick, Report

_WAYS = {
    "raw TCP": ("_tcp", "serve"),
    "raw TCP into a file": ("_tcp", "serve_file"),
    "ours": ("_ours", "serve"),
    "bare stream": ("_bare", "serve"),
    "bare CURVE stream": ("_bare", "serve_secured"),
    "ours with CURVE": ("_ours", "serve_secured"),
    "gRPC stream": ("_grpc", "serve"),
}
_LIMITS = [
    ("ours", "raw TCP"),
    ("ours", "raw TCP into a file"),
    ("ours", "bare stream"),
    ("ours with CURVE", "bare CURVE stream"),
]
_MB = 10**6


class _Timed(NamedTuple):
    seconds: float
    sender_mb: float
    receiver_mb: float


def main(json_file: JsonFile = None, *, quick: Quick = False) -> None:
    """Measure all ways, in both directions."""
    report = Report("transfer")
    sizes = {1: 15, 100: 5} if quick else {1: 50, 10: 20, 100: 15, 1000: 7}
    for megabytes, repetitions in sizes.items():
        _measure(report, megabytes, repetitions)
    report.finish(json_file)


def _measure(report: Report, megabytes: int, repetitions: int) -> None:
    size = f"{megabytes} MB"
    timed: dict[tuple[str, str], list[_Timed]] = defaultdict(list)
    for verb in ("upload", "download"):  # a process that does both holds more
        with ExitStack() as stack:
            ways = {
                name: stack.enter_context(_pair(*where))
                for name, where in _WAYS.items()
            }
            for repetition in range(repetitions + 1):
                for name, transfer in ways.items():
                    one = transfer(verb, megabytes * _MB)
                    if repetition:  # the first one's memory is used again
                        timed[verb, name].append(one)
    for (verb, name), found in timed.items():
        rates = [megabytes / 1000 / one.seconds for one in found]
        report.add(f"{verb}, {size}, {name}", "GB/s", rates)
    for verb in ("upload", "download"):
        for name, limit in _LIMITS:
            pairs = zip(timed[verb, limit], timed[verb, name], strict=True)
            ratios = [at_best.seconds / ours.seconds for at_best, ours in pairs]
            report.add(f"{verb}, {size}, {name} / {limit}", "x", ratios)
        for name in dict(_LIMITS):
            ours = timed[verb, name]
            for side in ("sender", "receiver"):
                extra = [getattr(one, f"{side}_mb") for one in ours]
                report.add(f"{verb}, {size}, {name}, extra at {side}", "MB", extra)


@contextmanager
def _pair(module: str, serve: str) -> Iterator[Callable[[str, int], _Timed]]:
    """Run a server and a client; yield what has them do a transfer."""
    context = multiprocessing.get_context("spawn")
    to_server, servers = context.Pipe()
    to_client, clients = context.Pipe()
    server = context.Process(target=_serve, args=[module, serve, servers])
    client = context.Process(target=_ask, args=[module, clients])
    server.start()
    client.start()
    try:
        to_client.send(to_server.recv())

        before = anonymous_mb(server.pid), anonymous_mb(client.pid)

        def transfer(verb: str, num_bytes: int) -> _Timed:
            with Watched(server.pid) as at_server, Watched(client.pid) as at_client:
                to_client.send((verb, num_bytes))
                seconds = to_client.recv()
            own_mb = num_bytes / _MB  # the model that the client has anyway
            extra = (
                at_server.peak_mb - before[0],
                at_client.peak_mb - before[1] - own_mb,
            )
            receiver, sender = extra if verb == "upload" else reversed(extra)
            return _Timed(seconds, sender, receiver)

        yield transfer
        to_client.send(None)
        client.join()
        to_server.close()
        servers.close()
        server.join(10)
    finally:
        for process in (client, server):
            process.kill()
            process.join()


def _serve(module: str, serve: str, pipe: Connection) -> None:
    getattr(import_module(f"_transfer.{module}"), serve)(pipe)


def _ask(module: str, pipe: Connection) -> None:
    client: Any = import_module(f"_transfer.{module}").Client(pipe.recv())
    memory = memoryview(bytearray(0))
    while order := pipe.recv():
        verb, num_bytes = order
        if len(memory) != num_bytes:
            memory = memoryview(np.ones(num_bytes, np.uint8).data)
        began = time.perf_counter()
        getattr(client, verb)(memory)
        pipe.send(time.perf_counter() - began)
    client.close()


if __name__ == "__main__":
    typer.run(main)
