"""What thousands of sites cost a server that have nothing to say but that they live.

    python benchmarks/idle.py --json idle.json
    python benchmarks/idle.py --quick

The plan has one site more than there are, so the run waits for it for ever.  The server
is a process that runs nothing else.  5,000 couriers would be 10,000 threads, so the
sites are bare DEALER sockets, set up as those of `flare_core`, in a few processes: each
says Hello and Join, and then Ping every 15 s, as a site that trains, while ZeroMQ sends
its heartbeat; then every 2 s, as a site that waits for an answer.

ZeroMQ's queues touch new memory for a while, until they go round; so each site's share
is measured again after 500 more pings, as a site says them in two hours of training.

Targets: below 10 % of a core, below 40 KB a site, at 5,000 sites.  Under Linux only.
"""

import heapq
import multiprocessing
import os
import random
import resource
import secrets
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, TypeAlias, final

import typer
import zmq
from _federation import (
    FailedError,
    Federation,
    federation,
    leave_when_told,
    need,
)
from _peers._processes import memory_of
from _report import JsonFile, Quick, Report

import flare_core as flare
from flare_core.communication import Aborted, Hello, Join, Ping, decode_to_site, encode
from flare_core.communication._zmq._access import LARGEST_MESSAGE_BYTES
from flare_core.communication._zmq._dealer import (
    _CONNECT_TIMEOUT_MS,
    _HEARTBEAT_MS,
    _HEARTBEAT_TIMEOUT_MS,
    _RECONNECT_MS,
)

_OPTIONS = {
    zmq.MAXMSGSIZE: LARGEST_MESSAGE_BYTES,
    zmq.CONNECT_TIMEOUT: _CONNECT_TIMEOUT_MS,
    zmq.RECONNECT_IVL: _RECONNECT_MS,
    zmq.HEARTBEAT_IVL: _HEARTBEAT_MS,
    zmq.HEARTBEAT_TIMEOUT: _HEARTBEAT_TIMEOUT_MS,
    zmq.LINGER: 0,
}
_IDLE_PING_S = 15.0
"""While a site trains; the server asks for it, a quarter of its patience."""
_PROCESSES = 4
_SITE_BYTES = 200_000
"""Of memory for both ends of a connection."""
_FILES_PER_SITE = 4
_JITTER = 0.1
_SETTLE_S = 2.0
_MORE_PINGS = 500
_TURNS = 10
_HEADROOM = 100
"""Sockets and files that are no site's."""
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PATIENCE_S = 300.0

Number: TypeAlias = Annotated[
    int | None, typer.Option("--sites", min=1, help="By default 5,000.")
]


@final
class _Crowd:
    """Sites that only say that they live, in one process.

    Args:
        endpoint: The server's.
        plan: Fingerprint of the plan that they join for.
        names: Their names.
    """

    def __init__(self, endpoint: str, plan: str, names: list[str]) -> None:
        self._plan = plan
        self._context = zmq.Context[zmq.SyncSocket]()
        self._context.set(zmq.MAX_SOCKETS, len(names) + _HEADROOM)
        self._sockets = [self._site(endpoint, name) for name in names]
        self._due: list[tuple[float, int]] = []

    def ping_every(self, seconds: float) -> None:
        """Let each say Ping from now on, not all at once."""
        now = time.monotonic()
        self._due = [
            (now + random.uniform(0, seconds), index)  # noqa: S311 - no secret
            for index in range(len(self._sockets))
        ]
        heapq.heapify(self._due)
        self._ping_s = seconds

    def ping_what_is_due(self) -> float:
        """Say what is due, and return how many seconds there is nothing to say."""
        while True:
            due, index = self._due[0]
            wait = due - time.monotonic()
            if wait > 0:
                return wait
            self._ping(index, answer=False)
            jitter = random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311
            heapq.heapreplace(self._due, (due + self._ping_s * jitter, index))

    def ping_at_once(self, number: int) -> None:
        """Let each say Ping so many times; ask for an answer now and then, to wait."""
        for turn in range(number):
            answer = not turn % _TURNS
            for index in range(len(self._sockets)):
                self._ping(index, answer=answer)
            for one in self._sockets if answer else ():
                if not one.poll(int(_PATIENCE_S * 1000)):
                    msg = "a ping was not answered"
                    raise FailedError(msg)

    def _site(self, endpoint: str, name: str) -> zmq.SyncSocket:
        one = self._context.socket(zmq.DEALER)
        for option, value in _OPTIONS.items():
            one.setsockopt(option, value)
        one.connect(endpoint)
        one.send_multipart(encode(Hello(site=name, session=secrets.token_bytes(16))))
        join = Join(layout=flare.Layout(()), plan=self._plan)
        one.send_multipart(encode(join))
        return one

    def _ping(self, index: int, *, answer: bool) -> None:
        """Read what has come since the last one, and ping."""
        one = self._sockets[index]
        while one.poll(0):
            message = decode_to_site(one.recv_multipart())
            if isinstance(message, Aborted):
                raise FailedError(message.reason)
        one.send_multipart(encode(Ping(answer=answer)))


