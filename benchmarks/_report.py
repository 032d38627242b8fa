"""What all benchmarks share: two options, a table, and a JSON file of one format.

    def main(json_file: JsonFile = None, quick: Quick = False) -> None:
        report = Report("transfer")
        report.add("upload, ours, 1 GB", "GB/s", samples)
        report.finish(json_file)

The file is ``{"machine": {...}, "rows": [{"case": str, "unit": str, "median": float,
"min": float, "max": float, "n": int}, ...]}``.
"""

import os
import platform
import statistics
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, TypeAlias, final

import msgspec
import typer
from rich.console import Console
from rich.table import Table

JsonFile: TypeAlias = Annotated[
    Path | None, typer.Option("--json", help="Write the rows and the machine here too.")
]
Quick: TypeAlias = Annotated[
    bool, typer.Option("--quick", help="Only what takes less than 2 minutes.")
]

_PACKAGES = ("numpy", "pyzmq", "flare-adapters")


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the table.

    Attributes:
        case: What was measured, of whom, on what.
        unit: Unit of the three numbers.
        median: Median of the samples.
        min: Least sample.
        max: Greatest sample.
        n: Number of samples.
    """

    case: str
    unit: str
    median: float
    min: float
    max: float
    n: int


@final
class Report:
    """Collects the rows of one benchmark.

    Args:
        name: Name of the benchmark; the title of its table.

    Attributes:
        machine: What it ran on, as it was when the report was made; a benchmark may
            add to it, e.g. the versions of what it measures beside ours.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.machine: dict[str, str | int | float | list[float]] = _machine()
        self._rows: list[Row] = []
        self._failures: dict[str, str] = {}
        self._console = Console()

    def add(self, case: str, unit: str, samples: Iterable[float]) -> Row:
        """Add a row, and print it at once: some benchmarks take long.

        Args:
            case: What was measured; unique in the report.
            unit: Unit of the samples.
            samples: At least one.
        """
        values = [float(sample) for sample in samples]
        row = Row(
            case=case,
            unit=unit,
            median=statistics.median(values),
            min=min(values),
            max=max(values),
            n=len(values),
        )
        self._rows.append(row)
        self.say(f"{row.case}: {row.median:.4g} {row.unit} (n={row.n})")
        return row

    def fail(self, case: str, reason: str) -> None:
        """Note a case that could not be measured: shown, but not in the file."""
        self._failures[case] = reason
        self.say(f"{case}: failed: {reason}")

    def say(self, line: str) -> None:
        """Print a line of progress."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def finish(self, json_file: Path | None = None) -> None:
        """Print the table and write the file.

        Raises:
            typer.Exit: With code 1 if a case failed.
        """
        self._console.print(self._table())
        for key, value in self.machine.items():
            self.say(f"{key}: {value}")
        if json_file is not None:
            document = {"machine": self.machine, "rows": self._rows}
            encoded = msgspec.json.format(msgspec.json.encode(document), indent=2)
            json_file.write_bytes(encoded + b"\n")
        if self._failures:
            raise typer.Exit(1)

    def _table(self) -> Table:
        table = Table(title=self.name)
        table.add_column("case", overflow="fold")
        for heading in ("unit", "median", "min", "max", "n"):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in self._rows:
            numbers = [f"{value:.4g}" for value in (row.median, row.min, row.max)]
            table.add_row(row.case, row.unit, *numbers, str(row.n))
        for case, reason in self._failures.items():
            table.add_row(f"{case}\nfailed: {reason}", style="red")
        return table


def _machine() -> dict[str, str | int | float | list[float]]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{package: _version(package) for package in _PACKAGES},
        "load_average": list(os.getloadavg()),
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
