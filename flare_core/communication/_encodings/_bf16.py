"""The delta in bfloat16: half of float32, with 8 bits of precision."""

from typing import final

import ml_dtypes
import numpy as np

from flare_core._model import Array, rounded_once
from flare_core.communication._encodings._record import Record
from flare_core.communication._encodings._room import Room

_BF16 = np.dtype(ml_dtypes.bfloat16)


@final
class Bf16:
    r"""Rounds each delta to nearest even: :math:`|err| \le 2^{-8} |delta|`."""

    def encode(self, delta: Array, _room: Room, /) -> bytes:
        """Return two bytes per element."""
        if delta.dtype == np.float32:
            return delta.astype(_BF16).tobytes()
        return rounded_once(delta, _BF16).tobytes()

    def decode(self, record: Record, delta: Array, /) -> None:
        """Fill in the rounded delta."""
        delta[...] = record.take(_BF16, len(delta))
