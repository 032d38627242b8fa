"""When a round ends that not all sites have answered."""

import math
import time
from typing import final

from flare_core._round_policy import RoundPolicy


@final
class Deadline:
    """The clock of one round; a server that is started again begins to count anew.

    Args:
        policy: The plan's word.

    Attributes:
        due: When to look at it, on the monotonic clock; infinite if never.
        passed: Whether the round ends as soon as it has a quorum.
    """

    def __init__(self, policy: RoundPolicy) -> None:
        self._grace_s = policy.grace_s
        self.passed = False
        self.due = math.inf
        if policy.deadline_s is not None:
            self.due = time.monotonic() + policy.deadline_s

    def quorum(self) -> None:
        """Note that there is a quorum: the others have their grace from now on."""
        if self._grace_s == 0:
            self.strike()
        elif self._grace_s is not None:
            self.due = min(self.due, time.monotonic() + self._grace_s)
            self._grace_s = None

    def strike(self) -> None:
        """Note that it is time."""
        self.due, self.passed = math.inf, True
