"""A federation that `flare simulate` plays, as a user would have it."""

import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import final

import msgspec

from flare_core.application import Result, RoundRecord

_COMMAND = Path(sys.executable).with_name("flare")


@final
@dataclass(frozen=True, slots=True)
class Simulated:
    """What came of a run.

    Attributes:
        result: How it ended.
        records: Of its rounds.
    """

    result: Result
    records: list[RoundRecord]


def simulate(
    script: Path,
    *arguments: object,
    sites: int,
    rounds: int,
    settings: Iterable[str] = (),
) -> Simulated:
    """Play a script, with its arguments.

    Args:
        script: The file.
        arguments: Its own.
        sites: How many play it.
        rounds: How many they play.
        settings: Of the plan, as ``--set`` takes them.

    Raises:
        subprocess.CalledProcessError: If it fails.
    """
    options = [word for one in settings for word in ("--set", one)]
    command = [str(_COMMAND), "simulate", str(script), "--run-dir", "run", *options]
    command += ["--sites", str(sites), "--rounds", str(rounds), "--"]
    command += map(str, arguments)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        run = Path(folder, "run")
        result = msgspec.json.decode((run / "result.json").read_bytes(), type=Result)
        lines = (run / "rounds.jsonl").read_bytes().splitlines()
    records = [msgspec.json.decode(line, type=RoundRecord) for line in lines]
    return Simulated(result, records)
