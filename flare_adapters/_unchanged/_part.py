"""Whether a script is to be federated, and which of its trainings is the one.

A process has one part in a run, and its first training plays it.  That is noted where
it was asked for, in the environment: so it holds for all frameworks of a script, and
for programs that it starts afterwards.
"""

import os
import sys

_VARIABLE = "FLARE_ADAPT"
_ASKED, _TAKEN = "1", "taken"
_SPEAKS = "flare_core.application"
"""Loaded by each adapter and by `flare_core.join`, and by nothing else."""


def asked() -> bool:
    """Return whether this process is to be federated, or is already."""
    state, site = os.environ.get(_VARIABLE), os.environ.get("FLARE_SITE")
    if site == "off" or state not in {_ASKED, _TAKEN}:
        return False
    return state == _TAKEN or _SPEAKS not in sys.modules


def take(training: str) -> bool:
    """Return whether this training is the one that takes part.

    That is the first one of a script which has no adapter of its own: a script that
    has imported one says by itself which training takes part.

    Args:
        training: What it is called, for the warning that it comes too late.
    """
    if not asked():
        return False
    if os.environ[_VARIABLE] == _TAKEN:
        warn(
            "%s trains at this site alone, and nothing of it is exchanged: the first "
            "training of a script takes part in the run, and that one has begun "
            "before; to choose another one, give it the callback or handler of "
            "flare_adapters",
            training,
        )
        return False
    os.environ[_VARIABLE] = _TAKEN
    return True


def warn(message: str, *args: object) -> None:
    """Log a warning."""
    import logging  # noqa: PLC0415 - half of what a process would load at its start

    logging.getLogger(__name__).warning(message, *args)
