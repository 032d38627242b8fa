"""Joins the rules of the federation to the wire: a server, and a client per site."""

from flare_core.application._above import plan_below
from flare_core.application._archive import link_file
from flare_core.application._audit import AuditLog
from flare_core.application._audit_check import (
    Finding,
    Verdict,
    audit_lines,
    signing_fault,
    verify_audit,
)
from flare_core.application._client import Client, ClientRound, join
from flare_core.application._databases import copied, database_faults, transaction
from flare_core.application._desk import Asker, Desk
from flare_core.application._envelope import TENSOR
from flare_core.application._epilogue import Finished
from flare_core.application._events import (
    Best,
    BestFound,
    EndsEarly,
    Event,
    Observer,
    Published,
    Result,
    RoundPlayed,
    RoundRecord,
    RunEnded,
    RunOpened,
    RunPaused,
    RunResumed,
    RunTakenUp,
    SiteJoined,
    SiteLeft,
    SiteRefused,
    SiteReport,
    Updated,
    UpdateIgnored,
)
from flare_core.application._host import Host
from flare_core.application._link import Link, Proposal, connect
from flare_core.application._manifest import ManifestEntry
from flare_core.application._policy import check_run
from flare_core.application._replay import Replayed, replay
from flare_core.application._run_store_check import run_store_faults
from flare_core.application._secured import remember, secured_as
from flare_core.application._server import Server, most_threads
from flare_core.application._stage import Stage
from flare_core.application._zmq_link import ZmqLink
from flare_core.federation import LoraReport

__all__ = [
    "TENSOR",
    "Asker",
    "AuditLog",
    "Best",
    "BestFound",
    "Client",
    "ClientRound",
    "Desk",
    "EndsEarly",
    "Event",
    "Finding",
    "Finished",
    "Host",
    "Link",
    "LoraReport",
    "ManifestEntry",
    "Observer",
    "Proposal",
    "Published",
    "Replayed",
    "Result",
    "RoundPlayed",
    "RoundRecord",
    "RunEnded",
    "RunOpened",
    "RunPaused",
    "RunResumed",
    "RunTakenUp",
    "Server",
    "SiteJoined",
    "SiteLeft",
    "SiteRefused",
    "SiteReport",
    "Stage",
    "UpdateIgnored",
    "Updated",
    "Verdict",
    "ZmqLink",
    "audit_lines",
    "check_run",
    "connect",
    "copied",
    "database_faults",
    "join",
    "link_file",
    "most_threads",
    "plan_below",
    "remember",
    "replay",
    "run_store_faults",
    "secured_as",
    "signing_fault",
    "transaction",
    "verify_audit",
]
