"""Models that travel as what changed since one that both sides hold."""

from flare_core.communication._encodings._choice import encodes
from flare_core.communication._encodings._decode import Piece, decode_model
from flare_core.communication._encodings._encode import Encoded, encode_model
from flare_core.communication._encodings._grid import BLOCK
from flare_core.communication._encodings._plain import decoded_file, most_bytes
from flare_core.communication._encodings._residual import Residual

__all__ = [
    "BLOCK",
    "Encoded",
    "Piece",
    "Residual",
    "decode_model",
    "decoded_file",
    "encode_model",
    "encodes",
    "most_bytes",
]
