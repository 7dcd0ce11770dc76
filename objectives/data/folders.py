"""Image folders: a folder of images for every class, read in one order on every file system; what else lies there is told."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from timm.data.readers.class_map import load_class_map
from torch.utils.data import Dataset

from objectives.data.class_order import natural_key
from objectives.pictures.reading import is_hidden, is_picture
from spaces.errors import DataError, first_line, printable

# Folders that systems leave beside those of people, in lower case.
_SYSTEM = frozenset(("__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"))

Labels = dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What lies in one folder, in the order of names.

    Attributes:
        folders: that are not hidden.
        hidden: folders that are.
        images: files whose names are those of pictures.
        links: those of them that are links.
        left_out: other files: their ending, or `hidden` -> how many.
    """

    folders: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    links: set[str] = field(default_factory=set)
    left_out: Counter[str] = field(default_factory=Counter)


def listed(path: Path) -> Listing:
    """One look at a folder; links are followed.

    Raises:
        DataError: it cannot be listed.
    """
    found = Listing()
    try:
        with os.scandir(path) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                _sort_in(found, entry)
    except OSError as error:
        raise DataError(f"{path_text(path)} cannot be listed: {error.strerror or error}") from error
    return found


def _sort_in(found: Listing, entry: os.DirEntry[str]) -> None:
    if _is_folder(entry):
        is_no_class = is_hidden(entry.name) or entry.name.lower() in _SYSTEM
        (found.hidden if is_no_class else found.folders).append(entry.name)
    elif is_hidden(entry.name):
        found.left_out["hidden"] += 1
    elif is_picture(entry.name) and (entry.is_symlink() or entry.is_file()):  # a link to nothing is an image that is missing
        found.images.append(entry.name)
        if entry.is_symlink():
            found.links.add(entry.name)
    else:
        found.left_out[printable(Path(entry.name).suffix.lower()) or "without an ending"] += 1


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def holds_images(path: Path, above: frozenset[Path] = frozenset()) -> bool:
    """Whether there is an image in a folder or below it; hidden folders, and links to a folder above, are passed over."""
    here = path.resolve()
    if here in above:
        return False
    found = listed(path)
    return bool(found.images) or any(holds_images(path / name, above | {here}) for name in found.folders)


def path_text(path: str | os.PathLike[str]) -> str:
    """A path or name for one line of a message."""
    return printable(os.fspath(path))


def some(names: Iterable[str], most: int = 3) -> str:
    """The first of many names, and how many more there are."""
    given = [path_text(name) for name in names]
    return ", ".join(given[:most]) + (f" and {len(given) - most} more" if len(given) > most else "")


@dataclass(frozen=True, kw_only=True)
class ClassFolders:
    """The class folders of one split.

    Attributes:
        root: where they are.
        images: name of a class -> its files; every class has some. A name is the folder's, in one of the forms that
            Unicode allows (NFC), and with bytes that are no text written out.
        folders: name of a class -> the folder's name as the file system has it.
        links: name of a class -> those of its files that are links; classes without one are not there.
        empty: folders without an image, which are no classes.
        hidden: hidden folders in `root` and in class folders, as paths from `root`.
        left_out: files that are no images, as `Listing` counts them.
    """

    root: Path
    images: Mapping[str, list[str]]
    folders: Mapping[str, str]
    links: Mapping[str, set[str]]
    empty: tuple[str, ...]
    hidden: tuple[str, ...]
    left_out: Counter[str]

    @property
    def count(self) -> int:
        """Images in all."""
        return sum(map(len, self.images.values()))


def read_class_folders(root: Path) -> ClassFolders:
    """Find the classes of a split and their images.

    Raises:
        DataError: there is no class folder or no image, images lie beside class folders, or below them in further folders:
            which folders are the classes is then for the user to say; two folders have one name but for its form.
    """
    top = listed(root)
    _check_top(root, top)
    inside = {name: listed(root / name) for name in top.folders}
    _check_depth(root, inside)
    folders: dict[str, str] = {}
    for name in (name for name, found in inside.items() if found.images):
        if (other := folders.setdefault(_name_of(name), name)) != name:
            raise DataError(f"{path_text(root)} has two folders {path_text(name)} ({other!a} and {name!a}): rename one of them")
    if not folders:
        raise DataError(f"found 0 images in {path_text(root)}: {_empty(inside)}")
    return ClassFolders(
        root=root,
        images={key: inside[name].images for key, name in folders.items()},
        folders=folders,
        links={key: inside[name].links for key, name in folders.items() if inside[name].links},
        empty=tuple(name for name, found in inside.items() if not found.images),
        hidden=(*top.hidden, *(f"{name}/{below}" for name, found in inside.items() for below in found.hidden)),
        left_out=sum((found.left_out for found in inside.values()), top.left_out),
    )


