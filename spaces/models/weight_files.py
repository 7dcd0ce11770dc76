"""Files of weights, read without running what they hold: safetensors, PyTorch's, and folders of them."""

import argparse
import codecs
import pathlib
import pickle
import types
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from spaces.errors import CheckpointError, first_line, printable, shown
from spaces.models.places import no_checkpoint
from spaces.schema import Each, Kind, SchemaError, check, read_json

# Names of weights in a folder, as timm and transformers write them, the most wanted first; an index names several files.
WEIGHT_FILES = (
    "model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "pytorch_model.bin.index.json",
    "pytorch_model.pth", "model.pth",
)  # fmt: skip
_INDEX = {"weight_map": Each(Kind("a file of its folder", lambda name: isinstance(name, str) and Path(name).name == name))}
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
_SCALAR = np.float64(0).__reduce__()[0]
_ENCODE: Any = codecs.encode
# What training scripts keep beside weights, and what runs nothing: options, best accuracies, paths.
_HARMLESS: list[Any] = [
    argparse.Namespace, types.SimpleNamespace, np.dtype, *{type(np.dtype(code)) for code in "?bBhHiIlLqQefd"},
    (_SCALAR, "numpy.core.multiarray.scalar"), (_SCALAR, "numpy._core.multiarray.scalar"), (_ENCODE, "_codecs.encode"),
    pathlib.PosixPath, (pathlib.PosixPath, "pathlib._local.PosixPath"), (pathlib.PosixPath, "pathlib.PosixPath"),
]  # fmt: skip


def read_weights(path: Path) -> tuple[Any, Path]:
    """The content of a file of weights, or of the one in a folder; and which file it was.

    Raises:
        CheckpointError: nothing is there, or it cannot be read as weights, or only by running what it holds.
    """
    if path.is_dir():
        path = _in_folder(path)
    if path.name.endswith(".index.json"):
        return _read_shards(path), path
    return _read_file(path), path


def _in_folder(folder: Path) -> Path:
    with _readable(folder):
        files = sorted(path for path in folder.iterdir() if path.is_file())
    named = [folder / name for name in WEIGHT_FILES if folder / name in files]
    if named:
        return named[0]
    found = [path for path in files if path.suffix in _SUFFIXES]
    if len(found) == 1:
        return found[0]
    if not found:
        raise CheckpointError(f"{folder} is a folder without weights: give a file, or a folder with {WEIGHT_FILES[0]}")
    names = ", ".join(path.name for path in found[:3])
    raise CheckpointError(f"{folder} has {len(found)} files of weights ({names}): give one of them with --checkpoint")


def _read_shards(index: Path) -> dict[str, Any]:
    with _readable(index):
        content = read_json(index)
    try:
        check(content, _INDEX)
    except SchemaError as error:
        raise CheckpointError(f"{index} does not say in which file of its folder every tensor is (weight_map)") from error
    files = sorted(set(content["weight_map"].values()))
    return {key: tensor for name in files for key, tensor in _read_file(index.parent / name).items()}


def _read_file(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(f"{path} is no file of weights") if path.exists() else no_checkpoint(path)
    with _readable(path):
        beginning, size = _beginning(path), path.stat().st_size
        if not size:
            raise CheckpointError(f"{path} is an empty file")
        if path.suffix == ".safetensors" or beginning[8:9] == b"{":
            return load_file(path)
        if zipfile.is_zipfile(path) and all(name.endswith(".npy") for name in zipfile.ZipFile(path).namelist()):
            raise CheckpointError(
                f"{path} holds arrays of NumPy, as JAX models are kept: --pretrained loads those that timm knows"
            )
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Foreign bytes make readers raise anything; all of it means the same to the user."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of pickle protocols before it refuses them
            yield
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{path} {_problem(path, error)}") from error


def _problem(path: Path, error: Exception) -> str:
    """Why a file gave no weights; a pickle is told from noise by how it begins."""
    if isinstance(error, PermissionError):
        return "cannot be read: no permission"
    refused = isinstance(error, pickle.UnpicklingError)
    if refused and _beginning(path).startswith((b"PK", b"\x80")):
        return (
            f"holds pickled Python objects{_unsafe(path)}, which can run code when loaded: save its state_dict() or safetensors"
        )
    reason = "no PyTorch file" if refused else printable(first_line(error)[:200])
    return f"cannot be read as weights ({reason}): cut short, or of another format?"


def _unsafe(path: Path) -> str:
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # of another form than PyTorch's own
        return ""
    return f" ({shown(', '.join(names), 80)})" if names else ""


def _beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(9)
