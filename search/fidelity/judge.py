"""What a person is told of the data and of the dense model before a search is paid for."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from objectives.data.chance import near_chance
from objectives.data.class_order import find_fit, in_order
from objectives.data.config import ClassOrder
from objectives.data.folders import path_text, some
from objectives.data.loaders import Data
from objectives.error import Evaluation
from spaces.files import write_text

CLASS_MAP = "class_map_that_fits.txt"
_ORDERS: tuple[ClassOrder, ...] = ("torchvision", "timm")

Say = Callable[[str], None]


def tell_found(data: Data, say: Say, notice: Say) -> None:
    """Tell what is read, and `warn`.

    Raises:
        DataError: a held-out split is smaller than the options allow.
    """
    for line in (*data.found.lines(), *data.checked.lines()):
        say(line)
    data.found.check_sizes()
    warn(data, notice)


def warn(data: Data, notice: Say) -> None:
    """Tell what about the data makes figures mean less than they seem."""
    for text in (*data.found.warnings(), *data.checked.warnings()):
        notice(text)


def judge(dense: Evaluation, data: Data, directory: Path, trained: Sequence[str] = ()) -> Iterator[str]:
    """What is odd about the dense model's answers on the search split, a sentence each.

    Where they fit an order of the classes that has no name, it is written into the run directory as a class map.

    Args:
        dense: figures of the dense model on the search split.
        data: of the run.
        directory: of the run.
        trained: names of the model's classes in the order of its outputs, where its folder tells them.

    Raises:
        DataError: the search split is a stream, and now turns out to be smaller than the options allow.
    """
    if data.found.counted("search", dense.count):
        data.found.check_sizes()
        yield from data.found.few("search")
    if told := _told_order(trained, data, directory):
        yield told
        return
    if dense.confusion is None:
        return
    fit = find_fit(dense.confusion, data.num_classes or 0, _known_orders(data)) if data.num_classes else None
    if fit is not None:
        way = _way_out(fit.order, fit.labels, fit.guessed, data, directory)
        yield (
            f"the dense model's answers fit another order of the classes: its error on the search split is {fit.error:.1%} "
            f"in {_name(data.found.class_order)}, and {fit.fitted:.1%} in {way}"
        )
    elif chance := near_chance(dense.confusion):
        yield (
            f"the dense model is near chance: its error on the search split is {dense.error:.1%}, that of always answering the "
            f"most common class {chance.error:.1%} (±{chance.deviation:.1%}): was it fine-tuned on these images? "
            "Are its classes in this order (--class-order, --class-map)? Are its images normalised like this "
            f"(--mean, --std: {data.preprocessing['mean']}, {data.preprocessing['std']})?"
        )


def _told_order(trained: Sequence[str], data: Data, directory: Path) -> str | None:
    """What to say where the model's folder names the same classes as the data, in another order."""
    names = data.class_names
    if names is None or list(trained) == names or sorted(trained) != sorted(names) or len(set(names)) < len(names):
        return None
    first = next(label for label, (own, other) in enumerate(zip(names, trained, strict=True)) if own != other)
    order = next((order for order in _ORDERS if in_order(names, order) == list(trained)), None)
    way = _way_out(order, tuple(map(names.index, trained)), (), data, directory)
    return (
        f"the model's own folder names its classes in another order than these labels: output {first} is "
        f"{path_text(trained[first])} there, label {first} is {path_text(names[first])} here; its order is {way}"
    )


def _known_orders(data: Data) -> dict[ClassOrder, list[int]]:
    """timm's and torchvision's orders, where they are others than the labels' own: for every label the output of its class."""
    names = data.found.folders or data.class_names
    if names is None:
        return {}
    places = {order: {name: place for place, name in enumerate(in_order(names, order))} for order in _ORDERS}
    found = {order: [place[name] for name in names] for order, place in places.items()}
    return {order: outputs for order, outputs in found.items() if outputs != sorted(outputs)}


def _name(order: str | None) -> str:
    """Of the order in use."""
    if order is None:
        return "the data set's"
    return order if order.startswith("class map") else f"{order}'s order of class folders"


def _way_out(order: ClassOrder | None, labels: Sequence[int], guessed: Sequence[int], data: Data, directory: Path) -> str:
    """The order that fits, and the option that gives it."""
    used, names, folders = data.found.class_order, data.class_names, data.found.class_folders
    if order is not None and folders and set(names or folders["train"].folders) == set(folders["train"].folders):
        without = " and no --class-map" if used not in _ORDERS else ""
        return f"{order}'s: stop it, and launch with --class-order {order}{without}"
    outputs = [str(label) if names is None else names[label] for label in labels]
    unsure = f" ({some((outputs[each] for each in guessed), 5)}: guessed)" if guessed else ""
    whose = "this one, which is neither timm's nor torchvision's" if order is None else f"{order}'s order of their names"
    told = f"{whose}: {some(outputs, 20)}{unsure}"
    if not folders or names is None:
        return told
    if unfit := [name for name in names if name != name.strip() or "\n" in name]:
        return f"{told}: a class map cannot name {some(map(repr, unfit))}: rename such folders, and launch again for one"
    path = directory / CLASS_MAP
    write_text(path, "".join(f"{name}\n" for name in outputs))
    return f"{told}: stop it, and launch with --class-map {path_text(path)}"
