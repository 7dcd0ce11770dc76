"""Weights are found in whatever was written around them, what was taken is told, and what is no weight is refused."""

import argparse
import json
import pathlib
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from local_runs import SIZES, model
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models import VisionTransformer

from spaces.errors import CheckpointError
from spaces.models.create import ModelConfig, create_model, weights_of

NAME = "vit_tiny_patch16_224"
State = dict[str, Tensor]
STATE: State = model().state_dict()
OTHER: State = {key: value + 1 for key, value in STATE.items()}
HEAD = {part: STATE[f"head.{part}"] for part in ("weight", "bias")}
BODY = {key: value for key, value in STATE.items() if not key.startswith("head.")}


def under(prefix: str, state: State = STATE) -> State:
    return {f"{prefix}{key}": value for key, value in state.items()}


def head_as(name: str, body: State = BODY) -> State:
    return {**body, **{f"{name}.{part}": value for part, value in HEAD.items()}}


def saved(path: Path, content: Any) -> str:
    torch.save(content, path)
    return str(path)


def loaded(checkpoint: str, **options: Any) -> torch.nn.Module:
    return create_model(ModelConfig(model=NAME, checkpoint=checkpoint, **{"model_kwargs": SIZES, **options}))


def refused(path: Path, content: Any, **options: Any) -> str:
    with pytest.raises(CheckpointError) as raised:
        loaded(saved(path, content), **options)
    assert "\n" not in str(raised.value)
    return str(raised.value).removeprefix(f"{path} ")


# Wrappers


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (STATE, ""),
        (under("model."), "names without 'model.'"),
        (under("timm_model."), "names without 'timm_model.'"),
        (under("backbone."), "names without 'backbone.'"),
        (under("_orig_mod.module."), "names without 'module.'"),
        (under("module._orig_mod."), "names without 'module.'"),
        (under("student.encoder.vit."), "names without 'student.encoder.vit.'"),
        ({key.replace("blocks.0.", "blocks.0._orig_mod."): value for key, value in STATE.items()}, ""),
        ({"model_state_dict": STATE, "optimizer_state_dict": {"state": {0: {"exp_avg": HEAD["bias"]}}}, "epoch": 3},
         "model_state_dict; left aside: optimizer_state_dict, epoch"),
        ({"a": {"net": under("module.")}, "b": 1}, "a.net, names without 'module.'; left aside: b"),
        ({"runs": [{"params": STATE}]}, "runs.0.params"),
        ({"state_dict": OTHER, "state_dict_ema": STATE}, "state_dict_ema (averaged weights); left aside: state_dict"),
        ({"model": OTHER, "model_ema": under("module.")},
         "model_ema (averaged weights), names without 'module.'; left aside: model"),
        ({"params": OTHER, "params_ema": STATE}, "params_ema (averaged weights); left aside: params"),
        ({**under("model.", OTHER), **under("ema_model.")},
         "names without 'ema_model.' (averaged weights); left aside: model.*"),
        ({"n_averaged": torch.tensor(3), **under("module.")}, "names without 'module.'; left aside: n_averaged"),
        ({"exp_avg": OTHER, "weights": STATE}, "weights; left aside: exp_avg"),
        ({"state_dict": {**under("model."), "loss_fn.weight": torch.zeros(10), "criterion.w": torch.zeros(1)}, "callbacks": {}},
         "state_dict, names without 'model.'; left aside: callbacks, loss_fn.*, criterion.*"),
        (head_as("fc"), "head from 'fc'"),
        (head_as("heads.head"), "head from 'heads.head'"),
        (head_as("head.1"), "head from 'head.1'"),
        ({**under("backbone.", BODY), **under("head.", HEAD)}, "names without 'backbone.', head from 'head'"),
        ({"backbone": BODY, "head": HEAD, "epoch": 1}, "backbone, head from 'head'; left aside: epoch"),
        ({"net": {"vit": BODY, "fc": HEAD}}, "net.vit, head from 'net.fc'"),
        ({"m": {"blocks": {"0": {key.removeprefix("blocks.0."): value for key, value in BODY.items() if "blocks.0." in key}},
                **{key: value for key, value in STATE.items() if "blocks." not in key}}, "epoch": 2},
         "names without 'm.'; left aside: epoch"),
        (head_as("classifier", under("backbone.", BODY)), "names without 'backbone.', head from 'classifier'"),
        ({**head_as("model.fc", under("model.vit.", BODY)), "model.loss.weight": torch.zeros(10, 16)},
         "names without 'model.vit.', head from 'model.fc'; left aside: model.loss.*"),
    ],
)  # fmt: skip
def test_weights_are_found(tmp_path: Path, content: Any, told: str) -> None:
    found = loaded(path := saved(tmp_path / "file.pth", content))
    assert all(torch.equal(value, STATE[key]) for key, value in found.state_dict().items())
    assert weights_of(found) == "; ".join(filter(None, (path, told)))


