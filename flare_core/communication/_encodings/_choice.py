"""Which encodings there are, and what each of them does to a tensor."""

from flare_core._model import TensorClass, TensorSpec, bits_of
from flare_core.communication._encodings._bf16 import Bf16
from flare_core.communication._encodings._blockwise import Int4, Int8
from flare_core.communication._encodings._codec import Codec
from flare_core.communication._encodings._delta import Delta, Feedback
from flare_core.communication._encodings._topk import TopK

_WIDE = frozenset({"F64", "F32"})
_FLOATS = _WIDE | {"F16", "BF16"}
_LOSSY = {"bf16": _WIDE, "int4": _FLOATS, "int8": _FLOATS, "topk": _FLOATS}
_LOSSLESS = "xor"
_MIN_ELEMENTS = 64
"""A smaller tensor gains less than a hundred bytes: it travels as it is."""


def encodes(encoding: str, spec: TensorSpec) -> bool:
    """Tell whether an encoding changes how this tensor travels.

    Lossy ones take parameters that they make smaller; ``xor`` takes all but the packed
    4- and 6-bit types.

    Raises:
        ValueError: If there is no such encoding.
    """
    _check_name(encoding)
    if encoding == _LOSSLESS:
        return bits_of(spec.dtype) % 8 == 0
    return (
        spec.kind is TensorClass.PARAMETER
        and spec.dtype in _LOSSY[encoding]
        and spec.num_elements >= _MIN_ELEMENTS
    )


def codec(encoding: str, *, keep: float, feedback: Feedback | None) -> Codec:
    """Return what encodes and decodes.

    Args:
        encoding: Its name.
        keep: The fraction that ``topk`` keeps; for the others nothing.
        feedback: Where ``topk`` keeps the rest; for the others nothing.

    Raises:
        ValueError: If there is no such encoding, or no such fraction.
    """
    _check_name(encoding)
    match encoding:
        case "bf16":
            return Delta(Bf16())
        case "int4":
            return Delta(Int4())
        case "int8":
            return Delta(Int8())
        case "topk":
            return Delta(TopK(keep), feedback)
        case _:
            # Loads zstd, which only this one needs.
            from flare_core.communication._encodings._xor import Xor  # noqa: PLC0415

            return Xor()


def _check_name(encoding: str) -> None:
    """Check that there is such an encoding.

    Raises:
        ValueError: If there is none.
    """
    if encoding != _LOSSLESS and encoding not in _LOSSY:
        known = ", ".join([*_LOSSY, _LOSSLESS])
        msg = f"no encoding is called {encoding!r}; possible are {known}"
        raise ValueError(msg)
