"""Values as YAML and Python write them."""

import ast
import re
from typing import Any

import yaml

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
