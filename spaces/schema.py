"""What a value that was read from a file must look like: files are damaged, cut and edited, and are checked before use."""

import json
import math
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MOST = 1e18  # beyond it no figure of a run means anything, and arithmetic with it may overflow


class SchemaError(ValueError):
    """A value is not what it must be; the message says where it is, what must be there, and what is."""


@dataclass(frozen=True)
class Kind:
    """A kind of plain value.

    Attributes:
        name: in an error.
        holds: whether a value is of this kind.
    """

    name: str
    holds: Callable[[Any], bool]


@dataclass(frozen=True)
class Maybe:
    """null, or what `schema` says."""

    schema: Any


@dataclass(frozen=True)
class Each:
    """An object with any names, and what `schema` says under each of them."""

    schema: Any


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _MOST  # no NaN is


TEXT = Kind("text", lambda value: isinstance(value, str))
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
OBJECT = Kind("an object", lambda value: isinstance(value, dict))
WHOLE = Kind("a whole number, 0 or more", lambda value: _is_whole(value) and 0 <= value < 2**53)
SIZE = Kind("a whole number above 0", lambda value: _is_whole(value) and 0 < value < 2**53)
NUMBER = Kind("a finite number", _is_number)
POSITIVE = Kind("a number above 0", lambda value: _is_number(value) and value > 1e-15)
SHARE = Kind("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1)
REAL = Kind("a number", lambda value: _is_number(value) or (isinstance(value, float) and not math.isfinite(value)))


def choice(*values: Any) -> Kind:
    """One of some values."""
    return Kind(f"one of {', '.join(map(str, values))}", lambda value: isinstance(value, str | int) and value in values)


def check(value: Any, schema: Any, where: str = "") -> None:
    """Raise unless a value is what a schema says.

    Args:
        value: of plain types, as JSON has them.
        schema: a `Kind`, `Maybe` or `Each`; ``{"name": schema, ...}`` for an object that has at least these names, those with a
            ``?`` at the end if it likes; ``[schema]`` for a list of any length; ``(schema, ...)`` for one of this length.
        where: of the value, for the error.

    Raises:
        SchemaError: it is not.
    """
    if isinstance(schema, Kind):
        _require(schema.holds(value), value, schema.name, where)
    elif isinstance(schema, Maybe):
        if value is not None:
            check(value, schema.schema, where)
    elif _is_each_of(value, schema):
        return
    elif isinstance(schema, Mapping | Each):
        _require(isinstance(value, dict), value, "an object", where)
        for name, part in _parts(value, schema, where):
            check(value[name], part, f"{where}.{name}" if where else str(name))
    elif isinstance(schema, list | tuple):
        length = "a list" if isinstance(schema, list) else f"a list of {len(schema)}"
        _require(isinstance(value, list) and (isinstance(schema, list) or len(value) == len(schema)), value, length, where)
        for index, entry in enumerate(value):
            check(entry, schema[0 if isinstance(schema, list) else index], f"{where}[{index}]")


def parse_json(text: str | bytes) -> Any:
    """A JSON value.

    Raises:
        ValueError: it is none; the message is one line.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise SchemaError("lists or objects are nested too deeply") from None
    except UnicodeDecodeError:
        raise SchemaError("it is no UTF-8 text") from None


def read_json(path: Path, schema: Any = None) -> Any:
    """The JSON value in a file, checked.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no JSON, or not what the schema says; the message is one line, without the path.
    """
    value = parse_json(path.read_bytes())
    if schema is not None:
        check(value, schema)
    return value


def _is_each_of(value: Any, schema: Any) -> bool:
    """Whether all values of an object are of one kind: most of what is read are such objects, and this is quick."""
    if not isinstance(schema, Each) or not isinstance(schema.schema, Kind) or not isinstance(value, dict):
        return False
    return all(map(schema.schema.holds, value.values()))


def _parts(value: dict[str, Any], schema: Mapping[str, Any] | Each, where: str) -> list[tuple[str, Any]]:
    """Name and schema of all that is to be looked at in an object."""
    if isinstance(schema, Each):
        return [(name, schema.schema) for name in value]
    found = []
    for name, part in schema.items():
        if name.removesuffix("?") in value:
            found.append((name.removesuffix("?"), part))
        elif not name.endswith("?"):
            raise SchemaError(f"{f'{where}.{name}' if where else name} is missing")
    return found


def _require(holds: bool, value: Any, name: str, where: str) -> None:
    if not holds:
        raise SchemaError(f"{where or 'it'} must be {name}, got {reprlib.repr(value)}")
