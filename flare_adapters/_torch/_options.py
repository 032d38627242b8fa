"""What a user may say at the callback, and what becomes of it under a plan."""

import logging
from os import PathLike

import msgspec

from flare_core import OptimizerState, Plan, Schedule, Select

_log = logging.getLogger(__name__)
_ONCE_AN_EPOCH = Schedule(every_n_epochs=1)


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """The arguments that the three adapters share; plain data, so it pickles.

    Attributes:
        site: The site file; None takes the one that ``FLARE_SITE`` names.
        schedule: Where a round ends.
        select: Which tensors are exchanged.
        optimizer_state: Whether the optimizer keeps its moments across rounds.
    """

    site: str | None
    schedule: Schedule
    select: Select
    optimizer_state: OptimizerState

    def under(self, plan: Plan) -> "Options":
        """Return the options with the plan's word put first."""
        schedule = self.schedule if self.schedule.given else _ONCE_AN_EPOCH
        if plan.schedule.given:
            if self.schedule.given and self.schedule != plan.schedule:
                _log.warning(
                    "the plan says %s, the script %s: the plan holds",
                    plan.schedule,
                    self.schedule,
                )
            schedule = plan.schedule
        return msgspec.structs.replace(
            self,
            schedule=schedule,
            select=self.select if plan.select is None else plan.select,
            optimizer_state=plan.optimizer_state or self.optimizer_state,
        )


def options(
    site: str | PathLike[str] | None,
    every_n_epochs: int | None,
    every_n_steps: int | None,
    select: Select,
    optimizer_state: OptimizerState,
) -> Options:
    """Return the options that these arguments are.

    Raises:
        ValueError: If both schedules are given, or a value is none of the possible.
    """
    schedule = Schedule(every_n_epochs=every_n_epochs, every_n_steps=every_n_steps)
    found = Options(
        site=None if site is None else str(site),
        schedule=schedule,
        select=select if isinstance(select, str) else list(select),
        optimizer_state=optimizer_state,
    )
    try:
        return msgspec.convert(msgspec.to_builtins(found), Options)
    except msgspec.ValidationError as exc:
        msg = str(exc)
        raise ValueError(msg) from None
