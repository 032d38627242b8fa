"""Plays federations side by side, and ends all of them if one fails or on Ctrl-C."""

from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path

from flare_core._plan import Plan
from flare_core._site import Site
from flare_core.application import Observer, Result
from flare_core.federation import chosen, lora_rule
from flare_core.management._processes import Script, cores
from flare_core.management._run_folder import RunFolder, fresh_folder
from flare_core.management._signals import interrupts
from flare_core.management._simulation import Simulation

_PATIENCE_S = 60.0
"""A simulated server does not come back: what it leaves behind is to end soon."""


def simulate(
    script: Path,
    *,
    plan: Plan,
    args: Sequence[str] = (),
    run_dir: Path | None = None,
    observer: Observer = lambda _: None,
) -> Result:
    """Play a federation on this machine: each site a process that runs the script.

    Args:
        script: A training script that joins a federation.
        plan: What to play; ``plan.selection.sites`` says how many sites.
        args: Arguments of the script.
        run_dir: The run folder, empty or new; by default ``runs/SCRIPT-TIME``.
        observer: Told of the server's events, on its thread.

    Returns:
        How it ended; the rest is in the run folder.

    Raises:
        ConfigurationError: If the folder is not empty, or the plan is wrong.
        SiteFailedError: If a site failed; it has its traceback.
        KeyboardInterrupt: After Ctrl-C or SIGTERM; no process is left.
    """
    require_playable(plan)
    folder = fresh_folder(run_dir, script)
    simulation = federation(
        Script(path=script, args=tuple(args)), plan, folder, observers=[observer]
    )
    return play([simulation])[0]


def require_playable(plan: Plan) -> None:
    """Check what only the installed rules know of a plan, before a folder is made.

    Raises:
        ConfigurationError: If one is not there, or does not go with the rest.
    """
    strategy, _ = chosen(plan)
    lora_rule(plan, strategy)


def federation(
    script: Script,
    plan: Plan,
    folder: Path,
    *,
    observers: Sequence[Observer] = (),
    preflight: bool = False,
) -> Simulation:
    """Return a federation of ``plan.selection.sites`` sites, not yet started."""
    sites = sites_of(plan.selection.sites)
    record = [] if preflight else [RunFolder(folder)]
    return Simulation(
        script,
        plan,
        sites,
        folder,
        num_threads=share(len(sites)),
        observers=[*record, *observers],
        preflight=preflight,
    )


def play(simulations: Sequence[Simulation]) -> list[Result]:
    """Run all of them at the same time and return their results.

    Raises:
        BaseException: What the first one raised, when all have ended.
    """

    def interrupt_all() -> None:
        for simulation in simulations:
            simulation.interrupt()

    with interrupts(interrupt_all), ThreadPoolExecutor(len(simulations)) as pool:
        futures = [pool.submit(simulation.run) for simulation in simulations]
        wait(futures, return_when=FIRST_EXCEPTION)
        if any(future.done() and future.exception() for future in futures):
            interrupt_all()
    return _results(futures)


def sites_of(count: int) -> list[Site]:
    """Return the sites of a simulation: their order by name is that by index."""
    width = len(str(count))
    return [
        Site(
            name=f"site-{index + 1:0{width}d}",
            index=index,
            count=count,
            patience_s=_PATIENCE_S,
        )
        for index in range(count)
    ]


def share(num_sites: int) -> int:
    """Return how many threads each of so many sites may use."""
    return max(1, cores() // num_sites)


def _results(futures: Sequence[Future[Result]]) -> list[Result]:
    errors = [error for future in futures if (error := future.exception())]
    errors.sort(key=lambda error: isinstance(error, KeyboardInterrupt))
    if errors:
        raise errors[0]
    return [future.result() for future in futures]
