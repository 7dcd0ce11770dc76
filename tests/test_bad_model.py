"""A wrong model, image folder or checkpoint gets one clear line and exit status 2, before anything is computed."""

import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from local_runs import MODEL, SHORT, SIZES, Fails, model
from PIL import Image
from safetensors.torch import save_file

import run_search


def test_unknown_model_names_near_ones(launch: Fails) -> None:
    line = launch("--model", "vit_tinny_patch16_224")
    assert "no model 'vit_tinny_patch16_224'" in line
    assert "did you mean" in line
    assert "vit_tiny_patch16_224" in line.partition("did you mean")[2]


def test_argument_that_timm_refuses(launch: Fails) -> None:
    assert "no_such_argument" in launch("--model-kwargs", "no_such_argument=1")


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("qkv_bias=flase", "qkv_bias must be true or false, got 'flase'"),
        ("qkv_bias=2", "qkv_bias must be true or false, got 2"),
        ("num_heads=true", "num_heads must be of type int, got true"),
        ("depth=abc", "timm cannot create"),
        ("img_size=(8,8", "is not understood"),
    ],
)
def test_value_that_no_argument_of_the_model_has(fails: Fails, argument: str, words: str) -> None:
    assert words in fails("inspect", MODEL[1], "--model-kwargs", argument)


def test_truth_values_are_what_they_say(capsys: pytest.CaptureFixture[str]) -> None:
    """Without biases of 1 block, 16 wide, 3 x 16 fewer parameters: 3,850 with 10 classes."""
    for text, parameters in (("true", "3.85 K"), ("false", "3.8 K"), ("False", "3.8 K"), ("no", "3.8 K"), ("none", "3.85 K")):
        assert run_search.main(["inspect", *MODEL[1:], f"qkv_bias={text}", "--num-classes", "10"]) == 0
        assert f" {parameters} " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "sizes", "words"),
    [
        ("resnet10t", {}, "ResNet has no list of transformer blocks"),
        (
            "swin_tiny_patch4_window7_224",
            {"img_size": 32, "window_size": 4, "embed_dim": 16, "depths": (1,), "num_heads": (1,)},
            "SwinTransformer has no list of transformer blocks",
        ),
        ("vit_base_patch16_xp_224", SIZES, "no site in space 'contract' (blocks.0.attn: ParallelScalingBlock has no separate"),
    ],
)
def test_model_without_a_site(fails: Fails, name: str, sizes: dict[str, Any], words: str) -> None:
    assert words in fails("inspect", name, "--model-kwargs", *(f"{key}={value}" for key, value in sizes.items()))


def images(root: Path, **classes: int) -> Path:
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.new("L", (8, 8), number).save(root / name / f"{number}.png")
    return root


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        ({}, "no folder"),
        ({"cat": 0, "dog": 0}, "0 images"),
        ({"cat": 5}, "1 class (cat): at least two are needed"),
        ({"cat": 5, "dog": 5}, "the images have 2 classes, the model has 10"),
    ],
    ids=["nothing", "no image", "one class", "too few classes"],
)
def test_unusable_images(fails: Fails, checkpoint: Path, tmp_path: Path, classes: dict[str, int], words: str) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    images(folder, **classes)
    arguments = ["launch", *MODEL, "--checkpoint", checkpoint, "--data-dir", folder, *SHORT, "--output", tmp_path / "run"]
    assert words in fails(*arguments)


def test_missing_image_folder(fails: Fails, checkpoint: Path, tmp_path: Path) -> None:
    arguments = ["launch", *MODEL, "--checkpoint", checkpoint, *SHORT, "--output", tmp_path / "run"]
    assert str(tmp_path / "nowhere") in fails(*arguments, "--data-dir", tmp_path / "nowhere")
    assert "--data-dir" in fails(*arguments)


def test_num_classes_other_than_the_checkpoints(launch: Fails) -> None:
    line = launch("--num-classes", "7")
    assert "10 classes" in line
    assert "--num-classes is 7" in line


def test_missing_checkpoint(launch: Fails, tmp_path: Path) -> None:
    assert f"no checkpoint at {tmp_path / 'none.pth'}" in launch("--checkpoint", tmp_path / "none.pth")


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_truncated_checkpoint(launch: Fails, checkpoint: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cut.{suffix}"
    if suffix == "pth":
        torch.save(model().state_dict(), path)
    else:
        path.write_bytes(checkpoint.read_bytes())
    path.write_bytes(path.read_bytes()[:-1000])
    line = launch("--checkpoint", path)
    assert f"{path} cannot be read as weights" in line
    assert "cut short" in line


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_random_bytes_are_no_checkpoint(launch: Fails, tmp_path: Path, suffix: str, seed: int) -> None:
    """Readers raise anything on them: IndexError, struct.error, ..."""
    path = tmp_path / f"noise.{suffix}"
    path.write_bytes(random.Random(seed).randbytes(5000))
    assert f"{path} cannot be read as weights" in launch("--checkpoint", path)


def test_empty_file_is_no_checkpoint(launch: Fails, tmp_path: Path) -> None:
    path = tmp_path / "empty.pth"
    path.touch()
    assert str(path) in launch("--checkpoint", path)


def test_list_of_tensors_is_no_checkpoint(launch: Fails, tmp_path: Path) -> None:
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    assert "list.pth" in launch("--checkpoint", tmp_path / "list.pth")


def test_pickled_module_is_refused(launch: Fails, tmp_path: Path) -> None:
    torch.save(model(), tmp_path / "module.pth")
    line = launch("--checkpoint", tmp_path / "module.pth")
    assert "pickled Python objects" in line
    assert "state_dict()" in line


class Touch:
    """What loading it runs: creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_malicious_pickle_does_not_run(launch: Fails, tmp_path: Path, form: str) -> None:
    path, marker = tmp_path / "evil.pth", tmp_path / "marker"
    content: dict[str, Any] = {**model().state_dict(), "extra": Touch(marker)}
    if form == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    assert f"{path} holds pickled Python objects" in launch("--checkpoint", path)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Touch(marker)))
    assert marker.exists(), "the pickle is a working one"


def test_checkpoint_of_another_size(launch: Fails, tmp_path: Path) -> None:
    save_file(model(embed_dim=32).state_dict(), tmp_path / "wide.safetensors")
    line = launch("--checkpoint", tmp_path / "wide.safetensors")
    assert "does not fit vit_tiny_patch16_224" in line
    assert "pos_embed is [1, 17, 32], not [1, 17, 16]" in line


def test_checkpoint_of_another_architecture(launch: Fails, tmp_path: Path) -> None:
    save_file({"conv1.weight": torch.zeros(2), "fc.bias": torch.zeros(2)}, tmp_path / "other.safetensors")
    line = launch("--checkpoint", tmp_path / "other.safetensors")
    assert "does not fit vit_tiny_patch16_224" in line
    assert "is missing" in line


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_checkpoint_that_is_not_finite(launch: Fails, tmp_path: Path, value: float) -> None:
    state = model().state_dict()
    state["blocks.0.mlp.fc1.weight"][3, 5] = value
    save_file(state, tmp_path / "nan.safetensors")
    line = launch("--checkpoint", tmp_path / "nan.safetensors")
    assert "NaN or infinite weights in blocks.0.mlp.fc1.weight" in line
