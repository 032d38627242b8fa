"""Runs when Python starts below ``flare run`` or ``flare simulate``.

Python runs the first ``sitecustomize`` it finds: this one hands on to the next.
"""

import os
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec


def _install() -> None:
    try:
        from flare_adapters._unchanged._imports import install  # noqa: PLC0415 - may fail
    except ModuleNotFoundError as exc:
        if exc.name != "flare_adapters":
            raise
        return  # this is another Python, with packages of its own
    install()


def _hand_on() -> None:
    here = os.path.realpath(os.path.dirname(__file__))
    others = [folder for folder in sys.path if os.path.realpath(folder) != here]
    spec = PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        module = module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


_install()
_hand_on()
