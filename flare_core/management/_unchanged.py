"""The environment of a process whose script is federated as it is."""

import os
from collections.abc import Mapping

from flare_core._plugins import plugins

_STARTUP = "flare_core.startup"
"""Entry points for folders whose ``sitecustomize`` federates what Python runs."""


def adapted(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which an unchanged script takes part in a federation.

    What is installed in the group ``flare_core.startup`` acts there: on any Python
    process, however it is started, and where ``FLARE_ADAPT`` is ``1``.  ``FLARE_SITE``
    is left to the caller.

    Args:
        environment: The environment to start from; what the user put into
            ``PYTHONPATH`` stays, behind what is added.
    """
    given = [one for one in environment.get("PYTHONPATH", "").split(os.pathsep) if one]
    folders = [str(folder) for folder in plugins(_STARTUP)]
    path = [*folders, *(one for one in given if one not in folders)]
    return {
        **environment,
        "FLARE_ADAPT": "1",
        "PYTHONPATH": os.pathsep.join(path),
    }
