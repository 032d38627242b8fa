"""What can happen to a federation, drawn from a seed."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

SERVER = "server"
Party: TypeAlias = str
"""The server, or a site by its name."""
Kind: TypeAlias = Literal[
    "kill", "kill at", "stop", "cut", "stall", "unplug", "slow", "disk full", "garble"
]
_AT_SERVER = (
    "before commit",
    "after commit",
    "during fold",
    "before publish",
    "after publish",
    "before updates are kept",
    "after updates are kept",
    "before a model is kept",
    "after a model is kept",
    "while it serves",
)
_AT_SITE = (
    "before hand-in",
    "after hand-in",
    "during upload",
    "during download",
    "before good-bye",
)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that happens once.

    Attributes:
        kind: What.
        party: To whom.
        moment: When, as a fraction of the time that the run takes by itself.
        point: Where the process is killed.
        times: How often it gets there before.
        at: The byte that a connection is cut, stalled or unplugged at.
        seconds: How long it is unplugged.
        silent: Whether nobody is told that it is.
        seed: Of what is random in it.
    """

    kind: Kind
    party: Party
    moment: float = 0.0
    point: str = ""
    times: int = 1
    at: int = 0
    seconds: float = 0.0
    silent: bool = False
    seed: int = 0

    def __str__(self) -> str:
        match self.kind:
            case "kill at":
                return f"kill {self.party} {self.point} ({self.times})"
            case "kill" | "stop" | "disk full":
                return f"{self.kind} {self.party} at {self.moment:.2f}"
            case "cut" | "stall":
                return f"{self.kind} {self.party} at byte {self.at:,}"
            case "unplug":
                how = "silently " if self.silent else ""
                return f"unplug {self.party} {how}for {self.seconds:g} s"
            case _:
                return f"{self.kind} {self.party}"


def draw(
    rng: random.Random, sites: Sequence[str], num_bytes: int, points: Sequence[str] = ()
) -> Fault:
    """Return a fault of a kind that each is as likely as the others.

    Args:
        rng: Draws it.
        sites: Their names.
        num_bytes: Of the model.
        points: Where else a site can be killed.
    """
    kinds: tuple[Kind, ...] = (
        "kill",
        "kill at",
        "kill at",
        "stop",
        "cut",
        "stall",
        "slow",
        "disk full",
        "garble",
    )
    kind = rng.choice(kinds)
    party = rng.choice([SERVER, *sites])
    if kind in ("cut", "stall", "slow"):
        party = rng.choice(list(sites))
    if kind == "disk full":
        party = SERVER
    at_site = (*_AT_SITE, *points)
    return Fault(
        kind=kind,
        party=party,
        moment=rng.random(),
        point=rng.choice(_AT_SERVER if party == SERVER else at_site),
        times=rng.randint(1, 4),
        at=rng.randint(0, 3 * num_bytes + 4096),
        seed=rng.randrange(2**32),
    )
