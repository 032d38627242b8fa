"""What the file system refuses, in words for the people at the site."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from flare_core._errors import ConfigurationError


@contextmanager
def on_disk(path: Path) -> Generator[None]:
    """Turn an error of the file system into one that names the file or folder."""
    try:
        yield
    except OSError as exc:
        msg = (
            f"{path}: {exc.strerror}; updates are encoded there: give it a folder that "
            "can be written to, with room for an encoded model, and for topk for two "
            "models in float64"
        )
        raise ConfigurationError(msg) from exc
