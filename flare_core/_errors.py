"""Every error of a federation, under one root.

::

    FlareError
    ├── ConfigurationError       a site file, plan or setting is wrong
    ├── ProtocolError            bytes from a peer that mean nothing
    ├── UnsupportedError         what was asked for cannot work here
    ├── HorizonError             the script's loop is shorter than the run
    ├── PolicyError              the site's own policy does not allow it
    ├── ServerUnreachableError   nobody answers at the server's address
    ├── AccessDeniedError        the server does not know this key
    ├── RequestDeniedError       the server will not do what was asked for
    ├── RunAbortedError          the server ended the run
    └── RefusedError             the server refused something of this site
        ├── LayoutError          its model differs from the other sites'
        ├── BaseModelError       its frozen base model differs
        ├── ScheduleError        its rounds are cut elsewhere
        ├── PlanError            its plan is not the run's
        └── UpdateError          its update cannot be averaged

A message says which site, tensor or file, what was expected, what came, and what
to do.  `PreflightPassed` is no error: it ends a script that only checks.
"""

from typing import Literal, TypeAlias, final

import msgspec

Reason: TypeAlias = Literal["layout", "base", "schedule", "plan", "update"]


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Why the server does not accept something of a site.

    Attributes:
        reason: What kind of thing was refused.
        site: The site it came from.
        what: The tensor, setting or number it is about, in words.
        expected: What would have been accepted.
        got: What came.
        advice: What the people at the site can do.
    """

    reason: Reason
    site: str
    what: str
    expected: str
    got: str
    advice: str

    def __str__(self) -> str:
        return (
            f"site {self.site!r}: {self.what}: expected {self.expected}, "
            f"got {self.got}; {self.advice}"
        )


class Violation(msgspec.Struct, frozen=True, kw_only=True):
    """What a site's own policy does not allow.

    Attributes:
        rule: The key of the site file, such as ``"policy.tensors"``.
        site: Whose policy it is.
        file: The site file.
        expected: What would be allowed.
        got: What came.
        advice: What the people at the site can do.
    """

    rule: str
    site: str
    file: str
    expected: str
    got: str
    advice: str

    def __str__(self) -> str:
        return (
            f"site {self.site!r}: {self.rule} in {self.file}: expected "
            f"{self.expected}, got {self.got}; {self.advice}"
        )


class FlareError(Exception):
    """What can go wrong in a federation."""


class ConfigurationError(FlareError):
    """A site file, a plan or a setting is wrong."""


class ProtocolError(FlareError):
    """A peer sent bytes that are no message of this protocol."""


class UnsupportedError(FlareError):
    """What was asked for cannot work here, and why."""


class HorizonError(FlareError):
    """The script's own loop ends before the run does."""


@final
class PolicyError(FlareError):
    """The site's own policy does not allow what the run asks for; nothing has left.

    Attributes:
        violation: The facts.
    """

    def __init__(self, violation: Violation) -> None:
        super().__init__(violation)
        self.violation = violation

    def __str__(self) -> str:
        return str(self.violation)


class RunAbortedError(FlareError):
    """The server ended the run before its last round."""


@final
class ServerUnreachableError(FlareError):
    """Nobody answered at the server's address.

    Attributes:
        address: Where the server was expected.
        waited_s: How long this site waited, in seconds.
    """

    def __init__(self, address: str, waited_s: float) -> None:
        super().__init__(address, waited_s)
        self.address = address
        self.waited_s = waited_s

    def __str__(self) -> str:
        return (
            f"no server answers at {self.address} (waited {self.waited_s:g} s); "
            "is it running, is its run not over, and does the site file name the "
            "right address and `server_key`?"
        )


@final
class AccessDeniedError(FlareError):
    """The server does not know the key that was shown to it.

    Attributes:
        name: Who showed it.
        address: The server's.
    """

    def __init__(self, name: str, address: str) -> None:
        super().__init__(name, address)
        self.name = name
        self.address = address

    def __str__(self) -> str:
        return (
            f"the server at {self.address} does not let {self.name!r} in: its key was "
            "revoked or never enrolled; ask for an invitation, then `flare accept` it"
        )


class RequestDeniedError(FlareError):
    """The server will not do what was asked for, and says why."""


class RefusedError(FlareError):
    """The server refused something of this site.

    Attributes:
        refusal: The facts.
    """

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal)
        self.refusal = refusal

    def __str__(self) -> str:
        return str(self.refusal)


@final
class LayoutError(RefusedError):
    """The site's model has other tensors than the other sites'."""


@final
class BaseModelError(RefusedError):
    """The site trains on another frozen base model than the other sites."""


@final
class ScheduleError(RefusedError):
    """The site cuts its training into other rounds than the other sites."""


@final
class PlanError(RefusedError):
    """The site understood another plan than the one that is played."""


@final
class UpdateError(RefusedError):
    """The site's update cannot be averaged."""


@final
class PreflightPassed(SystemExit):
    """Ends the script of a site in a pre-flight: all was compared, nothing trained."""


_REFUSED: dict[Reason, type[RefusedError]] = {
    "layout": LayoutError,
    "base": BaseModelError,
    "schedule": ScheduleError,
    "plan": PlanError,
    "update": UpdateError,
}


def refused(refusal: Refusal) -> RefusedError:
    """Return the error that a refusal is at the site it concerns."""
    return _REFUSED[refusal.reason](refusal)
