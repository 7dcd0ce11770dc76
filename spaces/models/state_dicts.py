"""Which tensors of a checkpoint are a model's weights: in which of its dicts, under which prefix, with which head."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from spaces.errors import printable
from spaces.models.layouts import translated

_DEEPEST = 5  # dicts within dicts that are looked into
_WRAPPERS = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_AVERAGED = re.compile(r"(?<![a-z])(ema|swa|averaged)(?![a-z])")
_STATISTICS = re.compile(r"optim|momentum|exp_avg|grad|sched")
_HEAD = re.compile(r"(?:^|[._])(?:heads?|fc|classifier|cls|linear|logits)\d*[._]")
_OBJECTIVE = re.compile(r"loss|criterion|metric")


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Tensors by the names of a model's parameters and buffers, and where they were found.

    Attributes:
        tensors: name -> tensor.
        source: which dict and which prefix they come from, and under which name the head was; '' for a plain state dict.
        aside: what else the checkpoint holds.
    """

    tensors: dict[str, Tensor]
    source: str
    aside: tuple[str, ...]

    @property
    def text(self) -> str:
        """Both in words."""
        names = ", ".join(map(printable, self.aside[:5])) + (f" and {len(self.aside) - 5} more" if len(self.aside) > 5 else "")
        return "; ".join(filter(None, (self.source, f"left aside: {names}" if self.aside else "")))


@dataclass(frozen=True, kw_only=True)
class _Group:
    """One dict of tensors in a checkpoint: the keys that lead to it, and the prefix of those that are looked at.

    Or, `joined`, the tensors of all of them by the keys that lead to each. `named` of them have a name of the model, `fitting`
    its shape too.
    """

    path: tuple[str, ...]
    tensors: dict[str, Tensor]
    prefix: str = ""
    layout: str = ""
    joined: bool = False
    named: int = 0
    fitting: int = 0

    @property
    def own(self) -> dict[str, Tensor]:
        return {key.removeprefix(self.prefix): tensor for key, tensor in self.tensors.items() if key.startswith(self.prefix)}

    @property
    def others(self) -> dict[str, Tensor]:
        return {key: tensor for key, tensor in self.tensors.items() if not key.startswith(self.prefix)}

    @property
    def rank(self) -> int:
        """Averaged weights go first, as timm takes them; what an optimiser keeps of every parameter goes last."""
        name = ".".join((*self.path, self.prefix)).lower()
        if _STATISTICS.search(name):
            return 3
        if _AVERAGED.search(name.replace("_", " ")):
            return 0
        return 1 if not name.strip(".") or re.search(r"model|state_dict", name) else 2


def find_weights(content: Any, expected: Mapping[str, Tensor], classifiers: Sequence[str]) -> Weights | None:
    """The weights in a checkpoint that fit a model best; they need not fit whole. None if it holds no named tensors.

    Of several that fit as well, averaged ones (EMA) are taken, then those under the usual names, then the first.

    Args:
        content: of a file: tensors by name, or dicts of them at any depth.
        expected: parameters and buffers of the model, with any number of classes.
        classifiers: names of its last layers.
    """
    groups = list(_groups(content, (), set()))
    if not groups:
        return None
    tensors = {".".join((*group.path, key)): tensor for group in groups for key, tensor in group.tensors.items()}
    joined = _Group(path=(), tensors=tensors, joined=True)  # where a model's parts are dicts of their own
    tried = [entry for group in (*groups, joined) for entry in _prefixed(group, expected)]
    most = max((entry.fitting, entry.named) for entry in tried)
    best = min((entry for entry in tried if (entry.fitting, entry.named) == most), key=lambda entry: entry.rank)
    if best.named < len(expected) // 4:  # names that agree by chance
        best = max(groups, key=lambda group: len(group.tensors))
    layers = [group for group in groups if len(group.tensors) <= 2]
    single = {".".join((*group.path, key)): tensor for group in layers for key, tensor in group.tensors.items()}
    tensors, head = _with_head(best, single, expected, classifiers)
    aside = [name for name in _aside(content, best) if not head or not f"{head}.".startswith(f"{name.removesuffix('.*')}.")]
    return Weights(tensors=tensors, source=_source(best, head), aside=tuple(aside))


