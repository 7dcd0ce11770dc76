"""ONNX and torch.export's archive beside safetensors: the same outputs on real images, what they carry, what is refused."""

import importlib.util
import json
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, get_args

import onnx
import pytest
import torch
from local_folders import PREPROCESSING, Folder, changed, write_folder
from local_vits import HEADS, MakeVit
from torch import Tensor

from objectives.deploy.config import Format, FormatConfig
from objectives.deploy.formats import open_format, write_formats
from spaces.errors import CheckpointError, ConfigError

ALL: tuple[Format, ...] = get_args(Format)
LONG = ("distilled", "layer-scale", "no class token", "merged")  # of which the others have a mixture
# What they are called -> kind of model, space that it is cut in, and further options.
CUT: dict[str, tuple[str, str, dict[str, Any]]] = {
    "plain": ("plain", "hybrid", {}),
    "distilled": ("distilled", "contract", {}),
    "layer-scale": ("layer-scale", "contract", {}),
    "no class token": ("no class token", "contract", {}),
    "uneven heads": ("plain", "heads", {"num_heads": HEADS}),
    "merged": ("plain", "contract", {"schedule": (11, 0)}),
    "merged, low rank": ("distilled", "hybrid", {"schedule": (9, 9)}),
    "merged, averaged": ("no class token", "contract", {"schedule": (8, 5)}),
    "merged and dropped": ("layer-scale", "heads", {"schedule": (12, 0), "dropped": ("blocks.0.attn", "blocks.1.mlp")}),
}


@pytest.fixture(scope="module")
def made(make_vit: MakeVit, images: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Folder]:
    """The folder of a kind, in all formats, written at the first use."""

    @cache
    def write(name: str) -> Folder:
        kind, space, options = CUT[name]
        return write_folder(tmp_path_factory.mktemp("formats") / "model", make_vit, images, kind, space, ALL, **options)

    return write


@pytest.fixture
def plain(made: Callable[[str], Folder]) -> Folder:
    return made("plain")


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.long] * (kind in LONG)) for kind in CUT])
def test_all_formats_agree_on_real_images_in_batches_of_any_size(made: Callable[[str], Folder], kind: str) -> None:
    folder = made(kind)
    sizes = json.loads((folder.path / "config.json").read_text())["allocation"]
    assert len(set(sizes.values())) > 1, "cut unevenly"
    pictures = folder.images(6)
    logits = folder.logits(pictures)
    assert float((logits[0] - logits[1]).abs().max()) > 0.01, "other images must give other outputs"
    for name in ALL:
        forward = open_format(folder.path, name)
        for first, last in ((0, 1), (1, 6)):
            found = forward(pictures[first:last])
            assert found.dtype == torch.float32
            assert float((found - logits[first:last]).abs().max()) < 1e-4, (name, last - first)


def test_the_blocks_of_the_model_with_uneven_heads_have_other_numbers_of_heads(made: Callable[[str], Folder]) -> None:
    sizes = json.loads((made("uneven heads").path / "config.json").read_text())["allocation"]
    assert sizes["blocks.0.attn.heads"] != sizes["blocks.1.attn.heads"]


def test_the_onnx_file_carries_the_preprocessing_and_the_names_of_the_classes(plain: Folder) -> None:
    stored = onnx.load(plain.path / "model.onnx")
    carried = {entry.key: json.loads(entry.value) for entry in stored.metadata_props}
    assert carried == {**PREPROCESSING, "label_names": list("abcde")}
    assert [(entry.domain, entry.version) for entry in stored.opset_import] == [("", 20)]
    (shape,) = (entry.type.tensor_type.shape.dim for entry in stored.graph.input)
    assert [entry.dim_param or entry.dim_value for entry in shape] == ["batch", 3, 16, 16]
    assert [path.name for path in sorted(plain.path.glob("model.*"))] == ["model.onnx", "model.pt2", "model.safetensors"]


