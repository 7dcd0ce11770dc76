"""Images classified by an exported folder alone: its model in one of its formats, its preprocessing, its names of classes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError
from timm.data import create_transform
from torch import Tensor

from objectives.formats import Format, Forward, open_format
from spaces.description import read_description
from spaces.errors import CheckpointError, ConfigError, DataError, first_line, visible

_MODES = {1: "L", 3: "RGB"}
_LONGEST = 200  # of a class's name in the terminal


@dataclass(frozen=True)
class Answer:
    """The likeliest classes of one image.

    Attributes:
        image: its file.
        classes: (label, name or None, probability), the likeliest first.
    """

    image: Path
    classes: tuple[tuple[int, str | None, float], ...]

    @property
    def text(self) -> str:
        """For the terminal: `cat (3) 97.1 %, dog (5) 2.2 %`."""
        return ", ".join(
            f"class {label} {probability:.1%}" if name is None else f"{visible(name, _LONGEST)} ({label}) {probability:.1%}"
            for label, name, probability in self.classes
        )


def classify(folder: Path, images: Sequence[str | Path], name: Format = "safetensors", top: int = 5) -> Iterator[Answer]:
    """Classify images, one after the other.

    Args:
        folder: of `run_search.py export`.
        images: image files, or folders, whose image files are taken in the order of their names.
        name: the format to use.
        top: how many classes to tell, or all there are.

    Raises:
        CheckpointError: the folder is damaged, or lacks the format.
        ConfigError: `top` is below 1, or the format's package is not installed.
        DataError: no such file, not an image, or a folder with no image.
    """
    if top < 1:
        raise ConfigError(f"top must be at least 1, got {top}")
    description = read_description(folder)
    if not description["num_classes"]:
        raise CheckpointError(f"{folder} holds a model without classes: its outputs are features")
    files = [file for given in images for file in _files(Path(given))]
    transform, forward = preprocessing_of(description), open_format(folder, name)
    for file in files:
        yield _classified(file, _opened(file, description, transform), forward, description, top)


def preprocessing_of(description: dict[str, Any]) -> Callable[[Image.Image], Tensor]:
    """What makes the model's input [C, H, W] of an image, by timm."""
    given = description["pretrained_cfg"]
    keys = ("interpolation", "mean", "std", "crop_pct", "crop_mode")
    try:
        transform: Callable[[Image.Image], Tensor] = create_transform(
            tuple(given["input_size"]), **{key: given[key] for key in keys}, is_training=False
        )
    except Exception as error:  # timm asserts
        raise CheckpointError(f"the preprocessing {given} is not timm's: {first_line(error)}") from error
    return transform


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    known = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in known)
    if not found:
        raise DataError(f"no image in {path}: none of its files has an image's ending (.jpg, .png, .webp and so on)")
    return found


def _opened(file: Path, description: dict[str, Any], transform: Callable[[Image.Image], Tensor]) -> Tensor:
    channels = description["pretrained_cfg"]["input_size"][0]
    if channels not in _MODES:
        raise DataError(f"the model takes images of {channels} channels, but images are read as grey (1) or RGB (3)")
    try:
        with Image.open(file) as image:
            return transform(image.convert(_MODES[channels]))
    except FileNotFoundError as error:
        raise DataError(f"no image at {file}") from error
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{file} cannot be read as an image: {first_line(error)}") from error


def _classified(file: Path, image: Tensor, forward: Forward, description: dict[str, Any], top: int) -> Answer:
    classes, names = description["num_classes"], description["label_names"]
    try:
        (logits,) = forward(image[None]).float()
    except Exception as error:  # runtimes raise what they like at images of another shape
        raise CheckpointError(f"the model does not take images of {list(image.shape)}: {first_line(error)[:300]}") from error
    if logits.ndim != 1 or len(logits) != classes:
        raise CheckpointError(
            f"the model gives outputs of the shape {list(logits.shape)} for an image, not of [{classes}] classes"
        )
    if not bool(logits.isfinite().all()):
        raise CheckpointError(f"the model gives outputs for {file} that are no finite numbers: the exported file is damaged")
    found = logits.softmax(-1).topk(min(top, len(logits)))
    pairs = zip(found.indices.tolist(), found.values.tolist(), strict=True)
    return Answer(file, tuple((label, names[label] if names else None, share) for label, share in pairs))
