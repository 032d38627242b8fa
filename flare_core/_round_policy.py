"""When a round ends that not all sites have answered: the table of a plan about it."""

from typing import Annotated

import msgspec


class RoundPolicy(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """When a round ends that not all sites have answered, and what comes after it.

    Attributes:
        deadline_s: Seconds from the start of a round, after which it ends with the
            updates that are in; without a quorum of them it ends as soon as there is.
        grace_s: Seconds that the others still have once a quorum of updates is in.
        late_weight: An update that comes one round late is counted in that round, as
            the step that it is, with this share of its examples; if not set, it is
            refused.
    """

    deadline_s: Annotated[float, msgspec.Meta(gt=0)] | None = None
    grace_s: Annotated[float, msgspec.Meta(ge=0)] | None = None
    late_weight: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
