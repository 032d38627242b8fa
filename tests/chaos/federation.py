"""A server and its sites as processes, each started again whenever it ends badly."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import final

import msgspec

import flare_core as flare
from chaos.faults import SERVER, Fault
from deployed import PATIENCE_S, Deployment
from flare_core.application import RoundRecord, replay, verify_audit
from flare_core.communication import GroupKey
from flare_core.federation import invited
from proxy import Proxy

SITES = ("a", "b", "c")
ROUNDS = 4
RUN = "demo"
_PROCESS = Path(__file__).with_name("process.py")
_MOST_S = 120.0
_STOPPED_S = 5.0
_FULL_S = 2.0
_FULL_BYTES = 1 << 14
_SLOW_BYTES_S = 8e6
_MOST_STARTS = 20
_HANGS = -1
_KEY = GroupKey(bytes(range(32)))
"""Of the sites' group, where they have one."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a federation ended.

    Attributes:
        blake3: Of the final model.
        seconds: How long it took.
        starts: How often each process was started.
        problems: What is not as it should be.
        said: What each process said, if something is not.
    """

    blake3: str
    seconds: float
    starts: Mapping[str, int]
    problems: Sequence[str]
    said: Mapping[str, str]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long who hears nothing waits.

    Attributes:
        server_s: The server; shorter than a process is stopped, by default: the site is
            given up, and comes back.
        site_s: A site.
    """

    server_s: float = 4.0
    site_s: float = PATIENCE_S


_SHORT = Patience()


@final
class Keeper:
    """Starts a process, and again whenever it ends badly, as a supervisor does.

    Args:
        name: Whose.
        command: What to start.
        environment: Beside that of this process.
        log: Where its words go.
    """

    def __init__(
        self, name: str, command: Sequence[str], environment: dict[str, str], log: Path
    ) -> None:
        self.name = name
        self.starts = 0
        self._command = command
        self._environment = {**os.environ, **environment}
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process that runs now."""
        process = self._process
        if process is not None:
            with suppress(ProcessLookupError):
                process.send_signal(number)

    def limit(self, num_bytes: int) -> None:
        """Let the process write no file beyond a size; -1 for any."""
        process = self._process
        if process is not None:
            with suppress(ProcessLookupError):
                limits = (num_bytes, resource.RLIM_INFINITY)
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, limits)

    def wait(self, seconds: float) -> bool:
        """Wait for its good end; return whether it came."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def end(self) -> int:
        """End it; return its exit code, or that it would not end."""
        self._over.set()
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        if not self.wait(20):
            self.signal(signal.SIGKILL)
            self._thread.join()
            return _HANGS
        return _HANGS if self._process is None else self._process.returncode

    def _keep(self) -> None:
        code = -1
        while code and self.starts < _MOST_STARTS and not self._over.is_set():
            self.starts += 1
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    self._command, env=self._environment, stdout=log, stderr=log
                )
            code = self._process.wait()


def play(
    command: Sequence[str],
    plan: flare.Plan,
    faults: Sequence[Fault],
    *,
    alone_s: float,
    patience: Patience = _SHORT,
) -> Outcome:
    """Play a run in which things happen, and look at what became of it.

    Args:
        command: The sites' script and its arguments.
        plan: What is played.
        faults: What happens.
        alone_s: How long the run takes by itself.
        patience: How long the server and the sites wait for each other.
    """
    path = Path(tempfile.mkdtemp(prefix="fc", dir="/tmp"))
    try:
        return _play(path, command, plan, faults, alone_s=alone_s, patience=patience)
    finally:
        shutil.rmtree(path)