def test_the_files_hold_no_path_of_this_machine_and_no_pickle(plain: Folder) -> None:
    paths = [str(Path(torch.__file__).parents[1]).encode(), str(Path(__file__).parents[1]).encode()]
    assert all(path not in (plain.path / "model.onnx").read_bytes() for path in paths)
    with zipfile.ZipFile(plain.path / "model.pt2") as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    assert all(path not in content for path in paths for content in contents.values())
    assert not any(content.startswith((b"PK", b"\x80")) for name, content in contents.items() if "weight_" not in name)


@pytest.mark.parametrize(("dtype", "formats"), [(torch.float16, ("onnx",)), (torch.bfloat16, ("pt2",))])
def test_weights_of_half_size_take_and_give_float32(
    make_vit: MakeVit, images: Tensor, tmp_path: Path, dtype: torch.dtype, formats: tuple[Any, ...]
) -> None:
    folder = write_folder(tmp_path / "half", make_vit, images, formats=formats, dtype=dtype)
    pictures = folder.images(5)
    logits = folder.logits(pictures)
    for name in ("safetensors", *formats):
        found = open_format(folder.path, name)(pictures)
        assert found.dtype == torch.float32
        assert float((found - logits).abs().max()) < 0.02 * float(logits.abs().max())
    weights = sum(parameter.numel() for parameter in folder.model.parameters())
    assert 2 * weights < (folder.path / "model.safetensors").stat().st_size < 3 * weights


def test_which_formats_are_written() -> None:
    assert FormatConfig().formats == ("safetensors",)
    assert FormatConfig(format=("pt2,onnx", "safetensors", "pt2")).formats == ALL


def test_an_unknown_format_or_type_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown format 'tflite': choose of safetensors, onnx, pt2"):
        FormatConfig(format=("onnx,tflite",))
    with pytest.raises(ConfigError, match="dtype must be one of fp32, bf16, fp16, got 'int8'"):
        FormatConfig(dtype="int8")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="choose --dtype fp16 or fp32 with onnx"):
        FormatConfig(format=("onnx",), dtype="bf16")


def test_a_format_whose_package_is_missing_says_what_to_install(plain: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else real(name))
    for use in (lambda: FormatConfig(format=("onnx",)), lambda: open_format(plain.path, "onnx")):
        with pytest.raises(ConfigError, match=r"needs onnxruntime, .*pip install 'vit-compression-search\[onnx\]'"):
            use()
    assert FormatConfig(format=("pt2",)).formats == ("safetensors", "pt2")


def test_a_format_that_is_not_there_or_was_changed_is_refused(
    plain: Folder, make_vit: MakeVit, images: Tensor, tmp_path: Path
) -> None:
    bare = write_folder(tmp_path / "bare", make_vit, images)
    with pytest.raises(CheckpointError, match=r"has no model\.onnx: it was exported with model\.safetensors"):
        open_format(bare.path, "onnx")
    for name, file in (("onnx", "model.onnx"), ("pt2", "model.pt2")):
        content = bytearray((plain.path / file).read_bytes())
        content[len(content) // 2] ^= 1
        (bare.path / file).write_bytes(content)
        told = json.loads((plain.path / "config.json").read_text())["files"][file]
        changed(bare.path, lambda config, file=file, told=told: config["files"].update({file: told}))  # type: ignore[misc]
        with pytest.raises(CheckpointError, match=rf"{file} is not the file that was exported \(its SHA-256 is"):
            open_format(bare.path, name)  # type: ignore[arg-type]


def test_a_model_that_cannot_be_traced_is_one_clear_line(
    plain: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def branch(images: Tensor) -> Tensor:
        return images[:, 0, 0] if images.sum() > 0 else images[:, 1, 1]  # which one is not known before it runs

    monkeypatch.setattr(plain.model, "forward", branch)
    with pytest.raises(CheckpointError, match="the model cannot be written as onnx and pt2: "):
        write_formats(tmp_path, plain.model, ("onnx", "pt2"), {})
    assert not list(tmp_path.iterdir())
