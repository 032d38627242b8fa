"""The pre-flight: what would travel, what stays, and whether the sites agree."""

import itertools
from collections.abc import Iterator, Sequence
from typing import final

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from flare_core._errors import Refusal
from flare_core._model import Layout, TensorSpec
from flare_core._plan import Encoding
from flare_core.application import Event, RunOpened, SiteJoined, SiteRefused
from flare_core.management._wording import bytes_text, counted

_MOST_ROWS = 40
_MOST_NAMES = 6
_FINGERPRINT = 12


@final
class Preflight:
    """An observer that keeps what the sites said when they joined.

    Attributes:
        joined: What each said, by site.
        refusals: What does not fit.
        encoding: How models would travel.
    """

    def __init__(self) -> None:
        self.joined: dict[str, SiteJoined] = {}
        self.refusals: list[Refusal] = []
        self.encoding = Encoding()

    def __call__(self, event: Event) -> None:
        """Keep a site's word, or what is wrong with it."""
        if isinstance(event, RunOpened):
            self.encoding = event.plan.encoding
        elif isinstance(event, SiteJoined):
            self.joined[event.site] = event
        elif isinstance(event, SiteRefused):
            self.refusals.append(event.refusal)


def report(preflight: Preflight) -> Iterator[RenderableType]:
    """Yield tables and lines for the console; nothing if no site has joined."""
    if not preflight.joined:
        return
    joined = dict(sorted(preflight.joined.items()))
    first = next(iter(joined.values()))
    yield _tensors_table(first.layout, first.site)
    size = bytes_text(first.layout.num_bytes)
    yield Text(f"per round and site: {size} down, {size} up, and a small header")
    yield from _encoded(preflight.encoding)
    yield Text(f"stays at the site: {_stays(first.stays)}")
    yield _sites_table(list(joined.values()))


def _encoded(encoding: Encoding) -> Iterator[Text]:
    """Yield what the plan does to these sizes, if it does something."""
    ways = {
        "updates": encoding.up,
        "global models after the first": encoding.down,
    }
    said = [f"{what} as {name}" for what, name in ways.items() if name != "none"]
    if said:
        yield Text(f"the plan sends less than that: {', '.join(said)}")


def _tensors_table(layout: Layout, site: str) -> Table:
    count = counted(len(layout.tensors), "tensor")
    size = bytes_text(layout.num_bytes)
    table = Table(title=f"What would travel: {count}, {size} (as at {site})")
    for name in ("tensor", "type", "shape", "class"):
        table.add_column(name, overflow="fold")
    table.add_column("bytes", justify="right")
    head, tail = _ends(layout.tensors)
    for spec in head:
        table.add_row(*_cells(spec))
    if tail:
        left_out = layout.tensors[len(head) : -len(tail)]
        left_size = sum(spec.num_bytes for spec in left_out)
        table.add_row(f"… {len(left_out):,} more …", "", "", "", f"{left_size:,}")
    for spec in tail:
        table.add_row(*_cells(spec))
    return table


def _ends(
    tensors: Sequence[TensorSpec],
) -> tuple[Sequence[TensorSpec], Sequence[TensorSpec]]:
    """Return all, or the first and the last if there are too many to read."""
    if len(tensors) <= _MOST_ROWS:
        return tensors, ()
    half = _MOST_ROWS // 2
    return tensors[:half], tensors[-half:]


def _cells(spec: TensorSpec) -> Iterator[Text]:
    shape = " x ".join(str(extent) for extent in spec.shape) or "scalar"
    words = (spec.name, spec.dtype, shape, str(spec.kind), f"{spec.num_bytes:,}")
    return (Text(word) for word in words)


def _stays(specs: Sequence[TensorSpec]) -> str:
    if not specs:
        return "nothing"
    size = bytes_text(sum(spec.num_bytes for spec in specs))
    names = ", ".join(spec.name for spec in itertools.islice(specs, _MOST_NAMES))
    more = f", … {len(specs) - _MOST_NAMES:,} more" if len(specs) > _MOST_NAMES else ""
    return f"{counted(len(specs), 'tensor')}, {size}: {names}{more}"


def _sites_table(joined: Sequence[SiteJoined]) -> Table:
    table = Table(title="What each site says")
    for name in ("site", "tensors", "schedule", "horizon", "frozen base"):
        table.add_column(name, overflow="fold")
    for site in joined:
        table.add_row(
            site.site,
            f"{len(site.layout.tensors):,}",
            Text(site.schedule),
            Text(site.horizon or "-"),
            site.base[:_FINGERPRINT] or "nothing frozen",
        )
    return table