def _groups(content: Any, path: tuple[str, ...], seen: set[int]) -> Iterator[_Group]:
    if not isinstance(content, Mapping | list | tuple) or id(content) in seen or len(path) > _DEEPEST:
        return
    seen.add(id(content))
    content = content if isinstance(content, Mapping) else dict(enumerate(content))
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if tensors:
        tensors, layout = translated({_WRAPPERS.sub("", key): value for key, value in tensors.items()})
        yield _Group(path=path, tensors=tensors, layout=layout)
    for key, value in content.items():
        yield from _groups(value, (*path, str(key)), seen)


def _prefixed(group: _Group, expected: Mapping[str, Tensor]) -> list[_Group]:
    """The group under every prefix that makes keys fit; under none if there is no such prefix."""
    named, fitting = Counter[str](), Counter[str]()
    for key, tensor in group.tensors.items():
        for cut in (0, *(match.end() for match in re.finditer(r"\.", key))):
            if key[cut:] in expected:
                named[key[:cut]] += 1
                fitting[key[:cut]] += tensor.shape == expected[key[cut:]].shape
    if not named:
        return [group]
    return [replace(group, prefix=prefix, named=named[prefix], fitting=fitting[prefix]) for prefix in named]


def _with_head(
    group: _Group, single: Mapping[str, Tensor], expected: Mapping[str, Tensor], classifiers: Sequence[str]
) -> tuple[dict[str, Tensor], str]:
    """The group's own tensors, and the last layer's from where they are; under which name that is, '' if its own.

    `single` are the tensors of dicts that hold one layer alone.
    """
    own = group.own
    absent = [name for name in classifiers if f"{name}.weight" in expected and f"{name}.weight" not in own]
    left = {**{key: tensor for key, tensor in own.items() if key not in expected}, **group.others, **single}
    head = _head_in(left)
    if len(absent) != 1 or head is None or left[f"{head}.weight"].shape[1] != expected[f"{absent[0]}.weight"].shape[1]:
        return own, ""
    parts = {f"{absent[0]}.{part}": left[f"{head}.{part}"] for part in ("weight", "bias")}
    return {**{key: tensor for key, tensor in own.items() if not key.startswith(f"{head}.")}, **parts}, head


def _head_in(left: Mapping[str, Tensor]) -> str | None:
    """The one linear layer with a bias that is named like a last one; None where several are: they may act in turn."""
    weights = [key for key, tensor in left.items() if key.endswith(".weight") and tensor.ndim == 2]
    found = [key.removesuffix(".weight") for key in weights if _HEAD.search(key) and not _OBJECTIVE.search(key)]
    return found[0] if len(found) == 1 and f"{found[0]}.bias" in left else None


def _source(group: _Group, head: str) -> str:
    place = printable(".".join(group.path))
    averaged = " (averaged weights)" if group.rank == 0 else ""
    layout = f"translated from {group.layout}" if group.layout else ""
    prefix = f"names without {group.prefix!r}{'' if place else averaged}" if group.prefix else ""
    return ", ".join(
        filter(None, (f"{place}{averaged}" if place else "", layout, prefix, f"head from {head!r}" if head else ""))
    )


def _aside(content: Any, group: _Group) -> Iterator[str]:
    """Names at every level on the way to the group that were not followed, and of its tensors outside the prefix."""
    for depth, step in enumerate(group.path):
        if isinstance(content, Mapping):
            yield from (".".join((*group.path[:depth], str(key))) for key in content if str(key) != step)
            content = next(value for key, value in content.items() if str(key) == step)
        else:
            content = content[int(step)]
    yield from dict.fromkeys(_shortened(key, group.prefix) for key in group.others)
    if isinstance(content, Mapping):
        parts = (Tensor, Mapping, list) if group.joined else (Tensor,)
        yield from (str(key) for key, value in content.items() if not (isinstance(key, str) and isinstance(value, parts)))


def _shortened(key: str, prefix: str) -> str:
    """The first names of a tensor: as many as tell it from those with the prefix."""
    parts = key.split(".")
    depth = 2 if prefix.startswith(f"{parts[0]}.") else 1
    return ".".join(parts[:depth]) + (".*" if len(parts) > depth else "")
