"""Explains a missing framework; a broken one keeps its own error."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def extra(name: str, *modules: str) -> Iterator[None]:
    """Turn a missing framework into an error that says how to install it.

    Args:
        name: The extra of this package that brings the framework.
        modules: The top-level modules that the extra installs; a missing module of
            another name means that the framework is there and broken.

    Raises:
        ModuleNotFoundError: If one of the modules is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as exc:
        missing = (exc.name or "").partition(".")[0]
        if missing not in modules:
            raise
        msg = (
            f"flare_adapters.{name} needs {missing!r}, which is not installed. "
            f'Install it with: pip install "flare-adapters[{name}]"'
        )
        raise ModuleNotFoundError(msg, name=missing) from exc
