"""Who trains when, and who combines what: the table of a plan that says so."""

from typing import Annotated, ClassVar, TypeAlias

import msgspec

from flare_core._round_policy import RoundPolicy
from flare_core._selection import Selection


class _Topology(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="name",
):
    """The table ``[topology]`` of a plan, told apart by its name."""

    settles: ClassVar[tuple[str, ...]] = ()
    """Settings that follow from it."""

    def settled(
        self, selection: Selection, policy: RoundPolicy
    ) -> tuple[Selection, RoundPolicy]:
        """Return how sites are chosen and rounds end, as it has to be with this.

        What a plan may not say then, is in `flare_core._pairs`.
        """
        return selection, policy


class Star(_Topology, frozen=True, tag="star"):
    """The sites of a cohort train at the same time; the server combines their updates.

    The next round starts when all of them are in, or those that the plan waits for.
    """


class Cyclic(_Topology, frozen=True, tag="cyclic"):
    """The sites train one model in turn, a round each, in the order of their names.

    Nothing is averaged: what a site hands in is what the next one starts from (cyclic
    weight transfer: Chang et al., JAMIA 25(8), 2018,
    https://doi.org/10.1093/jamia/ocy017).

    Attributes:
        pass_on: Whether the turn of a site that is gone passes to another one; else the
            run waits for it.
    """

    settles: ClassVar = ("selection.choose", "selection.k", "selection.quorum")
    pass_on: bool = False

    def settled(
        self, selection: Selection, policy: RoundPolicy
    ) -> tuple[Selection, RoundPolicy]:
        """Have each round be of one site, whose turn it is."""
        turns = {"choose": "round_robin", "k": 1, "quorum": None}
        return msgspec.structs.replace(selection, **turns), policy


class Asynchronous(_Topology, frozen=True, tag="async"):
    r"""Sites train all the time, and a few of their updates make the next model.

    Nobody waits for slower sites.  An update counts as the step that it is from the
    model which its site started from; where :math:`s` models came since, as
    :math:`1/\sqrt{1+s}` of it (FedBuff: Nguyen et al., AISTATS 2022, algorithm 1,
    https://arxiv.org/abs/2106.06639).  A site is in a model once; it gets that model as
    soon as it is made.

    Attributes:
        buffer: How many updates make a model.
        most_staleness: An update is refused where more models than these came since.
    """

    settles: ClassVar = ("selection.quorum", "round.grace_s")
    buffer: Annotated[int, msgspec.Meta(ge=1)]
    most_staleness: Annotated[int, msgspec.Meta(ge=0)] = 10

    def settled(
        self, selection: Selection, policy: RoundPolicy
    ) -> tuple[Selection, RoundPolicy]:
        """Have a round end with as many updates as the buffer has, and wait no more."""
        del policy
        if self.buffer > selection.sites:
            msg = (
                f"topology.buffer = {self.buffer} can never be filled by "
                f"selection.sites = {selection.sites}: a site is in a model once"
            )
            raise ValueError(msg)
        return (
            msgspec.structs.replace(selection, quorum=self.buffer),
            RoundPolicy(grace_s=0),
        )


class Hierarchical(_Topology, frozen=True, tag="hierarchical"):
    """Sites train at the same time; their updates are added up by region first.

    A region's own server, which is a site here, adds up those of its sites and hands in
    one sum; or sites called ``REGION.SITE`` take part directly.  The global model has
    the same bits either way.
    """


class Swarm(_Topology, frozen=True, tag="swarm"):
    """Sites train at the same time, and one of them combines the updates, in turn.

    The server hands them on and cannot read them: they are sealed with a key that the
    sites share (swarm learning: Warnat-Herresthal et al., Nature 594, 2021,
    https://doi.org/10.1038/s41586-021-03583-3).  The global model has the same bits as
    in a star, whoever combines.
    """


Topology: TypeAlias = Star | Cyclic | Asynchronous | Hierarchical | Swarm
