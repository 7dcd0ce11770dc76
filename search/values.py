"""Values as YAML and Python write them."""

import ast
import math
import re
import types
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from spaces.errors import ConfigError, shown

_NOTHING = ("none", "null", "~")

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")  # YAML 1.1 reads it as text where it lacks the dot or a sign

_WRONG = "is not understood: give true, false, none, a number, a text, a [list] or a (tuple)"


def read_value(text: str) -> Any:
    """A value from the command line: truth values, numbers (1e-3 too), none, lists, tuples, quoted and plain text.

    Raises:
        ValueError: it begins like a list, a tuple or a quoted text, and is none.
    """
    try:
        return ast.literal_eval(text)  # the numbers, tuples and quoted texts of Python
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        pass
    tuple_of = re.fullmatch(r"\((.*)\)", text.strip(), re.DOTALL)
    try:
        value = mended(yaml.safe_load(f"[{tuple_of[1]}]" if tuple_of else text)) if text.strip() else text
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(_WRONG) from error
    if isinstance(value, str) and value[:1] in ("(", "["):
        raise ValueError(_WRONG)
    return tuple(value) if tuple_of else value


def mended(value: Any) -> Any:
    """A value of YAML, at any depth, with what YAML 1.1 reads as text: 1e-3 is a number, none and None are nothing."""
    if isinstance(value, list | tuple):
        return type(value)(map(mended, value))
    if isinstance(value, dict):
        return {name: mended(entry) for name, entry in value.items()}
    if isinstance(value, str) and value.lower() in _NOTHING:
        return None
    return float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value


def coerced(name: str, value: Any, hint: Any) -> Any:
    """Check a value against a type hint.

    Integers pass as floats, lists as tuples, numbers written like 1e-3 as floats (in mappings too), and none as a list of
    nothing.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return coerced(name, value, next(argument for argument in arguments if argument is not type(None)))
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{name} must be one of {', '.join(map(str, arguments))}, got {shown(value)}")
        return value
    if origin is tuple:
        if Ellipsis in arguments and value in ("none", ["none"], ("none",)):
            return ()
        values = [value] if isinstance(value, str | int | float) else value
        if Ellipsis in arguments and get_origin(arguments[0]) is Literal and isinstance(values, list | tuple):
            values = [part.strip() for entry in values for part in str(entry).split(",") if part.strip()]  # error,latency
        if not isinstance(values, list | tuple):
            raise ConfigError(f"{name} must be a list, got {shown(value)}")
        if Ellipsis not in arguments and len(values) != len(arguments):
            raise ConfigError(f"{name} must have {len(arguments)} values, got {shown(value)}")
        return tuple(coerced(name, entry, arguments[0]) for entry in values)
    if origin is dict and isinstance(value, Mapping):
        return mended(dict(value))
    return _scalar(name, value, origin or hint)


def _scalar(name: str, value: Any, kind: type) -> Any:
    if kind is float and not isinstance(value, bool):
        with suppress(TypeError, ValueError, OverflowError):
            value = float(value)  # YAML reads 1e-3 as text
    if isinstance(value, str) and "\0" in value:
        raise ConfigError(f"{name} must not hold a NUL character, got {shown(value)}")
    if isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool) and not _is_beyond(value):
        return value
    raise ConfigError(f"{name} must be of type {kind.__name__}, got {shown(value)}")


def _is_beyond(value: Any) -> bool:
    """Whether it is a number that nothing can be done with."""
    return abs(value) >= 2**63 if isinstance(value, int) else isinstance(value, float) and not math.isfinite(value)
