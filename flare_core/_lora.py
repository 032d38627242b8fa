"""The table of a plan that says what becomes of LoRA weights."""

from typing import Annotated, Literal, TypeAlias

import msgspec

Aggregate: TypeAlias = Literal[
    "auto",
    "product",
    "stack",
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
            is ``"fedavg"`` weighed by the lengths of the products.  With ``"stack"``
            the mean of the products goes to the residual as a whole, and sites begin
            each round with a B of 0.
        rank: That of the global factors, where sites may have other ones up to this,
            and other scales; if not set, all sites must have the same.
        residual: What sites do with the global ranks that theirs cannot hold:
            ``"drop"`` them, keep them as a second, frozen ``"adapter"``, or ``"fold"``
            them into the weights of the base.
        fresh: How many of the global ranks are for what sites train in a round, with
            ``"stack"``; none of them has a higher one.
    """

    aggregate: Aggregate = "auto"
    rank: Annotated[int, msgspec.Meta(ge=1)] | None = None
    residual: Residual = "drop"
    fresh: Annotated[int, msgspec.Meta(ge=1)] | None = None

    def __post_init__(self) -> None:
        if self.rank is not None and self.aggregate in _TRAINED_IN_PART:
            msg = (
                f"lora.rank lets sites have other ranks, and lora.aggregate = "
                f"{self.aggregate!r} needs the same at all: leave one out"
            )
            raise ValueError(msg)
        if self.residual != "drop" and (
            self.rank is None or self.aggregate not in {"product", "stack"}
        ):
            msg = (
                f"lora.residual = {self.residual!r} is for the ranks beyond those of "
                "the sites that the products of all have: expected lora.rank, and "
                f"lora.aggregate = 'product' or 'stack', not {self.aggregate!r}"
            )
            raise ValueError(msg)
        if (self.aggregate == "stack") != (self.fresh is not None):
            msg = (
                "lora.aggregate = 'stack' and lora.fresh, the highest rank of a site, "
                f"go together: expected both or none, got {self.aggregate!r} and "
                f"{self.fresh}"
            )
            raise ValueError(msg)
        if self.fresh is not None and (
            self.residual == "drop" or self.rank is None or self.rank <= self.fresh
        ):
            msg = (
                "lora.aggregate = 'stack' keeps what all have learned beside what "
                "sites train: expected lora.residual = 'adapter' or 'fold', and "
                f"lora.rank above lora.fresh = {self.fresh}, got {self.residual!r} "
                f"and {self.rank}"
            )
            raise ValueError(msg)

    @property
    def concerns_sites(self) -> bool:
        """Whether sites have to do something for it."""
        return self.rank is not None or self.aggregate in _TRAINED_IN_PART

    @property
    def place(self) -> int:
        """The first of the global ranks that are a site's own."""
        return 0 if self.rank is None or self.fresh is None else self.rank - self.fresh

    @property
    def takes_turns(self) -> bool:
        """Whether sites freeze one of the factors in a round."""
        return self.aggregate in _TRAINED_IN_PART - {"share_a"}
