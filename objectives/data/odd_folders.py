"""Which class folders look odd where images and model disagree on the number of classes."""

from collections import Counter
from collections.abc import Iterator

from objectives.data.folders import path_text, some
from objectives.data.found import Found
from objectives.data.split_folders import SPLIT_FOLDERS

_FAR_FEWER = 0.1  # of the median class


def odd_folders(found: Found, wanted: int | None) -> str | None:
    """What may be why there are more or fewer class folders than a model has classes; None where nothing is odd.

    Args:
        found: what was read.
        wanted: classes of the model.
    """
    if found.folders is None or wanted is None:
        return None
    return "; ".join(_superfluous(found) if len(found.folders) > wanted else _missing(found)) or None


def _superfluous(found: Found) -> Iterator[str]:
    images: Counter[str] = Counter()
    for split in found.class_folders.values():
        images.update({split.folders[name]: len(files) for name, files in split.images.items()})
    named = [name for name in images if _is_no_class(name)]
    if named:
        yield f"{some(named)} {'have names' if len(named) > 1 else 'has the name'} of no class"
    median = sorted(images.values())[len(images) // 2]
    few = [name for name, count in images.items() if count < _FAR_FEWER * median]
    if few:
        counts = some(f"{path_text(name)} {images[name]}" for name in few)
        folders = "folders have" if len(few) > 1 else "a folder has"
        yield f"{folders} far fewer images than the others ({counts}; median {median})"
    fewest = min(images, key=lambda name: images[name])
    if not named and not few and images[fewest] < median:
        yield f"{path_text(fewest)} has the fewest images ({images[fewest]}; median {median})"


def _is_no_class(name: str) -> bool:
    """Whether a folder has the name of a split, or one that programs give to what is set aside."""
    return name.casefold() in SPLIT_FOLDERS or name[0] in "_~$" or name.casefold() in ("images", "new folder", "unlabeled")


def _missing(found: Found) -> Iterator[str]:
    empty = sorted({name for split in found.class_folders.values() for name in split.empty})
    if empty:
        yield f"{some(empty)} {'have' if len(empty) > 1 else 'has'} no images, and {'are' if len(empty) > 1 else 'is'} no class"
    hidden = sorted({name for split in found.class_folders.values() for name in split.hidden if "/" not in name})
    if hidden:
        yield f"{some(hidden)} {'are' if len(hidden) > 1 else 'is'} hidden, and not read"
