"""Whether splits of an image folder share images by links: what is reported would be measured on images trained on."""

import os
from collections.abc import Mapping

from objectives.data.folders import ClassFolders, path_text, some
from spaces.errors import DataError


def check_no_shared(splits: Mapping[str, ClassFolders]) -> None:
    """Raise where a file of one split is, by a link to it or to its folder, also a file of another.

    Args:
        splits: name of a split -> its class folders.

    Raises:
        DataError: it is.
    """
    if len(splits) < 2:
        return
    files = {name: _real_files(split) for name, split in splits.items()}
    names = list(files)
    for place, one in enumerate(names):
        for other in names[place + 1 :]:
            if both := sorted(files[one].keys() & files[other].keys()):
                raise DataError(
                    f"the {one} and {other} splits share {len(both):,} image{'s' if len(both) > 1 else ''}, by links: "
                    f"{some(f'{files[one][path]} is {files[other][path]}' for path in both)}: "
                    "take them out of one of the splits"
                )


def _real_files(split: ClassFolders) -> dict[str, str]:
    """Path without links -> path, of every image."""
    found = {}
    for name, folder in split.folders.items():
        path = os.path.join(split.root, folder)  # noqa: PTH118  # a million paths: as text
        real = os.path.realpath(path)
        for file in split.images[name]:
            linked = file in split.links.get(name, ())
            origin = os.path.realpath(f"{path}/{file}") if linked else f"{real}/{file}"
            found[origin] = path_text(f"{path}/{file}")
    return found
