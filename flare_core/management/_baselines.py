"""What the federation was worth: every site alone, and all data in one place.

Both play the plan's rounds with the plan's schedule, each site as a federation of
one, so that every model is trained for the same steps where the schedule counts
steps.  FedProx pulls towards a model that others had a part in; alone there is none,
so the baselines train without it.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import final

import msgspec
from rich.table import Table

from flare_core._local import Plain
from flare_core._model import Metrics
from flare_core._plan import AggregationSettings, Plan, StrategySettings
from flare_core._selection import Selection
from flare_core._site import Site
from flare_core.application import Result
from flare_core.management._display import Display
from flare_core.management._play import play, share, sites_of
from flare_core.management._processes import Script
from flare_core.management._run_folder import RunFolder, replace_file
from flare_core.management._simulation import Simulation

SCORES = "scores.json"
LOCAL_ONLY = "local-only"
CENTRALISED = "centralised"


@final
class Baselines(msgspec.Struct, frozen=True, kw_only=True):
    """The final metrics of what the federation is compared with.

    Attributes:
        alone: Metrics of each site's own model, by site.
        centralised: Metrics of the model trained on all data.
        seconds: Wall time of ``local_only`` and ``centralised``.
    """

    alone: Mapping[str, Metrics]
    centralised: Metrics
    seconds: Mapping[str, float]


class Score(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One metric of the three; None where a script did not report it.

    Attributes:
        local_only: Mean over the sites, each with the model it trained alone.
        federated: Of the federation's model.
        centralised: Of the model trained on all data.
    """

    local_only: float | None = None
    federated: float | None = None
    centralised: float | None = None


class Scores(msgspec.Struct, frozen=True, kw_only=True):
    """The content of ``scores.json``.

    Attributes:
        metrics: A score per metric.
        seconds: Wall time of ``federated``, ``local_only`` and ``centralised``.
    """

    metrics: Mapping[str, Score]
    seconds: Mapping[str, float]


def baselines(
    script: Script,
    plan: Plan,
    folder: Path,
    show: Callable[[str], AbstractContextManager[Display]],
) -> Baselines:
    """Train every site alone, at the same time, and then all data together.

    Args:
        script: What the federation's sites ran.
        plan: What the federation played.
        folder: Its run folder; the baselines go to sub-folders.
        show: Returns a display under a title, to be entered.
    """
    own = _plan_for_one(plan)
    sites = sites_of(plan.selection.sites)
    folders = {site.name: folder / LOCAL_ONLY / site.name for site in sites}
    title = f"local-only: {len(sites)} sites, each alone"
    alone, alone_s = _train(script, own, sites, folders, show(title))
    everything = Site(name=CENTRALISED)
    place = {CENTRALISED: folder / CENTRALISED}
    title = "centralised: all data in one place"
    together, together_s = _train(script, own, [everything], place, show(title))
    return Baselines(
        alone={name: result.metrics for name, result in alone.items()},
        centralised=together[CENTRALISED].metrics,
        seconds={"local_only": alone_s, "centralised": together_s},
    )


def scores(federated: Result, federated_s: float, others: Baselines) -> Scores:
    """Put the three side by side."""
    names = {*federated.metrics, *others.centralised}.union(*others.alone.values())
    return Scores(
        metrics={name: _score(name, federated, others) for name in sorted(names)},
        seconds={"federated": federated_s, **others.seconds},
    )


def write_scores(found: Scores, folder: Path) -> None:
    """Write ``scores.json``."""
    text = msgspec.json.format(msgspec.json.encode(found))
    replace_file(folder / SCORES, [text, b"\n"])


def scores_table(found: Scores, alone: Mapping[str, Metrics]) -> Table:
    """Return the table: a row per metric, then the seconds.

    Args:
        found: The scores.
        alone: Each site's metrics of the model it trained alone.
    """
    table = Table("metric", title="What the federation was worth")
    table.add_column("local-only", justify="right")
    table.add_column("federated", justify="right", style="bold")
    table.add_column("centralised", justify="right")
    table.add_column("each site alone", style="dim", overflow="fold")
    for name, score in found.metrics.items():
        three = (score.local_only, score.federated, score.centralised)
        each = (_cell(of_site.get(name)) for of_site in alone.values())
        table.add_row(name, *map(_cell, three), "  ".join(each))
    columns = ("local_only", "federated", "centralised")
    seconds = [f"{found.seconds[column]:.1f} s" for column in columns]
    table.add_section()
    table.add_row("wall time", *seconds)
    return table


def _plan_for_one(plan: Plan) -> Plan:
    return msgspec.structs.replace(
        plan,
        selection=Selection(),
        aggregation=AggregationSettings(),
        strategy=StrategySettings(),
        local=Plain(),
    )


def _train(
    script: Script,
    plan: Plan,
    sites: Sequence[Site],
    folders: Mapping[str, Path],
    shown: AbstractContextManager[Display],
) -> tuple[dict[str, Result], float]:
    """Return the result of each site, a federation by itself, and the seconds."""
    began = time.monotonic()
    with shown as display:
        simulations = [
            Simulation(
                script,
                plan,
                [site],
                folders[site.name],
                num_threads=share(len(sites)),
                observers=[
                    RunFolder(folders[site.name]),
                    display.watch([site.name], plan.rounds),
                ],
            )
            for site in sites
        ]
        results = play(simulations)
    names = (site.name for site in sites)
    return dict(zip(names, results, strict=True)), time.monotonic() - began


def _score(name: str, federated: Result, others: Baselines) -> Score:
    alone = [site[name] for site in others.alone.values() if name in site]
    return Score(
        local_only=statistics.fmean(alone) if alone else None,
        federated=federated.metrics.get(name),
        centralised=others.centralised.get(name),
    )


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
