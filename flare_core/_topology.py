"""Who trains when, and who combines what: the table of a plan that says so."""

from typing import TypeAlias

import msgspec


class _Topology(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="name",
):
    """The table ``[topology]`` of a plan, told apart by its name."""


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

    pass_on: bool = False


Topology: TypeAlias = Star | Cyclic
