"""What of a model is exchanged, in which form, and what of it stays."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol, final

from torch import Tensor, nn

from flare_adapters._torch._host import Host
from flare_adapters._torch._ranks import Ranks
from flare_adapters._torch._select import choose, control, members
from flare_adapters._torch._state import (
    fingerprint,
    frozen,
    gather,
    refuse_thawed,
    scatter,
    stays,
    trainable,
)
from flare_core import Lora, ModelState, Select, TensorSpec, UnsupportedError


class Form(Protocol):
    """Another form that weights have on the wire than in the model."""

    @property
    def beside(self) -> Collection[str]:
        """Names of parameters that take part, though they are not trained."""
        ...

    def leaving(self, weights: ModelState) -> ModelState:
        """Return the site's own weights as they travel; on the first rank only."""
        ...

    def arrived(self, weights: ModelState) -> ModelState:
        """Return a global model as the site has it; on the first rank only."""
        ...

    def loaded(self) -> None:
        """Do what is left when a global model was loaded; on all ranks."""
        ...


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """What is special about the tensors of a model on the wire.

    Attributes:
        names: Other names there, by name in the model.
        private: Names in the model of what is this site's own: it neither leaves nor
            belongs to the base that all sites share.
        form: Of the weights there, if it is another one.
        scales: By which tensors are multiplied where they are used, as all sites must
            have it; by name there.
        lora: Whether the adapter does what a plan's table ``lora`` asks of sites.
    """

    names: Mapping[str, str] = field(default_factory=dict[str, str])
    private: Collection[str] = ()
    form: Form | None = None
    scales: Mapping[str, float] = field(default_factory=dict[str, float])
    lora: bool = False

    def refuse(self, lora: Lora) -> None:
        """Raise if a plan asks of sites what the adapter does not do.

        Raises:
            UnsupportedError: If so.
        """
        if lora.concerns_sites and not self.lora:
            msg = (
                f"the plan's lora.aggregate = {lora.aggregate!r} and lora.rank = "
                f"{lora.rank} need sites that do something for it, which only "
                "flare_adapters.huggingface does: expected lora.aggregate = "
                '"product" or "fedavg", and no lora.rank'
            )
            raise UnsupportedError(msg)


@final
class Exchanged:
    """The part of a model that takes part in a run.

    Args:
        model: The model that is trained, wrapped or not.
        select: Which tensors are exchanged.
        wire: What is special about them there.
        ranks: Of the site.
        host: Where tensors of a device are copied to.

    Attributes:
        base: Names of what is frozen and stays: as the script makes it, always.
        fingerprint: Of that, to be compared with other sites'.
        stays: The tensors that never leave.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        select: Select,
        wire: Wire,
        ranks: Ranks,
        host: Host,
    ) -> None:
        self._members = members(model)
        self._ranks = ranks
        self._host = host
        self._form = wire.form
        private = wire.private
        shared = {n: one for n, one in self._members.items() if n not in private}
        self._chosen = choose(shared, select, names=wire.names)
        if wire.form is not None:
            self._chosen |= {name: name for name in wire.form.beside}
        self.base: list[str] = frozen(shared, self._chosen)
        self.fingerprint: str = fingerprint(self._members, self.base)
        self.stays: tuple[TensorSpec, ...] = stays(self._members, self._chosen)

    @property
    def trained(self) -> dict[str, Tensor]:
        """The exchanged parameters that training changes, by name on the wire."""
        return trainable(self._members, self._chosen)

    def add_controls(self, tensors: Mapping[str, Tensor]) -> None:
        """Exchange these beside the model, by name on the wire."""
        for wire, tensor in tensors.items():
            self._members[wire] = control(tensor)
            self._chosen[wire] = wire

    def gather(self) -> ModelState:
        """Return the weights as they travel; on other ranks than the first, none."""
        weights = gather(self._members, self._chosen, self._ranks, self._host)
        if self._form is None or not self._ranks.first:
            return weights
        return self._form.leaving(weights)

    def scatter(self, weights: ModelState) -> None:
        """Copy a global model of the first rank into the model, on all ranks.

        Raises:
            ConfigurationError: If names, types or shapes are not those of the model.
        """
        if self._form is not None and self._ranks.first:
            weights = self._form.arrived(weights)
        scatter(weights, self._members, self._chosen, self._ranks)
        if self._form is not None:
            self._form.loaded()

    def refuse_thawed(self) -> None:
        """Raise if what was frozen when the run began is trained now.

        Raises:
            UnsupportedError: If so.
        """
        refuse_thawed(self._members, self.base)
