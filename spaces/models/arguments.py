"""Arguments of a timm architecture: which there may be, and whether a model's class takes such values."""

import inspect
import math
import types
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin

from spaces.errors import ConfigError, shown

# Arguments of timm.create_model that are no part of an architecture, and the option that stands for them.
_OPTIONS = {
    "model_name": "--model", "num_classes": "--num-classes", "pretrained": "--pretrained", "checkpoint_path": "--checkpoint",
    "pretrained_cfg": "--mean, --std, --interpolation and --crop-pct", "pretrained_cfg_overlay": "--checkpoint",
    "device": "--device", "dtype": "--amp", "cache_dir": "the environment variable HF_HUB_CACHE",
}  # fmt: skip


def checked_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of an architecture, lists as the tuples that timm wants.

    Raises:
        ConfigError: one is no part of an architecture, or has a value that no file of options can hold.
    """
    for name in arguments:
        if name in _OPTIONS:
            raise ConfigError(f"model_kwargs must not have {name}: give {_OPTIONS[name]} instead")
        if not isinstance(name, str) or not name.isidentifier():
            raise ConfigError(f"model_kwargs must have names of arguments, got {shown(name)}")
    return tupled(arguments)


def tupled(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments whose lists, which is what JSON and YAML have, are tuples.

    Raises:
        ConfigError: a value is none that JSON and YAML have.
    """
    return {name: _tupled(name, value) for name, value in arguments.items()}


def _tupled(name: str, value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_tupled(name, entry) for entry in value)
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return tupled(value)
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise ConfigError(f"model_kwargs {name} must be a truth value, a number, a text or a list of them, got {shown(value)}")


def argument_problem(model: type, arguments: Mapping[str, Any]) -> str | None:
    """Which argument a model was made from without being meant: a text where a truth value belongs counts as true, say."""
    for name, value in arguments.items():
        kinds = _kinds(model, name)
        if value is None or not kinds:
            continue
        if bool in kinds and not (isinstance(value, bool) or value in (0, 1) or type(value) in kinds):
            return f"{name} must be true or false, got {shown(value)}"
        if isinstance(value, bool) and bool not in kinds and kinds <= {int, float, str}:
            return f"{name} must be of type {' or '.join(sorted(kind.__name__ for kind in kinds))}, got {str(value).lower()}"
    return None


def _kinds(model: type, name: str) -> set[type]:
    """The plain types that the annotation of a class's argument allows; empty where it has none, or one of another kind."""
    for owner in model.__mro__:
        parameter = inspect.signature(vars(owner)["__init__"]).parameters.get(name) if "__init__" in vars(owner) else None
        if parameter is not None:
            hint = parameter.annotation
            found = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
            return {kind for kind in found if kind in (bool, int, float, str)} if _is_plain(found) else set()
    return set()


def _is_plain(hints: tuple[Any, ...]) -> bool:
    return all(hint in (bool, int, float, str, type(None)) for hint in hints)
