"""Where the ``sitecustomize`` is that the processes of a site start with."""

from pathlib import Path

STARTUP = str(Path(__file__).parents[1] / "_startup")
"""The folder to put on ``PYTHONPATH``."""
