"""The plan of a run: the server's word on rounds, schedule, strategy and selection."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeAlias, cast, get_args, get_origin

import msgspec
from blake3 import blake3

from flare_core._errors import ConfigurationError
from flare_core._local import Local, Plain
from flare_core._lora import Lora
from flare_core._pairs import refuse
from flare_core._round_policy import RoundPolicy
from flare_core._selection import Selection
from flare_core._stop import Stop
from flare_core._topology import Cyclic, Hierarchical, Star, Swarm, Topology

Count: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]
OptimizerState: TypeAlias = Literal["keep", "reset"]
Select: TypeAlias = str | list[str]
Setting: TypeAlias = bool | int | float | str
EncodingUp: TypeAlias = Literal["none", "bf16", "int8", "int4", "topk", "xor"]
EncodingDown: TypeAlias = Literal["none", "bf16", "int8", "int4", "xor"]


class _Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of settings; a key nobody knows is an error."""


class Schedule(_Settings, frozen=True, omit_defaults=True):
    """Where local training is cut into rounds; at most one of the two is set.

    Attributes:
        every_n_epochs: A round ends after so many passes over the site's data.
        every_n_steps: A round ends after so many optimizer steps.
    """

    every_n_epochs: Count | None = None
    every_n_steps: Count | None = None

    def __post_init__(self) -> None:
        if self.every_n_epochs is not None and self.every_n_steps is not None:
            msg = "give one of every_n_epochs and every_n_steps, not both"
            raise ValueError(msg)

    @property
    def given(self) -> bool:
        """Whether it says anything."""
        return self.every_n_epochs is not None or self.every_n_steps is not None

    @property
    def length(self) -> int:
        """Epochs or steps of a round.

        Raises:
            ValueError: If the schedule says nothing.
        """
        length = self.every_n_epochs or self.every_n_steps
        if length is None:
            msg = "a schedule without every_n_epochs or every_n_steps has no length"
            raise ValueError(msg)
        return length

    @property
    def unit(self) -> Literal["epochs", "steps"]:
        """What is counted."""
        return "steps" if self.every_n_steps is not None else "epochs"

    def __str__(self) -> str:
        if not self.given:
            return "rounds of the script's own"
        return f"every_n_{self.unit} = {self.length}"


class AggregationSettings(_Settings, frozen=True):
    """How the updates of a round are combined; the strategy moves the model by that.

    Attributes:
        name: An aggregation of the entry point group ``flare_core.aggregations``.
        settings: Its own settings, by name; the server checks them before anything
            starts.
    """

    name: str = "mean"
    settings: dict[str, Setting] = {}


class StrategySettings(_Settings, frozen=True):
    """How the combined updates become the next global model.

    Attributes:
        name: A strategy of the entry point group ``flare_core.strategies``.
        settings: Its own settings, by name; the server checks them before anything
            starts.
    """

    name: str = "fedavg"
    settings: dict[str, Setting] = {}

    def __post_init__(self) -> None:
        if self.name in _AT_THE_SITES:
            known = ", ".join(map(_tag, _tables(Local)))
            msg = (
                f"strategy.name = {self.name!r} is what sites add to their training, "
                "beside any strategy: it belongs into the table [local], as local.name;"
                f" possible there are {known}"
            )
            raise ValueError(msg)


_AT_THE_SITES = {"fedprox", "scaffold", "feddyn", "ditto"}
"""Known as federated algorithms, and yet no server's."""


class Admission(_Settings, frozen=True):
    """What an update must keep to beside being finite and of the model's layout.

    Attributes:
        most_refusals: A site of which so many updates were refused is in quarantine:
            it takes part no more.
        most_examples: Most examples that a site can have seen in a round.
        most_norm: Longest step that an update may take: the L2 norm of what it changes
            in the floating parameters of the global model that its round started from.
        most_control: The same of the controls that a site sends beside them, where the
            plan has some: of the size of a gradient.
    """

    most_refusals: Count = 3
    most_examples: Count | None = None
    most_norm: Annotated[float, msgspec.Meta(gt=0)] | None = None
    most_control: Annotated[float, msgspec.Meta(gt=0)] | None = None


