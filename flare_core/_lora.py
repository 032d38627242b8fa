"""The table of a plan that says what becomes of LoRA weights."""

from typing import Annotated, Literal, TypeAlias

import msgspec

Aggregate: TypeAlias = Literal[
    "auto",
    "product",
    "fedavg",
    "freeze_a",
    "alternate",
    "share_a",
    "fedsvd",
    "pad",
]
Residual: TypeAlias = Literal["drop", "adapter", "fold"]
_TRAINED_IN_PART = {"freeze_a", "alternate", "share_a", "fedsvd"}
"""Where sites train, or send, one of the factors only."""


class Lora(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How LoRA weights are combined, in models that have some.

    What they add to the weight of a module is the product of two factors, B A.

    Attributes:
        aggregate: ``"product"`` takes the factors whose product is nearest to the mean
            of the sites' products; ``"fedavg"`` averages each factor by itself;
            ``"auto"`` is the first where the rest of the plan allows it, else the
            second.  With ``"freeze_a"`` sites train B only, with ``"alternate"`` B and
            A in turn, with ``"share_a"`` B stays at its site: so averages are exact.
            ``"fedsvd"`` is ``"freeze_a"`` with another A in each round, and ``"pad"``
            is ``"fedavg"`` weighed by the lengths of the products.
        rank: That of the global factors, where sites may have other ones up to this,
            and other scales; if not set, all sites must have the same.
        residual: What sites do with the global ranks that theirs cannot hold:
            ``"drop"`` them, keep them as a second, frozen ``"adapter"``, or ``"fold"``
            them into the weights of the base.
    """

    aggregate: Aggregate = "auto"
    rank: Annotated[int, msgspec.Meta(ge=1)] | None = None
    residual: Residual = "drop"

    def __post_init__(self) -> None:
        if self.rank is not None and self.aggregate in _TRAINED_IN_PART:
            msg = (
                f"lora.rank lets sites have other ranks, and lora.aggregate = "
                f"{self.aggregate!r} needs the same at all: leave one out"
            )
            raise ValueError(msg)
        if self.residual != "drop" and (
            self.rank is None or self.aggregate != "product"
        ):
            msg = (
                f"lora.residual = {self.residual!r} is for the ranks beyond those of "
                "the sites that the products of all have: expected lora.rank, and "
                f"lora.aggregate = 'product', not {self.aggregate!r}"
            )
            raise ValueError(msg)

    @property
    def concerns_sites(self) -> bool:
        """Whether sites have to do something for it."""
        return self.rank is not None or self.aggregate in _TRAINED_IN_PART

    @property
    def takes_turns(self) -> bool:
        """Whether sites freeze one of the factors in a round."""
        return self.aggregate in _TRAINED_IN_PART - {"share_a"}
