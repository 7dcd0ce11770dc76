"""Images classified by an exported folder alone: its model in one of its formats, its preprocessing, its names of classes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from objectives.deploy.config import Format, check_top
from objectives.deploy.formats import Forward, open_format
from objectives.pictures.reading import Reading, is_hidden, is_picture, reading_for
from objectives.pictures.transform import Transform, evaluation_transform, prepared
from spaces.errors import CheckpointError, DataError, first_line, printable
from spaces.folder.description import read_description

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
            f"class {label} {probability:.1%}" if name is None else f"{printable(name, _LONGEST)} ({label}) {probability:.1%}"
            for label, name, probability in self.classes
        )


@dataclass(frozen=True)
class Unread:
    """An image that cannot be read.

    Attributes:
        image: its file.
        problem: a line that names it and says why.
    """

    image: Path
    problem: str


def classify(
    folder: Path,
    images: Sequence[str | Path],
    name: Format = "safetensors",
    top: int = 5,
    notice: Callable[[str], None] = lambda text: None,
) -> Iterator[Answer | Unread]:
    """Classify images, one after the other; one that cannot be read does not stop it.

    Args:
        folder: of `run_search.py export`.
        images: image files, or folders, whose image files are taken in the order of their names; those of folders in them
            are not.
        name: the format to use.
        top: how many classes to tell, or all there are.
        notice: told what of a folder is left out.

    Raises:
        CheckpointError: the folder is damaged, or lacks the format.
        ConfigError: `top` is below 1, or the format's package is not installed.
        DataError: a folder with no image, or a model that takes no pictures.
    """
    check_top(top)
    description = read_description(folder)
    if not description["num_classes"]:
        raise CheckpointError(f"{folder} holds a model without classes: its outputs are features")
    reading = reading_of(description)
    given = [_files(Path(path)) for path in images]
    transform, forward = preprocessing_of(description), open_format(folder, name)
    for files, left_out in given:
        if left_out:
            notice(left_out)
        for file in files:
            try:
                image = prepared(transform, reading.read(file), str(file))
            except DataError as error:
                yield Unread(file, str(error))
                continue
            yield _classified(file, image, forward, description, top)


def preprocessing_of(description: dict[str, Any]) -> Transform:
    """What makes the model's input [C, H, W] of an image.

    Raises:
        CheckpointError: no image can be prepared so.
    """
    given = description["pretrained_cfg"]
    try:
        return evaluation_transform(given)
    except Exception as error:  # timm asserts
        raise CheckpointError(f"the preprocessing {given} is not timm's: {first_line(error)}") from error


def reading_of(description: dict[str, Any]) -> Reading:
    """How picture files are read for the model.

    Raises:
        DataError: it takes no pictures, having other than 1 or 3 channels.
    """
    given = description["pictures"]
    return Reading.from_json(given) if given is not None else reading_for(description["pretrained_cfg"]["input_size"][0])


def _files(path: Path) -> tuple[list[Path], str]:
    """The picture files of a folder, or the file itself; and what of the folder is left out.

    Raises:
        DataError: a folder with no image.
    """
    if not path.is_dir():
        return [path], ""
    entries = sorted(entry for entry in path.iterdir() if not is_hidden(entry.name))
    folders = [entry for entry in entries if entry.is_dir()]
    found = [entry for entry in entries if is_picture(entry.name) and entry not in folders]
    others = len(entries) - len(folders) - len(found)
    counts = [f"{others:,} file{'s that are no images' if others > 1 else ' that is no image'}"] if others else []
    counts += [f"{len(folders):,} folder{'s' if len(folders) > 1 else ''}, whose images are not looked for"] if folders else []
    left_out = f"{printable(str(path))}: {' and '.join(counts)}"
    if not found:
        raise DataError(f"no image in {left_out if counts else printable(str(path))} (images end in .jpg, .png and so on)")
    return found, f"left out of {left_out}" if counts else ""


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
