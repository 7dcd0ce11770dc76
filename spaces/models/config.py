"""ModelConfig: which dense model to compress, checked when it is made."""

from dataclasses import dataclass, field
from typing import Any

from spaces.errors import ConfigError
from spaces.models.arguments import checked_arguments

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")  # of an image file, as timm names them
CROP_MODES = ("center", "squash", "border")
# timm's own crop_pct reach from 0.875 to 1.15; beyond these ends an image is a few pixels, or too large for the memory.
_CROP = (0.1, 1.5)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which dense model to compress. Names are timm's.

    Attributes:
        model: timm model name. Or a folder that timm.models.save_for_hf wrote, with its weights and preprocessing:
            local-dir:FOLDER or hf-hub:ORG/NAME.
        pretrained: load timm's pretrained weights, from the network or from the hub's cache.
        checkpoint: your own weights of this model: a .safetensors or PyTorch file (a state dict or a training checkpoint;
            averaged weights in it are preferred), a folder that timm.models.save_for_hf wrote, or hf-hub:ORG/NAME.
        num_classes: classes of the head; by default those of the checkpoint, else timm's own.
        model_kwargs: further arguments of timm.create_model, e.g. img_size=28 qkv_bias=false. Values are read as YAML or
            Python; none or null leaves the argument to timm.
        mean, std: normalisation per channel, for pixel values between 0 and 1; by default the model's own.
        interpolation: resize filter: nearest, bilinear, bicubic, box, hamming or lanczos; by default the model's own.
        crop_pct: share of the resized image that evaluation keeps; by default the model's own.
        crop_mode: how evaluation crops: center, squash or border; by default the model's own.
    """

    model: str = ""
    pretrained: bool = False
    checkpoint: str | None = None
    num_classes: int | None = None
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    crop_pct: float | None = None
    crop_mode: str | None = None

    def __post_init__(self) -> None:
        if self.num_classes is not None and self.num_classes < 1:
            raise ConfigError(f"num_classes must be at least 1, got {self.num_classes}")
        if not all(0 <= value <= 1 for value in self.mean or ()):
            raise ConfigError(f"mean must be of pixel values between 0 and 1, got {_listed(self.mean)}")
        if not all(0 < value <= 1 for value in self.std or ()):
            raise ConfigError(f"std must be of pixel values between 0 and 1, and more than 0, got {_listed(self.std)}")
        if self.crop_pct is not None and not _CROP[0] <= self.crop_pct <= _CROP[1]:
            raise ConfigError(f"crop_pct must be between {_CROP[0]} and {_CROP[1]}, got {self.crop_pct}")
        for name, known in (("interpolation", INTERPOLATIONS), ("crop_mode", CROP_MODES)):
            value = getattr(self, name)
            if value is not None and value not in known:
                raise ConfigError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        object.__setattr__(self, "model_kwargs", checked_arguments(self.model_kwargs))


def _listed(values: tuple[float, ...] | None) -> str:
    return ", ".join(map(str, values or ()))
