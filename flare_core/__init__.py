"""A small core for federated learning: models, rounds, a server and its sites.

What talks to a server is loaded when it is first asked for: sockets cost a third of
the import.
"""

import importlib as _importlib
import typing as _typing

from flare_core._errors import (
    AccessDeniedError,
    BaseModelError,
    ConfigurationError,
    FlareError,
    HorizonError,
    LayoutError,
    PlanError,
    PolicyError,
    PreflightPassed,
    ProtocolError,
    Refusal,
    RefusedError,
    RequestDeniedError,
    RunAbortedError,
    ScheduleError,
    ServerUnreachableError,
    UnsupportedError,
    UpdateError,
    Violation,
)
from flare_core._local import FedDyn, FedProx, Local, Plain, Scaffold
from flare_core._lora import Lora
from flare_core._model import (
    DTYPES,
    GlobalModel,
    Layout,
    Metrics,
    ModelState,
    TensorClass,
    TensorSpec,
    Update,
)
from flare_core._plan import (
    Admission,
    AggregationSettings,
    Encoding,
    OptimizerState,
    Plan,
    Schedule,
    Select,
    StrategySettings,
)
from flare_core._round_policy import RoundPolicy
from flare_core._selection import Selection
from flare_core._site import Binding, Policy, Resources, Site, site
from flare_core._stop import Stop
from flare_core._topology import (
    Asynchronous,
    Cyclic,
    Hierarchical,
    Star,
    Swarm,
    Topology,
)
from flare_core.federation import (
    Aggregation,
    Cohort,
    Contribution,
    Part,
    Shares,
    Strategy,
)

if _typing.TYPE_CHECKING:
    from flare_core.application import (
        Client,
        ClientRound,
        Link,
        Proposal,
        Server,
        connect,
        join,
    )

__all__ = [
    "DTYPES",
    "AccessDeniedError",
    "Admission",
    "Aggregation",
    "AggregationSettings",
    "Asynchronous",
    "BaseModelError",
    "Binding",
    "Client",
    "ClientRound",
    "Cohort",
    "ConfigurationError",
    "Contribution",
    "Cyclic",
    "Encoding",
    "FedDyn",
    "FedProx",
    "FlareError",
    "GlobalModel",
    "Hierarchical",
    "HorizonError",
    "Layout",
    "LayoutError",
    "Link",
    "Local",
    "Lora",
    "Metrics",
    "ModelState",
    "OptimizerState",
    "Part",
    "Plain",
    "Plan",
    "PlanError",
    "Policy",
    "PolicyError",
    "PreflightPassed",
    "Proposal",
    "ProtocolError",
    "Refusal",
    "RefusedError",
    "RequestDeniedError",
    "Resources",
    "RoundPolicy",
    "RunAbortedError",
    "Scaffold",
    "Schedule",
    "ScheduleError",
    "Select",
    "Selection",
    "Server",
    "ServerUnreachableError",
    "Shares",
    "Site",
    "Star",
    "Stop",
    "Strategy",
    "StrategySettings",
    "Swarm",
    "TensorClass",
    "TensorSpec",
    "Topology",
    "UnsupportedError",
    "Update",
    "UpdateError",
    "Violation",
    "connect",
    "join",
    "site",
]

if not _typing.TYPE_CHECKING:  # or a checker would take any name for one of ours

    def __getattr__(name: str) -> _typing.Any:
        if name not in __all__:
            msg = f"module {__name__!r} has no attribute {name!r}"
            raise AttributeError(msg)
        value = getattr(_importlib.import_module("flare_core.application"), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return __all__
