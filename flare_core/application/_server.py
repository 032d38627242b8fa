"""A server that plays one run, for simulations, tests and scripts of one's own."""

import os
import secrets
import tempfile
from functools import partial
from pathlib import Path
from typing import final

import msgspec

from flare_core._plan import Plan, plan_from
from flare_core._site import Site
from flare_core.application._events import Observer, Result
from flare_core.application._host import Host

_MOST_THREADS = 4
"""More do not make memory faster."""


@final
class Server:
    """Plays one run with the sites that connect to it, from this machine only.

    Args:
        plan: What to play.
        address: Where to listen; port 0 takes any free one.
        folder: Where updates and models lie meanwhile, in a folder ``spool`` that is
            removed at the end; by default in the system's folder for such.  It needs
            room for each site's update and for four times the model.  What a plan with
            ``keep_updates`` has kept goes there too, and stays.
        observer: Told of everything that happens, on the server's thread.
        preflight: Whether to compare the sites only, and train nothing.
        patience_s: Seconds without a word after which a site is given up; however long
            it trains, it says something four times as often.
        num_threads: Cores to average on; by default up to four of the machine's.
        share_spool: Whether sites on this machine may put their updates into that
            folder themselves, as their site files say; they must be trusted with it.
        above: Who this server is at another one, if the run is a region's part of one
            there, whose plan is this one but for the table ``selection``.

    Attributes:
        name: Of the run; no other has it.

    Raises:
        ConfigurationError: If the plan breaks a rule or names a strategy that is not
            installed, or the address cannot be had, or is not this machine's own:
            others speak to a server with keys, see ``flare server init``.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        address: str = "tcp://127.0.0.1:0",
        folder: Path | None = None,
        observer: Observer = lambda _: None,
        preflight: bool = False,
        patience_s: float = 60.0,
        num_threads: int | None = None,
        share_spool: bool = False,
        above: Site | None = None,
    ) -> None:
        self.name: str = secrets.token_hex(8)
        temporary = Path(tempfile.gettempdir(), f"flare-{self.name}")
        self._spool = folder / "spool" if folder else temporary
        self._host = Host(
            address, patience_s=patience_s, num_threads=num_threads or most_threads()
        )
        # what Python made of the plan may break rules that a file could not
        try:
            self._stage = self._host.open(
                self.name,
                plan_from(msgspec.to_builtins(plan), source="plan"),
                spool=self._spool,
                observer=observer,
                preflight=preflight,
                share_spool=share_spool,
                record=folder,
                above=above,
            )
        except BaseException:
            self._host.close()
            raise

    @property
    def spool(self) -> Path:
        """The folder for updates and models; it is there while the run is played."""
        return self._spool

    @property
    def endpoint(self) -> str:
        """The address that sites connect to, with its real port."""
        return self._host.endpoint

    def run(self) -> Result:
        """Play all rounds; returns when the last site has left, or the run aborted.

        Raises:
            ConfigurationError: If there is no room for the updates or the model.
        """
        run = self._stage.run
        try:
            self._host.begin(self._stage)
            self._host.serve(until=lambda: run.over)
        except BaseException as exc:
            self._host.close(exc)
            raise
        self._host.close()
        if self._stage.error is not None:
            raise self._stage.error
        return run.result

    def lose(self, site: str, reason: str) -> None:
        """Tell the server that a site will not come back; from any thread."""
        left = partial(self._stage.run.site_left, site, reason, failed=True)
        self._host.post(lambda: self._stage.do(left))

    def stop(self, reason: str) -> None:
        """Abort the run; from any thread."""
        abort = partial(self._stage.run.abort, reason)
        self._host.post(lambda: self._stage.do(abort))


def most_threads() -> int:
    """Return how many cores a run may average on, if nothing else is said."""
    return min(os.cpu_count() or 1, _MOST_THREADS)