class Encoding(_Settings, frozen=True):
    """How models travel: as they are, or as what changed, in fewer bytes.

    What changed is told against the global model that the round started from, which
    both sides hold.  ``bf16``, ``int8`` and ``int4`` round it, in blocks of one scale;
    ``topk`` sends the largest changes and keeps the rest for later rounds; ``xor``
    loses nothing.

    Attributes:
        up: Of updates.
        down: Of global models; ``topk`` is for updates only, as nobody would keep what
            it leaves out.
        keep: The fraction of the elements that ``topk`` sends; with more than three
            in ten, the places of the elements would take more than the rest saves.
    """

    up: EncodingUp = "none"
    down: EncodingDown = "none"
    keep: Annotated[float, msgspec.Meta(gt=0, le=0.3)] = 0.01


class Plan(_Settings, frozen=True):
    """What a run does.  It is the server's, and every site gets it before it trains.

    Attributes:
        rounds: Rounds to play, unless the table ``stop`` ends the run before.
        schedule: Where a round ends; if empty, what each script says itself.
        topology: Who trains when, and who combines what.
        aggregation: How updates are combined.
        strategy: How the model is moved by what comes out.
        local: What sites add to their training, beside any strategy.
        lora: How LoRA weights are combined, in models that have some.
        selection: Which sites take part; as the topology has it, where it says more.
        round: When a round ends that not all sites have answered; likewise.
        stop: Which global model is the best, and when the run ends early.
        admission: What updates must keep to.
        encoding: How models travel.
        select: Tensors to exchange: ``"auto"``, ``"all"``, ``"trainable"``,
            ``"no_batchnorm"`` or globs; if not set, what each script says itself.
        optimizer_state: What becomes of the optimizer's moments when a global model
            is loaded; if not set, what each script says itself.
        keep_updates: Whether the server keeps every global model and every update that
            counted, for ``flare replay``; they are as secret as what is in them.
    """

    rounds: Count
    schedule: Schedule = Schedule()
    topology: Topology = Star()
    aggregation: AggregationSettings = AggregationSettings()
    strategy: StrategySettings = StrategySettings()
    local: Local = Plain()
    lora: Lora = Lora()
    selection: Selection = Selection()
    round: RoundPolicy = RoundPolicy()
    stop: Stop = Stop()
    admission: Admission = Admission()
    encoding: Encoding = Encoding()
    select: Select | None = None
    optimizer_state: OptimizerState | None = None
    keep_updates: bool = False

    def __post_init__(self) -> None:
        refuse(self)
        selection, policy = self.topology.settled(self.selection, self.round)
        msgspec.structs.force_setattr(self, "selection", selection)
        msgspec.structs.force_setattr(self, "round", policy)

    @property
    def takes_who_comes(self) -> bool:
        """Whether another site may take the place of one that is gone."""
        if isinstance(self.topology, Cyclic):
            return self.topology.pass_on
        return self.selection.takes_who_comes

    @property
    def by_region(self) -> bool:
        """Whether the updates of a region are added up before those of others."""
        return isinstance(self.topology, Hierarchical)

    @property
    def sealed(self) -> bool:
        """Whether the server cannot read what is exchanged."""
        return isinstance(self.topology, Swarm)

    @property
    def has_strategy(self) -> bool:
        """Whether another strategy than federated averaging is named."""
        return self.strategy != StrategySettings()

    @property
    def fingerprint(self) -> str:
        """The BLAKE3 of all settings, in hexadecimal; the same wherever it is read."""
        # what Python made of it may have an integer where the wire has a float
        plan = plan_from(msgspec.to_builtins(self), source="plan")
        return blake3(msgspec.msgpack.encode(plan, order="sorted")).hexdigest()

    def with_setting(self, *assignments: str) -> "Plan":
        """Return a plan with settings changed; it has to be one when all of them are.

        Args:
            assignments: ``key=value`` with dots in the key and a TOML value, e.g.
                ``local.mu=0.1``; a value that is no TOML is taken as text.  Another
                ``local.name`` or ``topology.name`` forgets what the one before was set
                to, and what followed from it.

        Raises:
            ConfigurationError: If there is no such key or the value does not fit.
        """
        tree = msgspec.to_builtins(self)
        for assignment in assignments:
            if assignment.partition("=")[0].strip() == "topology.name":
                for key in self.topology.settles:  # another one may settle it otherwise
                    table, _, setting = key.partition(".")
                    tree[table].pop(setting, None)
            _assign(tree, assignment)
        source = " ".join(f"--set {assignment}" for assignment in assignments)
        return plan_from(tree, source=source)


