"""What a result was made with: versions, device and source commit."""

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from search.masking import masked_command
from spaces.version import __version__

_PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "optuna",
    "ray",
    "fvcore",
    "pandas",
    "safetensors",
    "onnx",
    "onnxscript",
    "onnxruntime",
)


def environment(devices: Sequence[str]) -> dict[str, Any]:
    """This project's version, versions of packages, devices, threads, commit and command, as JSON values.

    Args:
        devices: where candidates are trained, one entry a worker.
    """
    return {
        "version": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": list(devices),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "packages": {package: _version(package) for package in _PACKAGES},
        "commit": _commit(),
        "command": shlex.join(masked_command(sys.argv)),
    }


def command_line(command: str, subject: Path, **options: Any) -> str:
    """A command of run_search.py as it can be typed: options that are None, False or empty are left out.

    Args:
        command: its name.
        subject: the run or folder that it is about.
        options: name -> value, with underscores; a list or tuple is several words, True is the flag alone.
    """
    words = ["python", "run_search.py", command, str(subject)]
    for name, value in options.items():
        if value not in (None, "", (), [], False):
            several = value if isinstance(value, list | tuple) else [] if value is True else [value]
            words += [f"--{name.replace('_', '-')}", *map(str, several)]
    return shlex.join(words)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Commit of the source tree; None where it is no git checkout."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