def _play(
    path: Path,
    command: Sequence[str],
    plan: flare.Plan,
    faults: Sequence[Fault],
    *,
    alone_s: float,
    patience: Patience,
) -> Outcome:
    deployed = Deployment(path, process=True, patience_s=patience.server_s)
    for name in SITES:
        deployed.member(name)
    deployed.create(RUN, plan)
    deployed.stop()
    with ExitStack() as stack:
        proxies = {n: stack.enter_context(Proxy(deployed.endpoint)) for n in SITES}
        files = {
            name: deployed.site(
                name,
                RUN,
                server=proxy.endpoint,
                patience_s=patience.site_s,
                group_key="group.key",
            )
            for name, proxy in proxies.items()
        }
        for file in files.values():
            file.with_name("group.key").write_text(_KEY.text())
        began = time.monotonic()
        keepers: dict[str, Keeper] = {}
        for name in (SERVER, *SITES):
            what = [SERVER, str(deployed.folder.path)]
            environment = _environment(path, name, faults)
            if name != SERVER:
                what = list(command)
                environment["FLARE_SITE"] = str(files[name])
            words = [sys.executable, str(_PROCESS), *what]
            keepers[name] = Keeper(name, words, environment, path / f"{name}.log")
        for fault in faults:
            stack.enter_context(_happening(fault, keepers, proxies, alone_s))
        deadline = began + _MOST_S + sum(fault.seconds for fault in faults)
        ended = [keepers[n].wait(deadline - time.monotonic()) for n in SITES]
        seconds = time.monotonic() - began
        _wait_for_the_end(deployed, deadline)
        problems = [
            f"{n} did not end" for n, e in zip(SITES, ended, strict=True) if not e
        ]
        codes = {name: keeper.end() for name, keeper in keepers.items()}
    problems += [
        f"{name} ended with {code}"
        for name, code in codes.items()
        if code and (name, code) != (SERVER, -signal.SIGKILL)  # as it was to be ended
    ]
    record = deployed.folder.runs / RUN
    problems += _problems(record, plan)
    problems += [str(one) for one in verify_audit(deployed.folder.path).problems]
    starts = {name: keeper.starts for name, keeper in keepers.items()}
    result = record / "result.json"
    found = msgspec.json.decode(result.read_bytes()) if result.exists() else {}
    logs = {name: path / f"{name}.log" for name in keepers} if problems else {}
    return Outcome(
        blake3=found.get("blake3", ""),
        seconds=seconds,
        starts=starts,
        problems=problems,
        said={n: one.read_text(errors="replace") for n, one in logs.items()},
    )


def _wait_for_the_end(deployed: Deployment, deadline: float) -> None:
    """Wait until the run is over: the server may be down, or halted by a full disk."""
    while time.monotonic() < deadline:
        with suppress(flare.FlareError):
            deployed.ended(RUN)
            return


def _environment(path: Path, name: str, faults: Sequence[Fault]) -> dict[str, str]:
    """Return what tells a process what is to happen inside it."""
    told: dict[str, object] = {}
    for number, fault in enumerate(faults):
        if fault.party != name:
            continue
        if fault.kind == "kill at":
            marker = str(path / f"killed-{number}")
            told |= {"point": fault.point, "times": fault.times, "marker": marker}
        elif fault.kind == "garble":
            told["garble"] = fault.seed
    return {"CHAOS": json.dumps(told)}


@contextmanager
def _happening(
    fault: Fault,
    keepers: Mapping[str, Keeper],
    proxies: Mapping[str, Proxy],
    alone_s: float,
) -> Iterator[None]:
    """Have a fault happen at its time while the block runs."""
    match fault.kind:
        case "cut":
            proxies[fault.party].cut("up" if fault.seed % 2 else "down", fault.at)
        case "stall":
            proxies[fault.party].stall(fault.at, _STOPPED_S)
        case "unplug":
            proxies[fault.party].unplug(fault.at, fault.seconds, silent=fault.silent)
        case "slow":
            proxies[fault.party].slow(_SLOW_BYTES_S)
        case _:
            pass
    over = threading.Event()
    keeper = keepers[fault.party]

    def happen() -> None:
        if over.wait(fault.moment * alone_s):
            return
        match fault.kind:
            case "kill":
                keeper.signal(signal.SIGKILL)
            case "stop":
                keeper.signal(signal.SIGSTOP)
                over.wait(_STOPPED_S)
                keeper.signal(signal.SIGCONT)
            case "disk full":
                keeper.limit(_FULL_BYTES)
                over.wait(_FULL_S)
                keeper.limit(resource.RLIM_INFINITY)
            case _:
                pass

    thread = threading.Thread(target=happen)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _problems(record: Path, plan: flare.Plan) -> Iterator[str]:
    """Yield what is wrong with the record of a run."""
    file = record / "rounds.jsonl"
    lines = file.read_bytes().splitlines() if file.exists() else []
    rounds = [msgspec.json.decode(line, type=RoundRecord) for line in lines]
    if [one.round for one in rounds] != list(range(plan.rounds)):
        yield f"rounds on record: {[one.round for one in rounds]}"
    for one in rounds:
        chosen = invited(
            plan.selection, one.round, joined=SITES, present=SITES, sizes={}
        )
        if not sorted(one.sites) == sorted(one.cohort) == sorted(chosen):
            yield f"sites in round {one.round}: {sorted(one.sites)} of {one.cohort}"
    if plan.keep_updates:
        for again in replay(plan, rounds, record):
            yield from again.partings
    if (record / "spool").exists():
        yield "the spool was left behind"
