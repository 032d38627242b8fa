"""ZeroMQ sockets: a ROUTER at the server, a DEALER per site.

The only package that imports `zmq`.  A socket is for one thread at a time; only `wake`
may be called from another one.  No frame is longer than a chunk, at either end: a peer
that announces more is cut off before anything is allocated for it.
"""

from flare_core.communication._zmq._access import Access, Limits, TurnedAway
from flare_core.communication._zmq._dealer import ZmqDealer
from flare_core.communication._zmq._keys import KeyPair, Secured, is_key, learnt
from flare_core.communication._zmq._router import Received, ZmqRouter

__all__ = [
    "Access",
    "KeyPair",
    "Limits",
    "Received",
    "Secured",
    "TurnedAway",
    "ZmqDealer",
    "ZmqRouter",
    "is_key",
    "learnt",
]
