"""How a tensor is cut: into blocks that travel as records, and these into parts."""

from collections.abc import Iterator

BLOCK = 262_144
"""Elements of a record, from the start of each tensor: no more is in memory at once."""
PART = 65_536
"""Elements that are computed at a time: they fit a core's cache, and 16-bit indices."""


def spans(count: int, size: int) -> Iterator[slice]:
    """Yield slices of at most `size` elements that together cover `count`."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
