"""Hypothesis strategies: models of every element type, with any bits."""

import math

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from flare_core import DTYPES, ModelState, TensorClass
from flare_core._model import Array, bits_of

_MASKS = {"BOOL": 0x01, "F4": 0x0F, "F6_E2M3": 0x3F, "F6_E3M2": 0x3F}
"""The bits of a byte that an element in memory may have, where not all."""
CLASSES = (TensorClass.PARAMETER, TensorClass.BUFFER)


def from_bits(code: str, shape: tuple[int, ...], raw: bytes) -> Array:
    """Return the array with these bits, as far as the type has them."""
    bits = np.frombuffer(raw, np.uint8) & np.uint8(_MASKS.get(code, 0xFF))
    return bits.view(DTYPES[code]).reshape(shape)


def to_bits(array: Array) -> bytes:
    """Return the bits of an array in memory."""
    return array.tobytes()


@st.composite
def arrays(draw: st.DrawFn, codes: tuple[str, ...] = tuple(DTYPES)) -> Array:
    """Arrays with any bits: NaN payloads, subnormals, infinities, no element at all."""
    code = draw(st.sampled_from(codes))
    shape = draw(array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
    if bits_of(code) % 8:
        shape = (*shape, 4)  # fills whole bytes
    size = math.prod(shape) * DTYPES[code].itemsize
    return from_bits(code, shape, draw(st.binary(min_size=size, max_size=size)))


@st.composite
def states(draw: st.DrawFn, codes: tuple[str, ...] = tuple(DTYPES)) -> ModelState:
    """Models of up to three tensors, of any types together."""
    names = st.text(st.characters(codec="utf-8"), max_size=8)
    tensors = draw(st.dictionaries(names, arrays(codes), max_size=3))
    kinds = {name: draw(st.sampled_from(CLASSES)) for name in tensors}
    return ModelState(tensors, classes=kinds)
