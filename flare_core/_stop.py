"""Which global model of a run is its best, and when the run ends before its rounds."""

from typing import Annotated, Literal, TypeAlias

import msgspec

_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]
Mode: TypeAlias = Literal["min", "max"]


class Stop(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
):
    """By which metric global models are compared, and what ends the run early.

    Attributes:
        metric: A metric that the sites report of global models, averaged over those who
            do, by their examples; the best model by it is kept.
        mode: Whether the least value is the best, or the greatest.
        patience: The run ends once so many models, one after the other, were not
            better than the best one before.
        target: The run ends with the first model that is as good.
    """

    metric: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    mode: Mode = "min"
    patience: _Count | None = None
    target: float | None = None

    def __post_init__(self) -> None:
        for name in ("patience", "target"):
            if self.metric is None and getattr(self, name) is not None:
                msg = f"{name} = {getattr(self, name)}: say of which metric, in metric"
                raise ValueError(msg)
