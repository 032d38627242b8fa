"""Runs a server or a site's script, and kills it at a named point or garbles its words.

``python process.py server FOLDER`` or ``python process.py SCRIPT ARGUMENTS``.  The
environment variable ``CHAOS`` says in JSON what to do to this process; without it, the
process is as good as any other.
"""

import functools
import importlib
import json
import os
import random
import runpy
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_ARCHIVE = ("flare_core.application._archive", "Archive")
_CHECKPOINT = ("flare_adapters._torch._checkpoint", "RoundCheckpoint")
_STORE = ("flare_core.application._run_store", "RunStore")
_SESSION = ("flare_core.communication._session", "Session")
_DISTRIBUTION = ("flare_core.application._distribution", "Distribution")
_LINK = ("flare_core.application._zmq_link", "ZmqLink")
POINTS = {
    "before commit": (*_STORE, "committed", "before"),
    "after commit": (*_STORE, "committed", "after"),
    "during fold": ("flare_core.application._aggregator", "Aggregator", "add", "after"),
    "before publish": (*_STORE, "published", "before"),
    "after publish": (*_STORE, "published", "after"),
    "before updates are kept": (*_ARCHIVE, "keep_updates", "before"),
    "after updates are kept": (*_ARCHIVE, "keep_updates", "after"),
    "before a model is kept": (*_ARCHIVE, "keep_model", "before"),
    "after a model is kept": (*_ARCHIVE, "keep_model", "after"),
    "while it serves": (*_DISTRIBUTION, "serve", "after"),
    "before hand-in": (*_LINK, "_hand_in", "before"),
    "after hand-in": (*_LINK, "_offer", "after"),
    "during upload": (*_SESSION, "_send_chunks", "after"),
    "during download": (*_SESSION, "_received", "after"),
    "before its turn": ("flare_core.application._turn", "Turn", "take", "before"),
    "during its turn": ("flare_core.application._turn", "Turn", "finish", "after"),
    "before good-bye": (*_LINK, "leave", "before"),
    "before checkpoint": (*_CHECKPOINT, "begin", "before"),
    "during checkpoint": (*_CHECKPOINT, "finish", "before"),
    "after checkpoint": (*_CHECKPOINT, "finish", "after"),
}
"""Where a process can be killed: module, class, method, and before or after it."""


def main() -> None:
    """Do as the module says."""
    plan = json.loads(os.environ.get("CHAOS", "{}"))
    if "point" in plan:
        _kill_at(plan["point"], plan["times"], Path(plan["marker"]))
    if "garble" in plan:
        _garble(plan["garble"])
    if sys.argv[1] == "server":
        cli = importlib.import_module("flare_core.management.cli")
        sys.argv = ["flare", "server", "start", sys.argv[2]]
        cli.main()
    else:
        sys.argv = sys.argv[1:]
        runpy.run_path(sys.argv[0], run_name="__main__")


def _kill_at(point: str, times: int, marker: Path) -> None:
    """Have this process killed at a point, the n-th time that it gets there, once."""
    module, kind, method, when = POINTS[point]
    owner = getattr(importlib.import_module(module), kind)
    original = getattr(owner, method)
    left = [times]

    def die() -> None:
        left[0] -= 1
        if left[0]:
            return
        try:
            marker.touch(exist_ok=False)
        except FileExistsError:  # it was, before it was started again
            return
        os.kill(os.getpid(), signal.SIGKILL)

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if when == "before":
            die()
        result = original(*args, **kwargs)
        if when == "after":
            die()
        return result

    setattr(owner, method, wrapped)


def _garble(seed: int) -> None:
    """Have messages sent twice, and some of them after the next one."""
    zmq = importlib.import_module("flare_core.communication._zmq")
    rng = random.Random(seed)  # noqa: S311 - to be had again
    for kind in (zmq.ZmqDealer, zmq.ZmqRouter):
        _garble_one(kind, rng)


def _garble_one(kind: Any, rng: random.Random) -> None:
    send, receive = kind.send, kind.receive
    held: list[tuple[Any, ...]] = []

    def garbled(self: Any, *message: Any) -> bool | None:
        if not held and rng.random() < 0.1:
            held.append(message)
            return True
        answer = send(self, *message)
        if rng.random() < 0.2:
            send(self, *message)
        _let_go(functools.partial(send, self), held)
        return bool(answer)

    def patient(self: Any, **kwargs: Any) -> Any:
        _let_go(functools.partial(send, self), held)
        return receive(self, **kwargs)

    kind.send, kind.receive = garbled, patient


def _let_go(send: Callable[..., Any], held: list[tuple[Any, ...]]) -> None:
    while held:
        send(*held.pop())


main()
