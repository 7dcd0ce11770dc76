"""Your own model and images, from Python: what can be cut, a small search, its front, an export, and a class for a picture.

Set MODEL, CHECKPOINT and IMAGES, and run it cell by cell or as a whole: python examples/own_model.py
As it stands it trains a tiny model on pictures that it draws itself, which takes about a minute on one core.
"""

# %% What to compress
import json
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_model_data_config

from search import SearchConfig, export, launch, open_run
from spaces import create_model, describe, load_compressed

MODEL = None  # a timm name, e.g. "deit_small_patch16_224"
CHECKPOINT = None  # its weights, fine-tuned on your classes; a .safetensors or .pth file
IMAGES = None  # a folder of class folders, or of train/ and val/ with class folders
TARGET = "flops=50%"
OUTPUT = "runs/example"
options = {"steps": 100, "trials": 50}


# %% Where nothing is given: stripes in three directions, and a tiny model that has learnt them
def draw_stripes(folder: Path, count: int = 120) -> None:
    """`count` noisy grey pictures of 32 x 32 pixels in each of three class folders."""
    random, (y, x) = np.random.default_rng(0), np.mgrid[:32, :32]
    for name, direction in {"diagonal": x + y, "horizontal": y, "vertical": x}.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            wave = np.sin(direction / 2 + random.uniform(0, 6)) + random.normal(0, 2, (32, 32))
            Image.fromarray((128 + 40 * wave).clip(0, 255).astype(np.uint8)).save(folder / name / f"{index}.png")


def train_tiny(path: Path, images: Path, sizes: dict[str, int]) -> None:
    """Write the weights of a tiny vision transformer after some steps on these pictures."""
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, **sizes)
    transform = create_transform(**{**resolve_model_data_config(model), "input_size": (3, 32, 32)}, is_training=False)
    files = sorted(images.rglob("*.png"))
    classes = sorted({file.parent.name for file in files})
    pictures = torch.stack([transform(Image.open(file).convert("RGB")) for file in files])
    labels = torch.tensor([classes.index(file.parent.name) for file in files])
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(150):
        batch = torch.randint(len(files), (64,))
        torch.nn.functional.cross_entropy(model(pictures[batch]), labels[batch]).backward()
        optimiser.step()
        optimiser.zero_grad()
    save_file(model.state_dict(), path)


if MODEL is None:
    MODEL, IMAGES, CHECKPOINT = "vit_tiny_patch16_224", f"{OUTPUT}-images", f"{OUTPUT}-dense.safetensors"
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 2}
    draw_stripes(Path(IMAGES))
    train_tiny(Path(CHECKPOINT), Path(IMAGES), sizes)
    options = {"model_kwargs": sizes, "num_classes": 3, "steps": 20, "trials": 8, "batch_size": 32, "threads": 1, "workers": 0}

# %% What can be made smaller
config = SearchConfig.from_flat(
    {"model": MODEL, "checkpoint": CHECKPOINT, "data_dir": IMAGES, "target": [TARGET], "output": OUTPUT, **options}
)
for site in describe(create_model(config.model)).sites:
    print(f"{site.name}: {site.choices[0]} to {site.dense}")

# %% Search; run it again to continue where it stopped
launch(config)
run = open_run(OUTPUT)
for trial in run.front:
    print(f"trial {trial.number}: {trial.costs['macs']:,} MACs, {trial.costs['params']:,} parameters, error {trial.error:.2%}")

# %% Export the best model under the target
folder = export(run, TARGET)
print(f"{folder}: README.md has its figures")

# %% Load it and classify a picture; this needs torch, timm and safetensors only
model = load_compressed(folder)
transform = create_transform(**resolve_model_data_config(model), is_training=False)
picture = min(Path(IMAGES).rglob("*.png"))
with torch.inference_mode():
    label = int(model(transform(Image.open(picture).convert("RGB"))[None]).argmax())
print(f"{picture}: {json.loads((folder / 'config.json').read_text(encoding='utf-8'))['label_names'][label]}")
