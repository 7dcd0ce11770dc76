"""The file formats and dtypes of an export, in options."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from spaces.errors import ConfigError
from spaces.folder.description import WEIGHTS

Format = Literal["safetensors", "onnx", "pt2"]
Dtype = Literal["fp32", "bf16", "fp16"]
FILES: dict[Format, str] = {"safetensors": WEIGHTS, "onnx": "model.onnx", "pt2": "model.pt2"}
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")  # all in the extra `onnx`


@dataclass(frozen=True, kw_only=True)
class FormatConfig:
    """What an export writes.

    Attributes:
        format: safetensors with config.json (always), and onnx or pt2 (torch.export) beside them; commas or several words.
        dtype: of the weights.

    Raises:
        ConfigError: an unknown format or dtype, one that needs packages that are not installed, or two that do not go together.
    """

    format: tuple[str, ...] = ("safetensors",)
    dtype: Dtype = "fp32"

    def __post_init__(self) -> None:
        named = named_formats(self.format)
        if self.dtype not in get_args(Dtype):
            raise ConfigError(f"dtype must be one of {', '.join(get_args(Dtype))}, got {self.dtype!r}")
        if "onnx" in named:
            require_onnx()
            if self.dtype == "bf16":
                raise ConfigError("onnxruntime has no bf16 operators for CPUs: choose --dtype fp16 or fp32 with onnx")

    @property
    def formats(self) -> tuple[Format, ...]:
        """Safetensors, and the others that are wanted, each once."""
        return named_formats(("safetensors", *self.format))


def named_formats(words: Sequence[str]) -> tuple[Format, ...]:
    """The formats that words name, each once: `["onnx,pt2", "onnx"]` are two.

    Raises:
        ConfigError: one is unknown.
    """
    named = [name for word in words for name in word.split(",") if name]
    unknown = [name for name in named if name not in FILES]
    if unknown:
        raise ConfigError(f"unknown format {unknown[0]!r}: choose of {', '.join(FILES)}")
    return tuple(name for name in get_args(Format) if name in named)


def require_onnx() -> None:
    """Raise ConfigError where a package that ONNX needs is not installed."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"format onnx needs {', '.join(missing)}, not installed here: pip install 'vit-compression-search[onnx]'"
        )


def check_top(top: int) -> None:
    """Raise ConfigError unless there can be so many classes of an image to tell."""
    if top < 1:
        raise ConfigError(f"top must be at least 1, got {top}")
