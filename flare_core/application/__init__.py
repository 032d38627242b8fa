"""Joins the rules of the federation to the wire: a server, and a client per site."""

from flare_core.application._audit import AuditLog
from flare_core.application._audit_check import (
    Finding,
    Verdict,
    audit_lines,
    verify_audit,
)
from flare_core.application._client import Client, ClientRound, join
from flare_core.application._events import (
    Event,
    Observer,
    Published,
    Result,
    RoundPlayed,
    RoundRecord,
    RunEnded,
    RunOpened,
    SiteJoined,
    SiteLeft,
    SiteRefused,
    SiteReport,
    Updated,
)
from flare_core.application._link import Link, Proposal, connect
from flare_core.application._manifest import ManifestEntry
from flare_core.application._server import Server
from flare_core.application._zmq_link import ZmqLink

__all__ = [
    "AuditLog",
    "Client",
    "ClientRound",
    "Event",
    "Finding",
    "Link",
    "ManifestEntry",
    "Observer",
    "Proposal",
    "Published",
    "Result",
    "RoundPlayed",
    "RoundRecord",
    "RunEnded",
    "RunOpened",
    "Server",
    "SiteJoined",
    "SiteLeft",
    "SiteRefused",
    "SiteReport",
    "Updated",
    "Verdict",
    "ZmqLink",
    "audit_lines",
    "connect",
    "join",
    "verify_audit",
]