def test_what_scripts_keep_beside_weights_is_harmless(tmp_path: Path) -> None:
    beside = {"args": argparse.Namespace(lr=0.1), "best": np.float64(3.5), "out": pathlib.PosixPath("a"), "n": np.int64(2)}
    beside["hparams"] = types.SimpleNamespace(lr=0.1)
    found = loaded(saved(tmp_path / "file.pth", {"model": STATE, **beside}))
    assert "left aside: args, best, out, n, hparams" in weights_of(found)


def test_a_dict_that_holds_itself(tmp_path: Path) -> None:
    content: dict[str, Any] = {"net": STATE}
    content["self"] = content
    assert torch.equal(loaded(saved(tmp_path / "file.pth", content)).get_parameter("head.bias"), HEAD["bias"])


def test_safetensors_are_known_by_their_content(tmp_path: Path) -> None:
    save_file(under("module."), tmp_path / "weights.bin")
    assert "names without 'module.'" in weights_of(loaded(str(tmp_path / "weights.bin")))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    found = loaded(saved(tmp_path / "file.pth", {key: value.to(dtype) for key, value in STATE.items()}))
    for key, value in found.state_dict().items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, STATE[key], rtol=0.01, atol=1e-6)


def test_a_distilled_model_keeps_both_heads(tmp_path: Path) -> None:
    made = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=7, **SIZES)
    found = create_model(
        ModelConfig(
            model="deit_tiny_distilled_patch16_224",
            model_kwargs=SIZES,
            checkpoint=saved(tmp_path / "file.pth", under("module.", made.state_dict())),
        )
    )
    assert found.num_classes == 7
    assert torch.equal(found.get_parameter("head_dist.weight"), made.get_parameter("head_dist.weight"))


def test_torchvision_s_model_gives_the_same_outputs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = VisionTransformer(
        image_size=16, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=64, num_classes=3
    ).eval()
    torch.nn.init.normal_(theirs.heads.head.weight)
    path = saved(tmp_path / "file.pth", {"model": under("module.", theirs.state_dict())})
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    ours, images = loaded(path, model_kwargs=sizes), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images))
    assert "translated from torchvision" in weights_of(ours)


def in_transformers(state: State) -> State:
    """As convert_vit_timm_to_pytorch.py of Hugging Face transformers names the tensors of a timm ViT."""
    names = {"cls_token": "vit.embeddings.cls_token", "pos_embed": "vit.embeddings.position_embeddings"}
    for part in ("weight", "bias"):
        names[f"patch_embed.proj.{part}"] = f"vit.embeddings.patch_embeddings.projection.{part}"
        names[f"norm.{part}"] = f"vit.layernorm.{part}"
        names[f"head.{part}"] = f"classifier.{part}"
        ours, theirs = "blocks.0", "vit.encoder.layer.0"
        names[f"{ours}.norm1.{part}"] = f"{theirs}.layernorm_before.{part}"
        names[f"{ours}.norm2.{part}"] = f"{theirs}.layernorm_after.{part}"
        names[f"{ours}.attn.proj.{part}"] = f"{theirs}.attention.output.dense.{part}"
        names[f"{ours}.mlp.fc1.{part}"] = f"{theirs}.intermediate.dense.{part}"
        names[f"{ours}.mlp.fc2.{part}"] = f"{theirs}.output.dense.{part}"
    found = {names[key]: value for key, value in state.items() if "qkv" not in key}
    for part in ("weight", "bias"):
        for index, name in enumerate(("query", "key", "value")):
            own = state[f"blocks.0.attn.qkv.{part}"][16 * index : 16 * (index + 1)]
            found[f"vit.encoder.layer.0.attention.attention.{name}.{part}"] = own.clone()
    return found


def test_a_vit_of_transformers_becomes_timm_s(tmp_path: Path) -> None:
    found = loaded(path := saved(tmp_path / "file.pth", in_transformers(STATE)))
    assert all(torch.equal(value, STATE[key]) for key, value in found.state_dict().items())
    assert weights_of(found) == f"{path}; translated from Hugging Face transformers, names without 'vit.', head from 'head'"


def test_a_folder_of_shards(tmp_path: Path) -> None:
    names = list(STATE)
    parts = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for file, keys in parts.items():
        save_file({key: STATE[key] for key in keys}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {key: file for file, keys in parts.items() for key in keys}}))
    for checkpoint in (tmp_path, index):
        assert torch.equal(loaded(str(checkpoint)).get_parameter("head.bias"), HEAD["bias"])
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*b\.safetensors"):
        loaded(str(tmp_path))
    contents: tuple[Any, ...] = ({"weight_map": {"a": "../a.safetensors"}}, {"weight_map": 5}, [])
    for content in contents:
        index.write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match="does not say in which file of its folder"):
            loaded(str(tmp_path))


# What is no weights


