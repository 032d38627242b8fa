"""Takes part in the runs of the server above, for a region."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import final

import msgspec

from flare_core._errors import ConfigurationError, FlareError
from flare_core._plan import Plan
from flare_core._site import Site, SiteName
from flare_core._site import site as read_site
from flare_core.application import ZmqLink, remember, secured_as
from flare_core.communication import AwaitRuns, Control

_log = logging.getLogger(__name__)
_LOOK_S = 60.0
"""A server that says nothing for so long may have missed what it was asked."""
_AGAIN_S = 5.0
_SITE_FILE = "site.toml"


@final
class RegionAbove:
    """Listens for the runs that await the region, on a thread of its own.

    Args:
        path: The site file of the region at the server above, or its folder.
        begin: Called with the name and the plan of a run that awaits the region, as it
            is above; on the thread.

    Attributes:
        site: Who the region is there.

    Raises:
        ConfigurationError: If there is no such file, it has no keys, or it is wrong.
    """

    def __init__(self, path: Path, begin: Callable[[str, Plan], object]) -> None:
        file = path / _SITE_FILE if path.is_dir() else path
        if not file.is_file():
            msg = (
                f"region.site: expected a site file at {file}, found none; `flare "
                f"accept INVITATION --home {path}` makes one"
            )
            raise ConfigurationError(msg)
        self._file = file
        self.site: Site = read_site(file)
        if secured_as(self.site) is None:
            msg = f"region.site: {file} has no keys, as `flare accept` writes them"
            raise ConfigurationError(msg)
        self._begin = begin
        self._begun = set[str]()
        self._stopped = threading.Event()
        self._control: Control | None = None
        self._thread = threading.Thread(target=self._listen, name="flare-above")

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def stop(self) -> None:
        """End it."""
        self._stopped.set()
        if self._control is not None:
            self._control.wake()
        if self._thread.is_alive():
            self._thread.join()

    def part_in(self, run: str) -> Site:
        """Return who the region is in a run; its keys may have been changed."""
        return msgspec.structs.replace(read_site(self._file), run=run)

    def _listen(self) -> None:
        while not self._stopped.is_set():
            try:
                self._serve()
            except FlareError as exc:  # a revoked key, say: it may be accepted again
                _log.warning("the server above: %s", exc)
                self._stopped.wait(_AGAIN_S)

    def _serve(self) -> None:
        site = read_site(self._file)
        secured = secured_as(site)
        assert secured is not None  # noqa: S101 - it was when this was made
        with Control(
            site.server,
            name=site.name,
            secured=secured,
            learnt=partial(remember, site),
        ) as control:
            self._control = control
            control.send(AwaitRuns(known=None))
            asked = time.monotonic()
            while not self._stopped.is_set():
                names = control.receive(list[SiteName], timeout_s=_LOOK_S)
                if names is not None:
                    self._take_part(names)
                late = time.monotonic() > asked + _LOOK_S
                if names is not None or (late and not control.lost):
                    control.send(AwaitRuns(known=names))
                    asked = time.monotonic()

    def _take_part(self, names: Sequence[str]) -> None:
        for name in sorted(set(names) - self._begun):
            link = ZmqLink(self.part_in(name))
            try:
                plan = link.plan()
            except FlareError as exc:
                _log.warning("run %s of the server above: %s", name, exc)
            else:
                self._begin(name, plan)
                self._begun.add(name)
            finally:
                link.close()