def _run_crowd(endpoint: str, plan: str, names: list[str], orders: Connection) -> None:
    """Be some of the sites, in a process; ends with who started it.

    Args:
        endpoint: The server's.
        plan: Fingerprint of the plan that they join for.
        names: The sites' names.
        orders: How many pings to say at once, and then every how many seconds one;
            with the first order, the sites connect.  Each is answered when obeyed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _allow_files(_FILES_PER_SITE * len(names))
    orders.send(None)
    crowd: _Crowd | None = None
    wait_s: float | None = None
    with suppress(EOFError):
        while True:
            if orders.poll(wait_s):
                at_once, every_s = orders.recv()
                crowd = crowd or _Crowd(endpoint, plan, names)
                crowd.ping_at_once(at_once)
                crowd.ping_every(every_s)
                orders.send(None)
            if crowd is not None:
                wait_s = crowd.ping_what_is_due()


@final
class _Sites:
    """All simulated sites; made by `_sites`."""

    def __init__(self, endpoint: str, plan: str, number: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        names = [f"site-{index:05d}" for index in range(number)]
        self._orders: list[Connection] = []
        for share in range(_PROCESSES):
            ours, theirs = spawn.Pipe()
            args = (endpoint, plan, names[share::_PROCESSES], theirs)
            spawn.Process(target=_run_crowd, args=args, daemon=True).start()
            theirs.close()
            self._orders.append(ours)
        self._wait_for_all()

    def ping(self, *, every_s: float, at_once: int = 0) -> None:
        """Have all connect, if they have not, and ping from now on.

        Raises:
            FailedError: If some of them have ended.
        """
        for order in self._orders:
            order.send((at_once, every_s))
        self._wait_for_all()

    def end(self) -> None:
        """End them."""
        for order in self._orders:
            order.close()

    def _wait_for_all(self) -> None:
        for order in self._orders:
            try:
                order.recv()
            except (EOFError, OSError) as exc:
                msg = "some of the simulated sites have ended"
                raise FailedError(msg) from exc


def main(
    *, json_file: JsonFile = None, quick: Quick = False, sites: Number = None
) -> None:
    """Measure; --quick takes 1,000 sites, and looks at them for a shorter time."""
    leave_when_told()
    report = Report("idle")
    number = sites or (1000 if quick else 5000)
    try:
        need(number * _SITE_BYTES)
        _allow_files(number + _HEADROOM)
        plan = flare.Plan(rounds=1, selection=flare.Selection(sites=number + 1))
        with (
            federation(plan) as running,
            _sites(running.endpoint, plan.fingerprint, number) as crowd,
        ):
            _Measurement(report, running, crowd, number, quick=quick).make()
    except FailedError as error:
        report.fail(f"{number} sites", str(error))
    report.finish(json_file)


@contextmanager
def _sites(endpoint: str, plan: str, number: int) -> Iterator[_Sites]:
    sites = _Sites(endpoint, plan, number)
    try:
        yield sites
    finally:
        sites.end()


@final
class _Measurement:
    def __init__(
        self,
        report: Report,
        running: Federation,
        sites: _Sites,
        number: int,
        *,
        quick: bool,
    ) -> None:
        self._report = report
        self._running = running
        self._sites = sites
        self._number = number
        self._windows = [10.0] * 2 if quick else [15.0] * 4
        self._first_bytes = self._bytes()

    def make(self) -> None:
        """Add all rows."""
        self._connect()
        self._add_cpu(f"training, Ping every {_IDLE_PING_S:g} s")
        self._add_memory(f"{sum(self._windows):g} s after connecting")
        self._sites.ping(every_s=_IDLE_PING_S, at_once=_MORE_PINGS)
        self._add_memory(f"after {_MORE_PINGS} more pings")

    def _connect(self) -> None:
        running, number = self._running, self._number
        begun, cpu_s = time.monotonic(), self._cpu_s()
        self._sites.ping(every_s=_IDLE_PING_S)
        running.wait_for(lambda: running.num_joined == number)
        took_ms = 1e3 * (time.monotonic() - begun)
        self._add("connecting, per site", "ms", [took_ms / number])
        cpu_ms = 1e3 * (self._cpu_s() - cpu_s)
        self._add("connecting, the server's CPU per site", "ms", [cpu_ms / number])

    def _add_cpu(self, what: str) -> None:
        self._wait(_SETTLE_S)
        percents = [self._percent_of_a_core(window_s) for window_s in self._windows]
        self._add(f"{what}: the server's CPU", "% of a core", percents)

    def _percent_of_a_core(self, window_s: float) -> float:
        begun, cpu_s = time.monotonic(), self._cpu_s()
        self._wait(window_s)
        return 100 * (self._cpu_s() - cpu_s) / (time.monotonic() - begun)

    def _add_memory(self, when: str) -> None:
        kilobytes = (self._bytes() - self._first_bytes) / 1000 / self._number
        self._add(f"anonymous memory per site, {when}", "KB", [kilobytes])

    def _add(self, what: str, unit: str, samples: list[float]) -> None:
        self._report.add(f"{self._number} sites: {what}", unit, samples)

    def _wait(self, seconds: float) -> None:
        """Let time pass, unless the run ends."""
        until = time.monotonic() + seconds
        self._running.wait_for(lambda: time.monotonic() >= until)

    def _bytes(self) -> int:
        return memory_of(self._running.server_pid).get("RssAnon", 0)

    def _cpu_s(self) -> float:
        """Return the CPU seconds of the server so far, of all its threads."""
        stat = Path(f"/proc/{self._running.server_pid}/stat").read_text()
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) * _TICK_S


def _allow_files(number: int) -> None:
    """Let this process, and those that it starts, open so many files.

    Raises:
        FailedError: If the machine does not let it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(soft, number + _HEADROOM)
    if hard != resource.RLIM_INFINITY and wanted > hard:
        msg = f"it needs {wanted} open files in a process, the hard limit is {hard}"
        raise FailedError(msg)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


if __name__ == "__main__":
    typer.run(main)
