"""What is sealed is opened by its key, as what it was sealed, and by nothing else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import flare_core as flare
from flare_core.communication import GroupKey, Sealed, sealed_bytes

_KEY = GroupKey(bytes(range(32)))
_UPDATE = Sealed(kind="update", run="demo", site="a", number=3)
_CHUNK = 1 << 20


@given(st.lists(st.binary(max_size=50), max_size=5))
def test_what_is_sealed_is_opened(pieces: list[bytes]) -> None:
    row = _KEY.seal(_UPDATE, b"facts", pieces)
    assert len(row) == sealed_bytes(sum(map(len, pieces)))
    assert bytes(_KEY.open(row, _UPDATE, b"facts")) == b"".join(pieces)


@pytest.mark.parametrize("size", [_CHUNK - 1, _CHUNK, _CHUNK + 1, 3 * _CHUNK])
def test_files_of_several_chunks_are_opened(size: int) -> None:
    whole = np.random.default_rng(0).bytes(size)
    row = _KEY.seal(_UPDATE, b"", [whole[:1000], whole[1000:]])
    assert len(row) == sealed_bytes(size)
    assert bytes(_KEY.open(row, _UPDATE, b"")) == whole


def test_the_same_is_sealed_to_the_same_bytes_and_anything_else_to_others() -> None:
    rows = [
        key.seal(sealed, facts, [content])
        for key, sealed, facts, content in (
            (_KEY, _UPDATE, b"", b"content"),
            (_KEY, _UPDATE, b"", b"contenu"),
            (_KEY, _UPDATE, b"1", b"content"),
            (
                _KEY,
                Sealed(kind="update", run="demo", site="b", number=3),
                b"",
                b"content",
            ),
            (GroupKey(bytes(32)), _UPDATE, b"", b"content"),
        )
    ]
    tails = {row[256:].tobytes() for row in rows}
    assert len(tails) == len(rows)
    assert rows[0].tobytes() == _KEY.seal(_UPDATE, b"", [b"con", b"tent"]).tobytes()


@pytest.mark.parametrize(
    ("key", "wanted", "facts"),
    [
        (GroupKey(bytes(32)), _UPDATE, b"facts"),
        (_KEY, _UPDATE, b"other facts"),
        (_KEY, Sealed(kind="update", run="demo", site="b", number=3), b"facts"),
        (_KEY, Sealed(kind="update", run="demo", site="a", number=4), b"facts"),
        (_KEY, Sealed(kind="model", run="demo", number=3), b"facts"),
    ],
    ids=["key", "facts", "site", "round", "kind"],
)
def test_nothing_else_opens_it(key: GroupKey, wanted: Sealed, facts: bytes) -> None:
    row = _KEY.seal(_UPDATE, b"facts", [b"content"])
    with pytest.raises(flare.ProtocolError):
        key.open(row, wanted, facts)


@given(st.data())
def test_a_single_changed_bit_is_found(data: st.DataObject) -> None:
    row = _KEY.seal(_UPDATE, b"", [b"some content"])
    place = data.draw(st.integers(0, len(row) - 1))
    row[place] ^= np.uint8(1 << data.draw(st.integers(0, 7)))
    with pytest.raises(flare.ProtocolError):
        _KEY.open(row, _UPDATE, b"")


@pytest.mark.parametrize("cut", [16, _CHUNK + 16, 2 * _CHUNK])
def test_a_chunk_that_is_cut_off_is_missed(cut: int) -> None:
    row = _KEY.seal(_UPDATE, b"", [bytes(2 * _CHUNK)])
    with pytest.raises(flare.ProtocolError):
        _KEY.open(row[:-cut], _UPDATE, b"")


def test_chunks_that_are_swapped_are_missed() -> None:
    row = _KEY.seal(_UPDATE, b"", [bytes(2 * _CHUNK)])
    size, begin = _CHUNK + 16, 256 + 16
    swapped = row.copy()
    swapped[begin : begin + size] = row[begin + size : begin + 2 * size]
    swapped[begin + size : begin + 2 * size] = row[begin : begin + size]
    with pytest.raises(flare.ProtocolError):
        _KEY.open(swapped, _UPDATE, b"")


def test_the_server_sees_nothing_of_it() -> None:
    content = b"a secret that is long enough to be looked for"
    assert content[:8] not in _KEY.seal(_UPDATE, b"", [content]).tobytes()
