"""A torch.export archive read without trusting it: its members are checked and written anew before torch opens them.

torch.export.load unpickles weights, constants and sample inputs, and opens compiled libraries, where an archive has them.
"""

import io
import json
import math
import re
import sys
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from objectives.deploy.pt2_graph import RefusedError, harmless, path, tensor, whole
from objectives.runtime.quiet import quiet
from spaces.errors import CheckpointError, first_line

_PROGRAM, _SAMPLES = "models/model.json", "data/sample_inputs/model.pt"
_TABLES = {"weights": "data/weights/model_weights_config.json", "constants": "data/constants/model_constants_config.json"}
_FIXED = (_PROGRAM, _SAMPLES, *_TABLES.values(), "archive_format", "archive_version", "byteorder")
_VERSION = ".data/version"  # of torch's zip format
_NOTES = (_VERSION, ".data/serialization_id")
_NUMBERS = re.compile(r"data/(?:weights/weight|constants/tensor)_\d{1,7}")
_LONGEST = 16_000_000  # bytes of a JSON member: hundreds of blocks
_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 2, 7: 4, 8: 8, 12: 1, 13: 2}  # of a number, by torch's code of its type


def load_archive(file: Path) -> ExportedProgram:
    """The program of an archive as `run_search.py export` writes it.

    Nothing is unpickled, no symbolic size, guard or name of the file is run, and no more memory is taken than a few times the
    file's size.

    Raises:
        CheckpointError: the file is no such archive, is damaged, or has members or a program that an export does not write.
    """
    try:
        content = _rewritten(file)
        with quiet("torch.export"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given buffer is not writable")  # nor written to; torch 2.11 warns
            return torch.export.load(content)
    except (OSError, MemoryError):
        raise
    except RefusedError as error:
        raise CheckpointError(f"{file} is refused: {error}; this project's export writes no such archive") from error
    except Exception as error:  # foreign bytes make zipfile, json and torch raise anything
        raise CheckpointError(f"{file} cannot be read as an archive of torch.export: {first_line(error)[:200]}") from error


def _rewritten(file: Path) -> io.BytesIO:
    """The same program and weights, as an archive of only these."""
    with zipfile.ZipFile(file) as archive:
        members = _members(archive, file.stat().st_size)
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as checked:
            for name, member in _checked(archive, members):
                checked.writestr(f"model/{name}", member)
    content.seek(0)
    return content


def _members(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """Members by their names below the archive's own, after their names, sizes and packing were checked."""
    entries = archive.infolist()
    members = {entry.filename.partition("/")[2]: entry for entry in entries}
    roots = {entry.filename.partition("/")[0] for entry in entries}
    if len(members) != len(entries) or len(roots) != 1:
        raise RefusedError("it has two members of one name")
    for name, entry in members.items():
        if name not in (*_FIXED, *_NOTES) and not _NUMBERS.fullmatch(name):
            raise RefusedError(f"it has the member {entry.filename[:100]!r}")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise RefusedError(f"its member {entry.filename!r} is compressed or encrypted")
    if sum(entry.file_size for entry in entries) > size:
        raise RefusedError(f"its members say to be larger than the file, which has {size:,} bytes")
    missing = [name for name in _FIXED if name not in members and name != _SAMPLES]
    if missing:
        raise RefusedError(f"it lacks the member {missing[0]!r}")
    if _SAMPLES in members and members[_SAMPLES].file_size:
        raise RefusedError("it has sample inputs, which are pickled")
    return members


def _checked(archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo]) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the archive that torch gets."""
    if archive.read(members["byteorder"]) != sys.byteorder.encode():
        raise RefusedError(f"it was written on a machine of another byte order than this one's, {sys.byteorder}")
    yield _PROGRAM, json.dumps(harmless(_json(archive, members[_PROGRAM]))).encode()
    for kind, table in _TABLES.items():
        config = _json(archive, members[table])
        if not isinstance(config, dict) or not isinstance(config.get("config"), dict):
            raise RefusedError(f"its member {table!r} is no table")
        entries = {path(name): _entry(entry, kind, members) for name, entry in config["config"].items()}
        yield table, json.dumps({"config": entries}).encode()
        for name in sorted({f"data/{kind}/{entry['path_name']}" for entry in entries.values()}):
            yield name, archive.read(members[name])
    yield _SAMPLES, b""
    yield _VERSION, b"3\n"
    for name in ("archive_format", "archive_version", "byteorder"):
        yield name, archive.read(members[name])


def _json(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Any:
    if member.file_size > _LONGEST:
        raise RefusedError(f"its member {member.filename!r} has {member.file_size:,} bytes, more than {_LONGEST:,}")
    try:
        return json.loads(archive.read(member).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"its member {member.filename!r} is no JSON ({first_line(error)[:100]})") from error


def _entry(entry: Any, kind: str, members: Mapping[str, zipfile.ZipInfo]) -> dict[str, Any]:
    """Where the numbers of a weight are and how they are read; they must be there, each of them."""
    if not isinstance(entry, dict) or entry.get("use_pickle") is not False:
        raise RefusedError("a weight is pickled, which may run code")
    name, prefix = entry.get("path_name"), f"data/{kind}/"
    if not isinstance(name, str) or not _NUMBERS.fullmatch(prefix + name) or prefix + name not in members:
        raise RefusedError(f"a weight is in {str(name)[:60]!r}, which is no member")
    try:
        meta = tensor(entry["tensor_meta"], whole)
    except (KeyError, TypeError, AttributeError) as error:
        raise RefusedError("a weight has no shape") from error
    numbers = math.prod(size["as_int"] for size in meta["sizes"])
    if meta["dtype"] not in _BYTES or numbers * _BYTES[meta["dtype"]] > members[prefix + name].file_size:
        raise RefusedError(f"a weight of {numbers:,} numbers is not what its member {name!r} has")
    return {"path_name": name, "is_param": entry.get("is_param") is True, "use_pickle": False, "tensor_meta": meta}
