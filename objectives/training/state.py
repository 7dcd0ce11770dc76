"""The state of a training in a file of tensors and JSON: nested dicts, lists and tuples of plain values and tensors."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from spaces.schema import parse_json
from spaces.tensors import save_tensors


def save_state(path: Path, mark: str, state: Mapping[str, Any], note: Any = None) -> None:
    """Write a state atomically.

    Args:
        path: the file.
        mark: of all that the state depends on.
        state: its tensors may be on any device.
        note: a JSON value that can be read without the state.

    Raises:
        TypeError: the state holds what JSON has no form for; nothing is written.
    """
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(_packed(state, tensors))
    save_tensors(path, tensors, {"mark": mark, "note": json.dumps(note), "state": tree})


def load_state(path: Path) -> dict[str, Any]:
    """Inverse of `save_state`, its tensors on the CPU."""
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        state: dict[str, Any] = _unpacked(json.loads(file.metadata()["state"]), tensors)
    return state


def read_note(path: Path, mark: str) -> Any:
    """The note of a state that was saved with this mark; None where there is none. A damaged file, or another's, is removed."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        if metadata["mark"] == mark:
            return parse_json(metadata["note"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        pass  # begun anew, nothing is lost but time
    path.unlink(missing_ok=True)
    return None


def _packed(value: Any, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON, its tensors put into `tensors`: what JSON has no form for becomes a list that begins with its type."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().to("cpu", copy=True)  # safetensors refuses tensors that share memory
        return ["tensor", name]
    if isinstance(value, Mapping):
        return ["dict", [[key, _packed(entry, tensors)] for key, entry in value.items()]]
    if isinstance(value, list | tuple):
        return ["tuple" if isinstance(value, tuple) else "list", [_packed(entry, tensors) for entry in value]]
    return value


def _unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Inverse of `_packed`."""
    if not isinstance(value, list):
        return value
    kind, content = value
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _unpacked(entry, tensors) for key, entry in content}
    return {"tuple": tuple, "list": list}[kind](_unpacked(entry, tensors) for entry in content)
