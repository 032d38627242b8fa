"""The program that imports what a script imports, and forks a process for each site.

It is run by its path, in a Python of its own, and imports nothing of this package: what
it has loaded, every site has.  `flare_core.management._forks` speaks to it.

A site must not be able to tell that it was not started afresh.  So only the imports at
the very top of the script are made, in their order, and only as long as they are of
installed packages: what follows the first other statement may depend on it.
"""

import ast
import builtins
import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import find_spec
from pathlib import Path
from types import FrameType, ModuleType, TracebackType
from typing import Any, final

_STDLIB = sysconfig.get_path("stdlib")
_INSTALLED = {"dist-packages", "site-packages"}
_OURS = {"flare_adapters", "flare_core"}
_FROZEN = "<frozen importlib._bootstrap"


@final
@dataclass(frozen=True)
class Task:
    """What a forked process does.

    Attributes:
        words: The script and its arguments.
        environment: All its variables.
        log: Its output goes there, behind what is there already.
    """

    words: list[str]
    environment: dict[str, str]
    log: str


def main(line: socket.socket, script: Path) -> Task | None:
    """Serve; returns in a forked process, with its task, or when nobody asks any more.

    Args:
        line: Tasks come from there, and what becomes of them goes there, as lines.
        script: What the processes will run.
    """
    preload(script)
    _say(line, unfit=unfit())
    gc.collect()
    gc.freeze()  # else the collector would write to all pages that are shared
    wake, python = socket.socketpair()
    python.setblocking(False)  # Python asks for it
    signal.set_wakeup_fd(python.fileno())
    signal.signal(signal.SIGCHLD, _pass)
    unread = b""
    while True:
        ready, _, _ = select.select([line, wake], [], [])
        if wake in ready:
            wake.recv(4096)
            _tell_who_ended(line)
        if line not in ready:
            continue
        got = line.recv(1 << 16)
        if not got:
            return None
        *orders, unread = (unread + got).split(b"\n")
        for order in orders:
            task = Task(**json.loads(order))
            sys.stdout.flush()  # else what is left there is printed by both
            pid = os.fork()
            if not pid:
                for one in (line, wake, python):
                    one.close()
                return task
            _say(line, pid=pid)


def preload(script: Path) -> None:
    """Import what the script does; what fails there fails again, and is told, there."""
    if not sys.flags.safe_path:
        sys.path[0] = str(script.parent)
    for name, attributes in leading_imports(script):
        try:
            module = importlib.import_module(name)
            for attribute in attributes:
                if not hasattr(module, attribute):
                    importlib.import_module(f"{name}.{attribute}")
        except BaseException:  # noqa: BLE001 - whatever it is: it is the script's
            return


def leading_imports(script: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the modules that a script imports first, each with what it takes of it."""
    try:
        tree = ast.parse(script.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    for statement in tree.body:
        match statement:
            case ast.Expr(value=ast.Constant()):  # its docstring
                continue
            case ast.Import(names=names):
                found = [(one.name, list[str]()) for one in names]
            case ast.ImportFrom(module=str(module), names=names, level=0):
                found = [(module, [one.name for one in names if one.name != "*"])]
            case _:
                return
        for name, attributes in found:
            if not _is_installed(name):
                return
            yield name, attributes


def unfit() -> str:
    """Return why this process must not be forked; empty if it may."""
    with warnings.catch_warnings():  # Python tells of the threads that OpenBLAS ends
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()  # for nothing else
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    if len(list(Path("/proc/self/task").iterdir())) > 1:
        return "what the script imports has started threads"
    if any(file.startswith("/dev/nvidia") for file in _open_files()):
        return "what the script imports has opened a GPU"
    return ""


def run(task: Task) -> None:
    """Become the process of a site, and run its script as Python would."""
    os.setsid()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log = os.open(task.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for number in (1, 2):
        os.dup2(log, number)
    os.close(log)
    os.environ.clear()
    os.environ.update(task.environment)
    sys.argv = list(task.words)
    _reseed()
    path = str(Path(task.words[0]).absolute())
    module = ModuleType("__main__")
    vars(module).update(__file__=path, __builtins__=builtins)
    sys.modules["__main__"] = module
    sys.excepthook = _shown
    _Script("__main__", path).exec_module(module)


@final
class _Script(SourceFileLoader):
    """Loads a script; nothing is written beside it."""

    def set_data(self, path: str, data: Any, *, _mode: int = 0o666) -> None:
        """Leave the folder as it is."""


def _shown(
    kind: type[BaseException], exc: BaseException, where: TracebackType | None
) -> None:
    """Show a traceback that begins with the script."""
    while where is not None:
        file = where.tb_frame.f_code.co_filename
        if file != __file__ and not file.startswith(_FROZEN):
            break
        where = where.tb_next
    sys.__excepthook__(kind, exc.with_traceback(where), where)


def _is_installed(name: str) -> bool:
    top = name.partition(".")[0]
    if top in _OURS or top in sys.builtin_module_names:
        return True
    with contextlib.suppress(ImportError, ValueError):
        spec = find_spec(top)
        return spec is not None and any(map(_is_installed_in, _places(spec)))
    return False


def _places(spec: ModuleSpec) -> list[str]:
    origin = [] if spec.origin is None else [spec.origin]
    return [*(spec.submodule_search_locations or ()), *origin]


def _is_installed_in(place: str) -> bool:
    path = Path(place)
    installed = not _INSTALLED.isdisjoint(path.parts)
    return installed or place == "frozen" or path.is_relative_to(_STDLIB)


def _reseed() -> None:
    """Give each process chance of its own, where it began with some: NumPy's global.

    That of `random` does so by itself, and that of torch begins with a constant.
    """
    random = sys.modules.get("numpy.random")
    if random is not None:
        random.seed()


def _open_files() -> Iterator[str]:
    for number in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # that of the folder is closed by now
            yield str(number.readlink())


def _tell_who_ended(line: socket.socket) -> None:
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            _say(line, pid=pid, code=os.waitstatus_to_exitcode(status))


def _say(line: socket.socket, **told: object) -> None:
    line.sendall(json.dumps(told).encode() + b"\n")


def _pass(signum: int, frame: FrameType | None) -> None:
    """Let Python note the signal."""


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as own:
        task = main(own, Path(sys.argv[2]))
    if task is not None:
        run(task)
