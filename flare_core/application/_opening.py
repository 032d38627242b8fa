"""What a run starts from: the weights of the first site by name."""

from dataclasses import dataclass
from pathlib import Path
from typing import final

from flare_core._model import Layout
from flare_core.application._distribution import Send
from flare_core.application._intake import Intake
from flare_core.application._lobby import Lobby
from flare_core.communication import INITIAL, Parcel, Propose


@final
@dataclass(frozen=True, slots=True)
class Initial:
    """Weights that a run can start from.

    Attributes:
        parcel: What arrived.
        stream: The XXH3-128 of its file.
        layout: Of what is in it.
    """

    parcel: Parcel
    stream: bytes
    layout: Layout

    @property
    def path(self) -> Path:
        """The file that they arrived in."""
        assert self.parcel.path is not None  # noqa: S101 - only a later one is short
        return self.parcel.path


@final
class Opening:
    """Asks the first site by name for its weights, whoever comes and goes meanwhile.

    Args:
        lobby: Who has joined.
        intake: Receives the weights.
        send: How to reach a site.
    """

    def __init__(self, lobby: Lobby, intake: Intake, send: Send) -> None:
        self._lobby = lobby
        self._intake = intake
        self._send = send
        self._asked = ""
        self._initial: Initial | None = None

    def advance(self) -> Initial | None:
        """Ask, if all have joined; return what was asked for once it is here."""
        if not self._lobby.full:
            return None
        opener = self._lobby.opener
        if self._asked != opener:
            self.forget(self._asked)
            self._asked = opener
            layout = self._lobby.joined[opener].layout
            self._intake.begin(INITIAL, [opener], layout, None)
            self._send(opener, Propose())
        return self._initial

    def arrived(self, initial: Initial) -> None:
        """Take the weights that were asked for; others are ignored.

        So are those that a site handed in before it left, or was not the first one by
        name any more.
        """
        parcel = initial.parcel
        if parcel.site == self._asked and self._intake.has(parcel.site, parcel.offer):
            self._initial = initial

    def repeat(self, site: str) -> None:
        """Ask again, if it was this site, after a break."""
        if site == self._asked:
            self._send(site, Propose())

    def forget(self, site: str) -> None:
        """Do without a site, which may have been asked."""
        if site == self._asked:
            self._asked, self._initial = "", None
            self._intake.forget(site)
