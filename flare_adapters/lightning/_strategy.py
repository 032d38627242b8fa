"""A Lightning strategy that brings the federation along."""

from functools import lru_cache
from os import PathLike
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator
from lightning.pytorch.strategies import (
    SingleDeviceStrategy,
    Strategy,
    StrategyRegistry,
)
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from flare_adapters.lightning._callback import FLCallback
from flare_core import OptimizerState, Select


class _Federated:
    """Mixed into a Lightning strategy's own class, so that each `isinstance` holds."""

    _fl_callback: FLCallback

    def connect(self, model: LightningModule) -> None:
        """Add the callback; the first thing a fit does, before any setup hook."""
        super().connect(model)  # type: ignore[misc] # the Lightning strategy's
        callbacks = model.trainer.callbacks
        if model.trainer.state.fn != "fit" or self._fl_callback in callbacks:
            return
        if any(isinstance(one, FLCallback) for one in callbacks):
            rank_zero_warn(
                "The Trainer has an FLCallback of its own: FLStrategy leaves the "
                "federation to it, and what FLStrategy was told (site, select, …) is "
                "not used"
            )
            return
        callbacks.insert(0, self._fl_callback)

    def __repr__(self) -> str:
        """Say what to do where a foreign Trainer refuses the object and quotes it."""
        return (
            f"<{type(self).__name__} of lightning.pytorch; in a pytorch_lightning."
            "Trainer use callbacks=[FLCallback()] instead>"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (type(self).__mro__[2], self.__getstate__())


def FLStrategy(  # noqa: N802 - stands where Lightning has a class
    base: str | Strategy,
    *,
    site: str | PathLike[str] | None = None,
    every_n_epochs: int | None = None,
    every_n_steps: int | None = None,
    select: Select = "auto",
    optimizer_state: OptimizerState = "keep",
) -> Strategy:
    """Return a Lightning strategy that also takes part in a federation.

    The base says how ranks work together inside the site, the federation how sites
    do.  What comes back is an instance of the base's class.

    Args:
        base: Any Lightning strategy, by its registered name (``"ddp"``,
            ``"ddp_spawn"``, ``"single_device"``, …) or as an object.
        site: As for `FLCallback`, like all that follows.
        every_n_epochs: See there.
        every_n_steps: See there.
        select: See there.
        optimizer_state: See there.

    Raises:
        ValueError: If the base is ``"auto"`` or not known to Lightning.
    """
    callback = FLCallback(
        site,
        every_n_epochs=every_n_epochs,
        every_n_steps=every_n_steps,
        select=select,
        optimizer_state=optimizer_state,
    )
    found = _named(base) if isinstance(base, str) else base
    strategy = _rebuilt(type(found), found.__getstate__())
    strategy._fl_callback = callback  # noqa: SLF001 - our own mixin
    return strategy


def _named(name: str) -> Strategy:
    if name == SingleDeviceStrategy.strategy_name:
        return SingleDeviceStrategy(_device())
    if name not in StrategyRegistry.available_strategies():
        advice = (
            "Lightning resolves it only when the Trainer knows its accelerator: add "
            "FLCallback() to the Trainer's callbacks instead"
            if name == "auto"
            else f"known are {', '.join(StrategyRegistry.available_strategies())}"
        )
        msg = f"FLStrategy({name!r}): no Lightning strategy to build on; {advice}"
        raise ValueError(msg)
    return StrategyRegistry.get(name)


def _device() -> str:
    """Return the device that ``accelerator="auto"`` would take."""
    if CUDAAccelerator.is_available():
        return "cuda:0"
    return "mps:0" if MPSAccelerator.is_available() else "cpu"


def _rebuilt(base: type[Strategy], state: Any) -> Any:
    made = _federated(base)  # type: ignore[arg-type] # mypy: a class is hashable
    strategy = object.__new__(made)
    strategy.__setstate__(state)
    return strategy


@lru_cache
def _federated(base: type[Strategy]) -> type[Strategy]:
    return type(f"Federated{base.__name__}", (_Federated, base), {})
