"""Which folders of an image folder are its splits."""

from dataclasses import dataclass
from pathlib import Path

from objectives.data.config import TEST, TRAIN
from objectives.data.folders import holds_images, listed, path_text, some
from spaces.errors import DataError

_TRAIN_FOLDERS = (TRAIN, "training")
_TEST_FOLDERS = (TEST, "test", "val", "valid", "eval", "evaluation")
SPLIT_FOLDERS = frozenset((*_TRAIN_FOLDERS, *_TEST_FOLDERS))


@dataclass(frozen=True, kw_only=True)
class SplitFolders:
    """Folders of the splits; None where a split has none, and is held out of `train`.

    Attributes:
        train: the image folder itself where it has class folders and no splits.
        search: where candidates are compared.
        test: what is reported on.
    """

    train: Path
    search: Path | None
    test: Path | None


def find_split_folders(root: Path, train: str, search: str | None, test: str) -> SplitFolders:
    """Find the splits of an image folder: those that are named, and else those that have a usual name, in any case.

    Args:
        root: the image folder, which is there.
        train, search, test: the options' values.

    Raises:
        DataError: a folder that is named is not there, or none can be trained on.
    """
    for split, name, default in (("train", train, TRAIN), ("search", search, None), ("test", test, TEST)):
        if name is not None and name != default and _folder(root, name) is None:
            raise DataError(f"{path_text(root)} has no folder {name!r} for the {split} split: it has {_listed(root)}")
    searched = None if search is None else _folder(root, search)
    trained = next(filter(None, (_folder(root, name) for name in (train, *_TRAIN_FOLDERS))), None)
    if trained is None:
        _check_flat(root, *(name for name in (search, test) if name not in (None, TEST)))
        return SplitFolders(train=root, search=None, test=None)
    if test != TEST:
        return SplitFolders(train=trained, search=searched, test=_folder(root, test))
    usual = filter(None, (_folder(root, name) for name in _TEST_FOLDERS))
    return SplitFolders(
        train=trained, search=searched, test=next((path for path in usual if path != searched and has_classes(path)), None)
    )


def ignored_folders(root: Path, used: SplitFolders) -> list[str]:
    """Names of the folders beside the splits that none of them reads, in an image folder."""
    if used.train == root:
        return []
    paths = [path for path in (used.train, used.search, used.test) if path is not None and path.is_relative_to(root)]
    taken = {part for path in paths for part in path.relative_to(root).parts[:1]}
    return sorted(path.name for path in root.iterdir() if path.is_dir() and path.name not in taken)


def _folder(root: Path, name: str) -> Path | None:
    """The folder of this name, or of the same letters in other cases; also a path below `root`."""
    folders = {path.name: path for path in sorted(root.iterdir()) if path.is_dir()}
    alike = (path for other, path in folders.items() if other.casefold() == name.casefold())
    return folders.get(name) or next(alike, root / name if (root / name).is_dir() else None)


def has_classes(path: Path) -> bool:
    """Whether a folder has folders with images."""
    return any(holds_images(path / name) for name in listed(path).folders)


def _check_flat(root: Path, *named: str | None) -> None:
    """Raise where the folders of an image folder without `train` are no classes either."""
    names = listed(root).folders
    if named or (names and all(name.casefold() in SPLIT_FOLDERS for name in names)):
        raise DataError(f"{path_text(root)} has no folder to train on: it has {_listed(root)}: name one with --train-split")


def _listed(root: Path) -> str:
    return some(listed(root).folders, 5) or "no folder"