def _assign(tree: dict[str, Any], assignment: str) -> None:
    """Change one setting in the tree of a plan."""
    key, equals, value = assignment.partition("=")
    if not equals:
        msg = f"--set {assignment}: expected key=value, e.g. rounds=5"
        raise ConfigurationError(msg)
    *tables, last = key.strip().split(".")
    table = tree
    for name in tables:
        inner = table.get(name)
        if not isinstance(inner, dict):
            msg = f"--set {assignment}: a plan has no table {name!r}"
            raise ConfigurationError(msg)
        table = cast("dict[str, Any]", inner)
    if tables in (["local"], ["topology"]) and last == "name":
        table.clear()
    table[last] = _toml_value(value.strip())


def plan_from(tree: object, *, source: str) -> Plan:
    """Return the plan that a tree of TOML values describes.

    Args:
        tree: Tables, lists and scalars.
        source: Where it comes from, for the error.

    Raises:
        ConfigurationError: If a key is unknown or a value does not fit.
    """
    try:
        return msgspec.convert(tree, Plan)
    except msgspec.ValidationError as exc:
        msg = f"{source}: {exc}{_possible(str(exc))}"
        raise ConfigurationError(msg) from None


def _possible(complaint: str) -> str:
    """Return what could have stood there, where that is a short list."""
    if "unknown" in complaint:
        return f"; a plan has {', '.join(_keys(Plan))}"
    words = _words(Plan)
    for key, values in words.items():
        if "nvalid" in complaint and f"`$.{key}`" in complaint:
            return f"; possible are {', '.join(values)}"
    return ""


def _words(table: type[msgspec.Struct], prefix: str = "") -> dict[str, tuple[str, ...]]:
    """Return the words that may stand at each key that takes certain words only."""
    found: dict[str, tuple[str, ...]] = {}
    for field in msgspec.structs.fields(table):
        key = f"{prefix}{field.name}"
        tables = _tables(field.type)
        for one in tables:
            found |= _words(one, f"{key}.")
        if len(tables) > 1:
            found[f"{key}.name"] = tuple(map(_tag, tables))
        for choice in cast("tuple[object, ...]", (field.type, *get_args(field.type))):
            if get_origin(choice) is Literal:
                found[key] = get_args(choice)
    return found


def _keys(table: type[msgspec.Struct], prefix: str = "") -> Iterator[str]:
    for field in msgspec.structs.fields(table):
        key = f"{prefix}{field.name}"
        tables = _tables(field.type)
        if len(tables) > 1:
            yield f"{key}.name"
        for one in tables:
            yield from _keys(one, f"{key}.")
        if not tables:
            yield key


def _tables(kind: object) -> list[type[msgspec.Struct]]:
    """Return the tables of settings that may stand at a key."""
    choices = cast("tuple[object, ...]", (kind, *get_args(kind)))
    return [
        one
        for one in choices
        if isinstance(one, type) and issubclass(one, msgspec.Struct)
    ]


def _tag(table: type[msgspec.Struct]) -> str:
    return str(table.__struct_config__.tag)


def _toml_value(text: str) -> object:
    try:
        return msgspec.toml.decode(f"value = {text}")["value"]
    except msgspec.DecodeError:
        return text