def _name_of(folder: str) -> str:
    return unicodedata.normalize("NFC", os.fsencode(folder).decode("utf-8", "backslashreplace"))


def _check_top(root: Path, top: Listing) -> None:
    if top.images and top.folders:
        count = f"{len(top.images)} image{'s' if len(top.images) > 1 else ''}"
        raise DataError(
            f"{path_text(root)} has {count} beside its class folders ({some(top.images)}): "
            "move each into the folder of its class, or out of the way"
        )
    if not top.folders:
        found = f"{len(top.images)} images but no class folders" if top.images else "no folders"
        others = f" and other files ({counted(top.left_out)})" if top.left_out else ""
        raise DataError(f"{path_text(root)} must have a folder of images for every class, but it has {found}{others}")


def _check_depth(root: Path, inside: Mapping[str, Listing]) -> None:
    """Raise unless the folders of `root` hold their images themselves."""
    above = root.resolve()
    deeper = {name: next(_deeper(root / name, found, above), None) for name, found in inside.items()}
    nested = [name for name, below in deeper.items() if below is not None]
    if not nested:
        return
    example = path_text(Path(nested[0]) / str(deeper[nested[0]]))
    raise DataError(
        f"{path_text(root)} must have a folder of images for every class, or train/ and val/ with such folders, but "
        f"{some(nested)} hold{'s' if len(nested) == 1 else ''} folders in turn ({example}): move the images up "
        "into the folders of their classes, or name the folders that hold the class folders with --train-split and --val-split"
    )


def _deeper(path: Path, found: Listing, root: Path) -> Iterator[str]:
    """Folders of a class folder that hold images, at whatever depth."""
    return (name for name in found.folders if holds_images(path / name, frozenset((path.resolve(), root))))


def _empty(inside: Mapping[str, Listing]) -> str:
    """What class folders hold that give no image."""
    others = sum((found.left_out for found in inside.values()), Counter[str]())
    return f"{some(inside)} hold " + (f"other files alone ({counted(others)})" if others else "nothing")


def counted(left_out: Mapping[str, int]) -> str:
    """Kinds of files with their number, the most frequent first: `.txt 12, hidden 3`."""
    kinds = sorted(left_out.items(), key=lambda pair: (-pair[1], pair[0]))
    return some((f"{kind} {number:,}" for kind, number in kinds), 4)


class ImageFolder(Dataset[tuple[str, int]]):
    """The image files of a split and their labels; how a file becomes an image is `objectives.pictures.reading`' to say.

    Args:
        found: the class folders.
        labels: name of a class -> label; a class without one is left out.

    Attributes:
        root: where they are, without links.
        samples: (path, label) of every image, in timm's order of paths: the same on every file system.
        class_to_idx: `labels`.
        found: the class folders.
    """

    def __init__(self, found: ClassFolders, labels: Labels) -> None:
        self.root, self.found, self.class_to_idx = found.root.resolve(), found, labels
        files = [
            (os.path.join(folder, file), labels[name])  # noqa: PTH118  # a million paths: as text
            for name, folder in found.folders.items() if name in labels for file in found.images[name]
        ]  # fmt: skip
        files.sort(key=lambda pair: (natural_key(pair[0]), pair[0]))
        self.samples = [(os.path.join(found.root, file), label) for file, label in files]  # noqa: PTH118

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[str, int]:
        return self.samples[index]


def mapped(path: str, root: Path) -> Labels:
    """Name of a class -> label, of timm's class map file: a name a line, or a pickled dictionary.

    Args:
        path: of the file; also one in `root`.
        root: of the training split.

    Raises:
        DataError: it cannot be read, or has labels that are no numbers from 0.
    """
    try:
        found = {str(name): int(label) for name, label in load_class_map(path, str(root)).items()}
    except Exception as error:  # timm asserts, pickle raises anything
        kinds = "it must be a .txt file with a name a line, or a .pkl file with a dictionary"
        raise DataError(f"the class map {path_text(path)} cannot be read: {first_line(error)} ({kinds})") from error
    labels = {unicodedata.normalize("NFC", name.removeprefix("\ufeff")): label for name, label in found.items()}
    labels.pop("", None)  # an empty line at the end is no class
    if not labels or min(labels.values()) < 0:
        raise DataError(f"the class map {path_text(path)} must give labels from 0 to the names of classes, got {some(labels)}")
    lacking = sorted(set(range(max(labels.values()))) - set(labels.values()))
    if lacking and path.endswith(".txt"):  # of two equal lines timm takes the last
        why = "a name stands there twice, or a line is empty"
        raise DataError(f"the class map {path_text(path)} gives no name to label {lacking[0]}: {why}")
    return labels
