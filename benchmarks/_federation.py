"""A federation on this machine: a server that runs nothing else, and real sites.

    with federation(plan) as running:
        running.start_sites(2, Model(num_bytes=400_000_000))
        running.finish()

Each process is this file, run as a program.  The server notes what happens in a file,
a line each, which the benchmark reads.  Under Linux only: it reads /proc.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TypeAlias, final

import msgspec
import numpy as np
import numpy.typing as npt
from _peers._processes import available_bytes

import flare_core as flare
from flare_core.application import (
    Event,
    RoundPlayed,
    RoundRecord,
    RunEnded,
    RunOpened,
    SiteJoined,
)

Weights: TypeAlias = dict[str, npt.NDArray[np.float32]]

NUM_TENSORS = 10
SITE_BYTES = 40_000_000
"""Memory of a site's process, without a model."""
_WAVE = 16
"""Sites that start at a time: a hundred interpreters at once starve each other."""
_LOOK_S = 0.05
_PATIENCE_S = 180.0
_GRACE_S = 5.0
_LAST_WORDS = 3
_SPARE_BYTES = 1_000_000_000


class FailedError(Exception):
    """A federation did not do what it should; says why."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """Zeros in float32.

    Attributes:
        num_bytes: Of all tensors.
        num_tensors: Of the same size.
    """

    num_bytes: int
    num_tensors: int = NUM_TENSORS

    def weights(self, file: Path | None = None) -> Weights:
        """Return the model: in memory, or mapped from a file of zeros."""
        shape = (self.num_tensors, self.num_bytes // 4 // self.num_tensors)
        whole: npt.NDArray[np.float32] = (
            np.zeros(shape, np.float32)
            if file is None
            else np.memmap(file, np.float32, "r", shape=shape)
        )
        return {f"tensor_{index}": tensor for index, tensor in enumerate(whole)}


@final
class Federation:
    """One run under way; made by `federation`.

    Args:
        plan: What is played.
        folder: An empty one, for all that is written.

    Attributes:
        endpoint: Where the server listens.
        num_joined: Sites that have joined so far.
        played: When each round was over, in seconds of CLOCK_MONOTONIC.
        pauses: Seconds of each round from the last update until the next model.
        cpu: CPU seconds of the server, from its start to each of these moments.
        error: Why the run ended early; empty if it did not.
    """

    def __init__(self, plan: flare.Plan, folder: Path) -> None:
        self.endpoint = ""
        self.num_joined = 0
        self.played: list[float] = []
        self.pauses: list[float] = []
        self.cpu: list[float] = []
        self.error = ""
        self._folder = folder
        notes = folder / "notes"
        notes.touch()
        self._notes = notes.open()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        options = [f"--folder={folder}", f"--plan={msgspec.json.encode(plan).decode()}"]
        self._server = self._start("server", options, stdin=subprocess.PIPE)
        self._sites: list[int] = []

    @property
    def server_pid(self) -> int:
        """The process of the server."""
        return self._server.pid

    @property
    def site_pids(self) -> list[int]:
        """The processes of the sites."""
        return self._sites

    def start_sites(self, number: int, model: Model, *, lean: bool = False) -> None:
        """Start sites; returns when all but the last few have joined.

        Args:
            number: How many.
            model: What they exchange, without training.
            lean: Whether they share one model that nobody changes, mapped from a
                file, and forget each global model as soon as it is there.
        """
        options = [f"--bytes={model.num_bytes}", f"--tensors={model.num_tensors}"]
        if lean:
            zeros = self._folder / "zeros"
            with zeros.open("wb") as file:
                file.truncate(model.num_bytes)
            options.append(f"--zeros={zeros}")
        for index in range(number):
            if index % _WAVE == 0:
                self._wait_for_joins(index)
            name = f"site-{index:03d}"
            site_file = self._folder / f"{name}.toml"
            site_file.write_text(f'name = "{name}"\nserver = "{self.endpoint}"\n')
            process = self._start(name, options, site_file=site_file)
            self._sites.append(process.pid)

    def finish(
        self, look: Callable[[], None] = lambda: None, every_s: float = _LOOK_S
    ) -> None:
        """Return when the server and all sites have ended.

        Args:
            look: Called meanwhile.
            every_s: How often.

        Raises:
            FailedError: If one of them did not end well.
        """
        self.wait_for(
            lambda: all(one.poll() is not None for one in self._processes.values()),
            look,
            every_s,
        )
        self._read_notes()
        self._check()

    def wait_for(
        self,
        done: Callable[[], bool],
        look: Callable[[], None] = lambda: None,
        every_s: float = _LOOK_S,
    ) -> None:
        """Return when something is done; raises as `finish`."""
        since = time.monotonic()
        while not done():
            look()
            if self._read_notes():
                since = time.monotonic()
            self._check()
            if time.monotonic() - since > _PATIENCE_S:
                msg = (
                    f"nothing happened for {_PATIENCE_S:g} s; {self.num_joined} sites "
                    f"have joined, {len(self.played)} rounds were played"
                )
                raise FailedError(msg)
            time.sleep(every_s)

    def _wait_for_joins(self, number: int) -> None:
        self.wait_for(lambda: self.num_joined >= number)

    def end(self) -> None:
        """Stop the server, and end all processes."""
        self._notes.close()
        if self._server.stdin is not None:
            self._server.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._server.wait(_GRACE_S)
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE_S)
            process.kill()
            process.wait()

    def _start(
        self,
        name: str,
        options: list[str],
        *,
        stdin: int = subprocess.DEVNULL,
        site_file: Path | None = None,
    ) -> subprocess.Popen[bytes]:
        variables = {"OMP_NUM_THREADS": "1", "FLARE_SITE": str(site_file or "")}
        role = "server" if site_file is None else "site"
        with self._log(name).open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, __file__, role, *options],
                env={**os.environ, **variables},
                cwd=self._folder,
                stdin=stdin,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the benchmark, which ends them
            )
        self._processes[name] = process
        return process

    def _read_notes(self) -> bool:
        """Read what the server has noted since; return whether it has."""
        lines = self._notes.readlines()
        for line in lines:
            word, _, rest = line.rstrip("\n").partition(" ")
            match word:
                case "opened":
                    self.endpoint = rest
                case "joined":
                    self.num_joined += 1
                case "played":
                    at, pause, cpu = map(float, rest.split())
                    self.played.append(at)
                    self.pauses.append(pause)
                    self.cpu.append(cpu)
                case _:
                    self.error = rest
        return bool(lines)

    def _check(self) -> None:
        if self.error:
            raise FailedError(self.error)
        for name, process in self._processes.items():
            if process.poll():
                lines = self._log(name).read_text(errors="replace").split("\n")
                words = " | ".join([line for line in lines if line][-_LAST_WORDS:])
                msg = f"{name} ended with code {process.returncode}: {words}"
                raise FailedError(msg)

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"


@contextmanager
def federation(plan: flare.Plan) -> Iterator[Federation]:
    """Start a server; at the end, end it, its sites, and remove their folder."""
    prefix = "flare-benchmark-"
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as path:
        running = Federation(plan, Path(path))
        try:
            running.wait_for(lambda: bool(running.endpoint))
            yield running
        finally:
            running.end()


def need(num_bytes: int) -> None:
    """Check that the machine has so much memory left, and some to spare.

    Raises:
        FailedError: If it has not.
    """
    free = available_bytes()
    if free < num_bytes + _SPARE_BYTES:
        msg = f"it needs {num_bytes / 1e9:.1f} GB of memory, there are {free / 1e9:.1f}"
        raise FailedError(msg)


def leave_when_told() -> None:
    """Let SIGTERM and SIGHUP unwind the benchmark, as Ctrl-C does."""
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, _leave)


def _leave(signum: int, frame: FrameType | None) -> None:
    del frame
    sys.exit(128 + signum)


def _serve(plan: flare.Plan, folder: Path) -> None:
    """Serve one run, and note what happens; ends when whoever started it has."""
    with (folder / "notes").open("a", buffering=1) as notes:

        def note(event: Event) -> None:
            match event:
                case RunOpened():
                    notes.write(f"opened {event.endpoint}\n")
                case SiteJoined():
                    notes.write(f"joined {event.site}\n")
                case RoundPlayed():
                    now, cpu = time.monotonic(), time.process_time()
                    notes.write(f"played {now} {_pause(event.record)} {cpu}\n")
                case RunEnded():
                    notes.write(f"ended {event.result.error}\n")

        server = flare.Server(plan, folder=folder, observer=note)
        threading.Thread(target=_stop_when_alone, args=(server,), daemon=True).start()
        server.run()


def _pause(record: RoundRecord) -> float:
    return record.seconds - max(report.seconds for report in record.sites.values())


def _stop_when_alone(server: flare.Server) -> None:
    os.read(0, 1)
    server.stop("the benchmark has ended")


def _take_part(weights: Weights) -> None:
    """Load each global model, train nothing, hand in."""
    with flare.join(weights) as client:
        for current in client:
            for name, array in current.weights.items():
                np.copyto(weights[name], array)
            current.submit(weights, num_examples=1)


def _take_part_lean(weights: Weights) -> None:
    """Hand in the same model in each round, and look at none."""
    site = flare.site()
    link = flare.connect(site)
    mapped = flare.ModelState(weights)
    number, final = _mark(link.join(flare.Proposal(weights=mapped)))
    while not final:
        update = flare.Update(
            site=site.name, round_number=number, weights=mapped, num_examples=1
        )
        number, final = _mark(link.exchange(update))
    link.leave({})


def _mark(model: flare.GlobalModel) -> tuple[int, bool]:
    return model.round_number, model.final


def _main() -> None:
    parser = argparse.ArgumentParser()
    roles = parser.add_subparsers(dest="role", required=True)
    server = roles.add_parser("server")
    server.add_argument("--plan", type=str.encode)
    server.add_argument("--folder", type=Path)
    site = roles.add_parser("site")
    site.add_argument("--bytes", type=int)
    site.add_argument("--tensors", type=int)
    site.add_argument("--zeros", type=Path)
    options = parser.parse_args()
    if options.role == "server":
        _serve(msgspec.json.decode(options.plan, type=flare.Plan), options.folder)
        return
    model = Model(num_bytes=options.bytes, num_tensors=options.tensors)
    run = _take_part if options.zeros is None else _take_part_lean
    run(model.weights(options.zeros))


if __name__ == "__main__":
    _main()
