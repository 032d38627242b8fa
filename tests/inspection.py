"""Looks at packages from outside: what an import loads, and what it offers."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

_TIMEOUT_S = 100
_MARK = "loaded:"
_NOTE = """
import sys
def loaded_now():
    return {name.partition(".")[0] for name in sys.modules}
"""
_REPORT = f"print({_MARK!r}, *loaded_now() - before)"


def run_fresh(code: str) -> str:
    """Run code in a fresh interpreter and return what it wrote to stdout.

    Raises:
        AssertionError: If it fails; the message is its stderr.
    """
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded_by(statement: str, *, after: str = "") -> set[str]:
    """Return the top-level modules that a statement loads in a fresh interpreter.

    Args:
        statement: What loads them.
        after: A statement before it, whose modules do not count.
    """
    said = run_fresh(f"{_NOTE}\n{after}\nbefore = loaded_now()\n{statement}\n{_REPORT}")
    return set(said.rpartition(_MARK)[2].split())


def public_names(package: ModuleType) -> set[str]:
    """Return the names that a package shows, without its own modules."""
    return {
        name
        for name in {*vars(package), *dir(package)}  # some are loaded when asked for
        if not name.startswith("_")
        and not _is_its_module(package, getattr(package, name))
    }


def api_order(name: str) -> tuple[int, str]:
    """Return the place of a name in `__all__`: constants, classes, the rest."""
    if name.isupper():
        return 0, name
    return (1 if name[0].isupper() else 2), name


def sources(*folders: Path) -> list[Path]:
    """Return all Python files below the folders."""
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def imports_of(source: Path) -> Iterator[str]:
    """Yield the full name of each module or member that a file imports."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def runs_what_it_reads(code: str) -> list[str]:
    """Return the calls and names in some code by which data could become code.

    ``exec_module`` of an import system and ``eval`` of a model are neither.
    """
    tree = ast.parse(code)
    full = _full_names(tree)
    found = [
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and node.id in {"eval", "exec"}
    ]
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return found + [name for call in calls if (name := _unsafe(call, full))]


def _full_names(tree: ast.AST) -> dict[str, str]:
    """Return what each imported name stands for."""
    full: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            full |= {a.asname: a.name for a in node.names if a.asname}
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                full[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return full


def _unsafe(call: ast.Call, full: dict[str, str]) -> str:
    """Return the full name of what is called, if it may run what it reads."""
    name, dot, rest = ast.unparse(call.func).partition(".")
    name = f"{full.get(name, name)}{dot}{rest}"
    settings = {one.arg: ast.unparse(one.value) for one in call.keywords}
    constant = bool(call.args) and isinstance(call.args[0], ast.Constant)
    unsafe = (
        name in {"builtins.eval", "builtins.exec", "yaml.load", "yaml.load_all"}
        or (name == "__import__" and not constant)
        or (name == "torch.load" and settings.get("weights_only") != "True")
        or settings.get("allow_pickle", "False") != "False"
    )
    return name if unsafe else ""


def _is_its_module(package: ModuleType, value: object) -> bool:
    return isinstance(value, ModuleType) and value.__name__.startswith(
        f"{package.__name__}."
    )