def sized(**sizes: Any) -> State:
    state: State = model(**sizes).state_dict()
    return state


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (sized(depth=3), "it has depth 3, the model depth 1 (another --model, or --model-kwargs depth=3)"),
        (sized(embed_dim=32, depth=2),
         "depth 2, width 32, the model depth 1, width 16 "
         "(another --model, or --model-kwargs depth=2 embed_dim=32 num_heads=...)"),
        (sized(in_chans=3), "--model-kwargs in_chans=3)"),
        (sized(patch_size=4, img_size=16), "--model-kwargs patch_size=4)"),
        (sized(img_size=16),
         "pos_embed is [1, 65, 16], not [1, 17, 16]: it was made for images of 16 px: --model-kwargs img_size=16"),
        (sized(num_classes=0), "a classifier is needed"),
        ({"vit.embeddings.cls_token": torch.zeros(1), "vit.encoder.layer.0.attention.attention.query.weight": torch.zeros(1)},
         "it has the layout of Hugging Face transformers, not timm's"),
        ({"visual.transformer.resblocks.0.attn.in_proj_weight": HEAD["weight"]}, "the layout of OpenAI's or OpenCLIP's CLIP"),
        ({**BODY, "head.0.weight": torch.zeros(8, 16), "head.0.bias": torch.zeros(8), "head.3.weight": torch.zeros(10, 8),
          "head.3.bias": torch.zeros(10)}, "head.weight is missing"),
        ({**under("net.", BODY), "fc1.weight": torch.zeros(16, 16), "fc1.bias": torch.zeros(16),
          "fc2.weight": torch.zeros(10, 16), "fc2.bias": torch.zeros(10)}, "head.weight is missing"),
        ({**STATE, "blocks.1.norm1.weight": torch.zeros(16)}, "blocks.1.norm1.weight is not in the model"),
        ({**STATE, "norm.weight": torch.zeros(0)}, "norm.weight is [0], not [16]"),
        ({**STATE, "head.weight": torch.tensor(1.0)}, "head.weight is [], not [1000, 16]"),
        ({**STATE, "x\x1b[31m\ny": torch.zeros(1)}, "x\\x1b[31m\\ny is not in the model"),
        ({**STATE, "norm.weight": torch.ones(16, dtype=torch.int64)}, "holds norm.weight in torch.int64, where the model"),
        ({**STATE, "norm.weight": torch.ones(16) > 0}, "holds norm.weight in torch.bool"),
        ({**STATE, "norm.weight": torch.ones(16) * 1j}, "holds norm.weight in torch.complex64"),
        ({**STATE, "norm.weight": torch.ones(16).half() / 0}, "holds NaN or infinite weights in norm.weight"),
        ({**STATE, "norm.weight": torch.ones(16).double() * 1e300}, "holds NaN or infinite weights in norm.weight"),
        ({**STATE, "norm.weight": torch.ones(16).to_sparse()}, "holds norm.weight as a sparse_coo tensor"),
        ({**STATE, "norm.weight": torch.ones(16, device="meta")}, "holds norm.weight as a meta tensor"),
        (dict(enumerate(STATE.values())), "holds no tensors with names"),
        ({}, "holds no tensors with names"),
        (5, "holds no tensors with names"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(tmp_path: Path, content: Any, words: str) -> None:
    assert words in refused(tmp_path / "file.pth", content)


def test_small_numbers_and_negative_zero_are_weights(tmp_path: Path) -> None:
    state = {**STATE, "norm.bias": torch.full((16,), -0.0), "norm.weight": torch.full((16,), 1e-40)}
    found = loaded(saved(tmp_path / "file.pth", state)).get_parameter("norm.weight")
    assert torch.equal(found, state["norm.weight"])


def test_the_wrapper_s_classes_are_compared(tmp_path: Path) -> None:
    assert "has 10 classes, but --num-classes is 7" in refused(tmp_path / "file.pth", under("module."), num_classes=7)


def lying_header(path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [1000], "data_offsets": [0, 4000]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))


def many_files(path: Path) -> None:
    path.mkdir()
    for name in ("a.pth", "b.pth"):
        (path / name).touch()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Path.touch, "is an empty file"),
        (Path.mkdir, "is a folder without weights"),
        (many_files, "has 2 files of weights (a.pth, b.pth): give one of them"),
        (lambda path: path.symlink_to(path), "no checkpoint at"),
        (lambda path: path.symlink_to("/dev/null"), "is no file of weights"),
        (lying_header, "cannot be read as weights"),
        (lambda path: path.write_bytes((2**60).to_bytes(8, "little") + b"{}"), "cannot be read as weights"),
        (lambda path: np.savez(path.open("wb"), a=np.zeros(3)), "holds arrays of NumPy"),
    ],
    ids=["empty", "folder", "files", "loop", "device", "lying header", "long header", "NumPy"],
)
def test_other_files_get_one_line(tmp_path: Path, make: Callable[[Path], object], words: str) -> None:
    make(tmp_path / "file.safetensors") if make is lying_header else make(tmp_path / "file")
    with pytest.raises(CheckpointError) as raised:
        loaded(str(tmp_path / ("file.safetensors" if make is lying_header else "file")))
    assert words in str(raised.value)


def test_a_control_character_of_a_name_is_not_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import run_search

    (path := tmp_path / "a\x1b[31m.pth").touch()
    assert run_search.main(["inspect", NAME, "--checkpoint", str(path)]) == 2
    text = capsys.readouterr().err
    assert "\x1b" not in text
    assert "a\\x1b[31m.pth is an empty file" in text
