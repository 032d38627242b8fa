from collections.abc import Iterator

import pytest

from flare_core.communication import _files, _mailbox, _session, _streams


@pytest.fixture(scope="module")
def small_chunks() -> Iterator[None]:
    """Make a chunk of a few bytes, so that a few bytes are many chunks."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (_streams, _mailbox, _session, _files):
            patch.setattr(module, "CHUNK_BYTES", 8)
        patch.setattr(_streams, "_SMALL_BYTES", 3)
        patch.setattr(_streams, "SHORT_BYTES", 2)
        patch.setattr(_mailbox, "_ROOM_BYTES", 8 * 8)
        yield
