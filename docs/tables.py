"""Tables of the reference that are made from the code, in Markdown.

A key without a word in its class's docstring is an error, and so is a word without a
key: then the documentation is not built.
"""

import inspect
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from types import NoneType

import msgspec
from msgspec.inspect import (
    BoolType,
    DictType,
    FloatType,
    IntType,
    ListType,
    LiteralType,
    Metadata,
    StrType,
    StructType,
    Type,
    UnionType,
    VarTupleType,
    type_info,
)

from flare_core.management._deployment import MAY, ROLES

_ATTRIBUTE = re.compile(r"    (\w+): (.*)")
_CONTINUED = " " * 8
_SIMPLE = {
    BoolType: "true or false",
    FloatType: "number",
    IntType: "integer",
    StrType: "text",
}


@dataclass(frozen=True)
class Row:
    """A key of a file of settings.

    Attributes:
        key: With the tables it stands in, such as ``limits.strangers``.
        type: What it takes, in words.
        default: What it is if nothing is said, as in TOML.
        meaning: What the docstring says.
    """

    key: str
    type: str
    default: str
    meaning: str


def settings(
    struct: type[msgspec.Struct], *, without: Collection[str] = (), prefix: str = ""
) -> Iterator[Row]:
    """Yield the keys of a class of settings, and of the tables in it.

    Args:
        struct: The class.
        without: Fields that are no keys.
        prefix: The tables that it stands in.

    Raises:
        LookupError: If docstring and fields do not go together.
    """
    info = type_info(struct)
    assert isinstance(info, StructType)  # noqa: S101 - what a class of settings is
    words = _attributes(struct)
    fields = {field.name: field for field in info.fields}
    if words.keys() != fields.keys() or not fields.keys() >= set(without):
        msg = (
            f"{struct.__name__}: expected one entry for each field under Attributes, "
            f"got {sorted(words)} for {sorted(fields)} without {sorted(without)}"
        )
        raise LookupError(msg)
    for name, field in fields.items():
        key = f"{prefix}{name}"
        table, below = _table(field.type)
        if table is not None:
            yield from settings(table, prefix=f"{key}.{below}")
        elif name not in without:
            default = "required" if field.required else _default(field)
            yield Row(key, _words(field.type), default, words[name])


def settings_table(rows: Collection[Row]) -> str:
    """Return keys as a table."""
    lines = [
        f"| `{row.key}` | {row.type} | {row.default} | {row.meaning} |" for row in rows
    ]
    head = ["| Key | Type | Default | Meaning |", "|---|---|---|---|"]
    return "\n".join([*head, *lines])


def roles_table() -> str:
    """Return who may do what, as the server's desk has it."""
    lines = [
        f"| {act} | " + " | ".join("yes" if role in may else "" for role in ROLES) + "|"
        for act, may in MAY.items()
    ]
    head = [f"| | {' | '.join(ROLES)} |", "|---" * (len(ROLES) + 1) + "|"]
    return "\n".join([*head, *lines])


def _attributes(struct: type) -> dict[str, str]:
    """Return what a docstring in Google's style says of each attribute."""
    _, _, section = inspect.cleandoc(struct.__doc__ or "").partition("Attributes:\n")
    words: dict[str, str] = {}
    for line in section.splitlines():
        found = _ATTRIBUTE.fullmatch(line)
        if found:
            words[found[1]] = found[2]
        elif line.startswith(_CONTINUED) and words:
            words[next(reversed(words))] += " " + line.strip()
        else:
            break
    return words


def _table(kind: Type) -> tuple[type[msgspec.Struct] | None, str]:
    """Return the class of a table, and how its keys go on; None if it is none."""
    if isinstance(kind, StructType):
        return kind.cls, ""
    if isinstance(kind, DictType) and isinstance(kind.value_type, StructType):
        return kind.value_type.cls, "NAME."
    return None, ""


def _words(kind: Type) -> str:
    """Return what a key takes.

    Raises:
        LookupError: If there are no words for it yet.
    """
    match kind:
        case Metadata():
            words = _words(kind.type)
        case IntType() | FloatType():
            least = f" ≥ {kind.ge:,}" if kind.ge is not None else ""
            above = f" > {kind.gt:,}" if kind.gt is not None else ""
            words = _SIMPLE[type(kind)] + least + above
        case LiteralType():
            words = ", ".join(f"`{value}`" for value in kind.values)
        case VarTupleType() | ListType():
            words = f"list of {_words(kind.item_type)}"
        case DictType():
            words = f"table of {_words(kind.value_type)}"
        case UnionType():
            given = [one for one in kind.types if one != type_info(NoneType)]
            words = " or ".join(map(_words, given))
        case _:
            words = _SIMPLE[type(kind)]
    return words


def _default(field: msgspec.inspect.Field) -> str:
    value = field.default
    if value is msgspec.NODEFAULT:
        value = field.default_factory()
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"`{value:g}`" if value < 1e6 else f"`{value}`"  # noqa: PLR2004
    return f"`{msgspec.json.encode(value).decode()}`"
