"""What config.json of an exported folder says, checked before anything is built from it; the hashes of the model files."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spaces.errors import CheckpointError, first_line, shown
from spaces.format_number import check_format
from spaces.models.preprocessing import is_a, is_number, preprocessing_problem

WEIGHTS = "model.safetensors"


CONFIG = "config.json"
# Raise it with every change that makes an old folder unreadable, or a new folder unreadable for the version before.
FOLDER_FORMAT = 2
_DTYPES = ("float32", "bfloat16", "float16")

# Names are those of timm's own config.json on the hub where it has one: the first five.
_TYPES: dict[str, type] = {
    "architecture": str, "model_args": dict, "num_classes": int, "label_names": list, "pretrained_cfg": dict,
    "pictures": dict,
    "space": str, "multiple": int, "allocation": dict, "dtype": str, "files": dict,
}  # fmt: skip
_MAY_BE_NONE = ("num_classes", "label_names", "pictures")
_LONGEST = 16_000_000  # bytes of config.json: tens of thousands of classes with names
_LONGEST_NAME = 200
_FILE = re.compile(r"model\.[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_LARGEST, _RANGE = 1_000_000, 1e18
_MODES = {1: "L", 3: "RGB"}  # of pictures, by channels
_BACKGROUNDS = ("white", "black", "grey", "ignored")
# Arguments of timm.create_model that would have it read other files than these.
_REFUSED = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")


def read_description(folder: Path) -> dict[str, Any]:
    """The content of config.json.

    Raises:
        CheckpointError: it is missing, no JSON, of another format, lacks what `save_compressed` writes, or has values of other
            types.
    """
    path = folder / CONFIG
    try:
        description = _json(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or first_line(error)}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {first_line(error)}") from error
    if not isinstance(description, dict):
        raise CheckpointError(f"{path} cannot be read: it must be an object, got {shown(description)}")
    check_format(path, description, FOLDER_FORMAT, CheckpointError, "export the model again")
    missing = [key for key in _TYPES if key not in description]
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}: it was not written by this project's export")
    problem = next(filter(None, (find(description) for find in _PROBLEMS)), None)
    if problem is not None:
        raise CheckpointError(f"{path} is damaged: {problem}")
    return description


def _json(path: Path) -> Any:
    if path.exists() and not path.is_file():
        raise ValueError("it is no file")
    if path.stat().st_size > _LONGEST:
        raise ValueError(f"it has {path.stat().st_size:,} bytes, and no more than {_LONGEST:,} are read")
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def checked_file(folder: Path, name: str, description: dict[str, Any]) -> Path:
    """A model file of the folder, after its size and hash were compared with config.json.

    Raises:
        CheckpointError: the folder does not have it, or it is another one.
    """
    path, files = folder / name, description["files"]
    if name not in files:
        raise CheckpointError(f"{folder} has no {name}: it was exported with {', '.join(files) or 'no model file'}")
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is no file")
        found = fingerprint_of(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    for key, value in found.items():
        if value != files[name].get(key):
            what = {"bytes": "size", "sha256": "SHA-256"}[key]
            told = f"its {what} is {value}, {CONFIG} says {shown(files[name].get(key))}"
            raise CheckpointError(f"{path} is not the file that was exported ({told}): copy or export it again")
    return path


def fingerprint_of(path: Path) -> dict[str, Any]:
    """Size in bytes and SHA-256 of a file, in this order: a file that was cut short is told by its size."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _wrong_type(description: dict[str, Any]) -> str | None:
    for key, kind in _TYPES.items():
        value = description[key]
        if not (is_a(value, kind) or (value is None and key in _MAY_BE_NONE)):
            return f"{key} must be of type {kind.__name__}, got {shown(value)}"
    return None


def _wrong_value(description: dict[str, Any]) -> str | None:
    if len(description["architecture"]) > _LONGEST_NAME:
        return f"architecture must be the name of a model, got {shown(description['architecture'])}"
    refused = [name for name in _REFUSED if name in description["model_args"]]
    if refused:
        return f"model_args must not have {refused[0]}"
    if description["dtype"] not in _DTYPES:
        return f"dtype must be one of {', '.join(_DTYPES)}, got {shown(description['dtype'])}"
    if description["multiple"] < 1 or description["multiple"] > _LARGEST:
        return f"multiple must be from 1 to {_LARGEST:,}, got {shown(description['multiple'])}"
    order = description.get("class_order")
    if not (order is None or order in ("timm", "torchvision") or (isinstance(order, str) and order.startswith("class map "))):
        return f"class_order must be timm, torchvision, class map FILE or null, got {shown(order)}"
    return None


def _wrong_files(description: dict[str, Any]) -> str | None:
    for name, entry in description["files"].items():
        if not _FILE.fullmatch(name):
            return f"files must be named model.safetensors, model.onnx and the like, got {shown(name)}"
        if not isinstance(entry, dict):
            return f"files has no size and hash of {shown(name)}"
    return None


def _wrong_labels(description: dict[str, Any]) -> str | None:
    labels, classes = description["label_names"], description["num_classes"]
    if classes is not None and classes < 0:
        return f"num_classes must be 0 or more, got {shown(classes)}"
    if labels is None or (len(labels) == classes and all(isinstance(name, str) for name in labels)):
        return None
    return f"label_names must be {classes} texts, one for a class, got {shown(labels)}"


def _wrong_preprocessing(description: dict[str, Any]) -> str | None:
    return preprocessing_problem(description["pretrained_cfg"])


def _wrong_pictures(description: dict[str, Any]) -> str | None:
    """How picture files become images: null for a model of other than 1 or 3 channels, which takes none."""
    given, channels = description["pictures"], description["pretrained_cfg"]["input_size"][0]
    if given is None and channels not in _MODES:
        return None
    if given is None or set(given) != {"mode", "pixel_range", "background"}:
        return f"pictures must have mode, pixel_range and background, got {shown(given)}"
    if given["mode"] != _MODES.get(channels):
        return f"mode of pictures must be L for 1 channel, RGB for 3, got {shown(given['mode'])} for {channels}"
    values = given["pixel_range"]
    is_range = (
        isinstance(values, list)
        and len(values) == 2
        and all(is_number(value, -_RANGE, _RANGE) for value in values)
        and values[0] < values[1]
    )
    if values is not None and not is_range:
        return f"pixel_range of pictures must be two numbers low < high, or null, got {shown(values)}"
    if given["background"] not in _BACKGROUNDS:
        return f"background of pictures must be one of {', '.join(_BACKGROUNDS)}, got {shown(given['background'])}"
    return None


_PROBLEMS: tuple[Callable[[dict[str, Any]], str | None], ...] = (
    _wrong_type, _wrong_value, _wrong_files, _wrong_labels, _wrong_preprocessing,
    _wrong_pictures,
)  # fmt: skip
