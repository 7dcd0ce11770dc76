"""Exported folders of small compressed models with real images, for the tests of formats and of reading them back."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from conftest import TINY
from local_vits import KINDS, MakeVit, factors_of, widths
from torch import Tensor, nn

from objectives.deploy.classify import preprocessing_of
from objectives.deploy.config import Format
from objectives.deploy.formats import write_formats
from objectives.pictures.digits import Digits
from objectives.pictures.reading import reading_for
from spaces import Allocation, save_compressed
from spaces.folder.description import read_description
from spaces.sites import Space

MEAN, STD = [0.3, 0.35, 0.4], [0.37, 0.36, 0.35]
PREPROCESSING: dict[str, Any] = {
    "input_size": [3, 16, 16], "interpolation": "bicubic", "mean": MEAN, "std": STD, "crop_pct": 0.9, "crop_mode": "center",
}  # fmt: skip


def preprocessing_for(channels: int) -> dict[str, Any]:
    """`PREPROCESSING` of a model of so many channels."""
    if channels == 3:
        return PREPROCESSING
    return {**PREPROCESSING, "input_size": [channels, 16, 16], "mean": [0.3] * channels, "std": [0.4] * channels}


def pictures_for(channels: int) -> dict[str, Any] | None:
    """How pictures are read for a model of so many channels."""
    return reading_for(channels).to_json() if channels in (1, 3) else None


def uneven(space: Space, schedule: Sequence[int] = (), dropped: Sequence[str] = ()) -> Allocation:
    """Another share of every site: none at its dense size, no two neighbours alike.

    Args:
        space: of a small model.
        schedule: patch tokens that leave the attention of every block; by default no more merge than what is free.
        dropped: branches that are left out.
    """
    kept = [site for site in widths(space) if site.branch not in dropped]
    sizes = {site.name: site.choices[index % (len(site.choices) - 1)] for index, site in enumerate(kept)}
    gone = {f"{branch}.branch": 0 for branch in dropped}
    return space.lossless().replace({**sizes, **gone, **(space.scheduled(schedule) if schedule else {})})


@dataclass(frozen=True)
class Folder:
    """A compressed model in memory, and the folder that it was written to."""

    path: Path
    model: nn.Module

    def images(self, count: int) -> Tensor:
        """So many digits of the test split, as the folder's own preprocessing makes them."""
        digits, transform = Digits("test"), preprocessing_of(read_description(self.path))
        return torch.stack([transform(digits[index][0].convert("RGB")) for index in range(count)])

    def logits(self, images: Tensor) -> Tensor:
        """Of the model in memory."""
        with torch.inference_mode():
            outputs: Tensor = self.model(images.to(next(self.model.parameters()).dtype))
        return outputs.float()


def write_folder(
    path: Path,
    make_vit: MakeVit,
    calibration: Tensor,
    kind: str = "plain",
    space: str = "contract",
    formats: tuple[Format, ...] = ("safetensors",),
    dtype: torch.dtype = torch.float32,
    schedule: Sequence[int] = (),
    dropped: Sequence[str] = (),
    **options: Any,
) -> Folder:
    """A model of a kind, cut unevenly, and what was written of it."""
    arguments = {**KINDS[kind], **options}
    factors = factors_of(make_vit(**arguments), calibration, space)
    allocation = uneven(factors.space, schedule, dropped)
    model = factors.build(allocation).to(dtype).eval()
    name = arguments.pop("name", "vit_tiny_patch16_224")
    sizes = {**TINY, **arguments}
    path.mkdir(parents=True)
    pre = preprocessing_for(sizes.get("in_chans", 3))
    write_formats(path, model, formats, {**pre, "label_names": list("abcde")})
    save_compressed(path, model, {
        "architecture": name, "model_args": {key: value for key, value in sizes.items() if key != "num_classes"},
        "num_classes": TINY["num_classes"], "label_names": list("abcde"), "pretrained_cfg": pre,
        "pictures": pictures_for(pre["input_size"][0]),
        "space": space, "multiple": 4, "allocation": dict(allocation),
    })  # fmt: skip
    return Folder(path, model)


def changed(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The same folder, after a change of its config.json."""
    config = folder / "config.json"
    content = json.loads(config.read_text())
    change(content)
    config.write_text(json.dumps(content))
    return folder
