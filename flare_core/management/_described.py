"""The keys of a class of settings, with the words of its docstring.

A key without a word is an error, and so is a word without a key.
"""

import inspect
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from types import NoneType
from typing import final

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

_ATTRIBUTE = re.compile(r"    (\w+): (.*)")
_CONTINUED = " " * 8
_SIMPLE: dict[type[Type], str] = {
    BoolType: "true or false",
    FloatType: "number",
    IntType: "integer",
    StrType: "text",
}


@final
@dataclass(frozen=True, slots=True)
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
    if isinstance(kind, UnionType):  # a table that may be missing
        tables = [one for one in kind.types if isinstance(one, StructType)]
        kind = tables[0] if len(tables) == 1 else kind
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
            words = " ".join([_SIMPLE[type(kind)], *_limits(kind)])
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


def _limits(kind: IntType | FloatType) -> Iterator[str]:
    limits = {"≥": kind.ge, ">": kind.gt, "≤": kind.le, "<": kind.lt}
    for sign, limit in limits.items():
        if limit is not None:
            yield f"{sign} {limit:,}"


def _default(field: msgspec.inspect.Field) -> str:
    value = field.default
    if value is msgspec.NODEFAULT:
        value = field.default_factory()
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"`{value:g}`" if value < 1e6 else f"`{value}`"  # noqa: PLR2004
    return f"`{msgspec.json.encode(value).decode()}`"
