"""What an adapter speaks to: four verbs, whatever carries them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, final

from flare_core._errors import ConfigurationError
from flare_core._model import GlobalModel, Metrics, ModelState, TensorSpec, Update
from flare_core._plan import Plan, Schedule
from flare_core._plugins import plugin
from flare_core._site import Site


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """What a site brings to a run before it starts.

    Attributes:
        weights: The tensors it would exchange, with the values it has now.
        base: Fingerprint of the frozen tensors it keeps; empty if nothing is frozen.
        schedule: Where its rounds end; empty for a loop with rounds of its own.
        stays: The tensors that never leave it.
        horizon: What the script's own loop was set to, in words.
        scales: By which LoRA weights are multiplied at the site, by the name of the
            second factor; all sites must have the same.
    """

    weights: ModelState
    base: str = ""
    schedule: Schedule = field(default_factory=Schedule)
    stays: tuple[TensorSpec, ...] = ()
    horizon: str = ""
    scales: Mapping[str, float] = field(default_factory=dict[str, float])


class Link(Protocol):
    """A site's connection to the runtime that plays the rounds.

    Every method blocks, may be called from one thread only, and raises
    `RunAbortedError` if the run has ended, `RefusedError` if the site is not
    accepted, and `ServerUnreachableError` if nobody answers.
    """

    @property
    def run(self) -> str:
        """The run's own name; empty before `plan`."""
        ...

    def plan(self) -> Plan:
        """Return the run's plan."""
        ...

    def join(self, proposal: Proposal) -> GlobalModel:
        """Take part: return the model of the first round to play."""
        ...

    def resume(self, proposal: Proposal, update: Update) -> GlobalModel:
        """Take part again in a run that this site was in before it was started again.

        Args:
            proposal: As for `join`.
            update: Of the last round that it trained in.  It is handed in if the
                server waits for it; whether it had arrived before does not matter.

        Returns:
            The model of the round to play next.
        """
        ...

    def exchange(self, update: Update) -> GlobalModel:
        """Hand in an update and return the next global model.

        The update's arrays are read until this returns and not kept.
        """
        ...

    def leave(
        self, metrics: Metrics, *, reason: str = "", failed: bool = False
    ) -> None:
        """Go.

        Args:
            metrics: Scalars of the last global model.
            reason: Why, if it is not the end of the run.
            failed: Whether an error is the reason.
        """
        ...


def connect(site: Site) -> Link:
    """Return the link that a site file asks for; nothing is sent yet.

    Raises:
        ConfigurationError: If the site has no server, or no such link is installed.
    """
    if not site.federated:
        msg = f"site {site.name!r} has no server to speak to"
        raise ConfigurationError(msg)
    make: Callable[[Site], Link] = plugin("flare_core.links", site.link)
    return make(site)
