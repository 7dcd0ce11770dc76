"""A folder of timm's save_for_hf, or a cached repository of the hub, is a model with its classes and preprocessing."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants
from local_folders import pictures_for
from local_launches import OPTIONS, Silent
from local_runs import SIZES, Fails
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import nn

import run_search
from search import SearchConfig, launch
from search.run.run import open_run
from spaces.errors import CompressionError, ModelError
from spaces.folder.compressed import load_compressed, save_compressed
from spaces.models.create import ModelConfig, create_model, preprocessing, weights_of
from spaces.models.timm_folder import settled
from spaces.vit import describe

NAME = "vit_tiny_patch16_224"
CLASSES = ("cat", "dog", "eel")
PREPROCESSING = {"mean": (0.1,), "std": (0.4,), "interpolation": "bilinear", "crop_pct": 0.9, "crop_mode": "squash"}


def made(num_classes: int = 3, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    found: nn.Module = timm.create_model(NAME, num_classes=num_classes, **{**SIZES, "qkv_bias": False, **options}).eval()
    return found


def written(folder: Path, safe: bool = True) -> Path:
    model_config = {"label_names": list(CLASSES)}
    model_args = {**SIZES, "qkv_bias": False}
    write_hf(made(), folder, PREPROCESSING, model_config=model_config, model_args=model_args, safe_serialization=safe)
    return folder


def write_hf(model: nn.Module, folder: Path, preprocessing: dict[str, Any], **options: Any) -> None:
    """As save_for_hf with `data_config`, which timm before 1.0.31 does not have."""
    model.pretrained_cfg = {**model.pretrained_cfg, **preprocessing}  # type: ignore[assignment, dict-item]
    save_for_hf(model, folder, **options)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of a hub that refuses every connection."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    return tmp_path / "cache"


def snapshot(cache: Path, repository: str) -> Path:
    """The folder of a repository's files in a cache, as the hub's client lays them out."""
    root, commit = cache / f"models--{repository.replace('/', '--')}", "a" * 40
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(commit)
    return root / "snapshots" / commit


def check(config: ModelConfig) -> None:
    """The model is the one that was written, with all that was written of it, before and after its options are settled."""
    for options in (config, settled(config)):
        model, images = create_model(options), torch.randn(2, 1, 8, 8)
        with torch.no_grad():
            torch.testing.assert_close(model(images), made()(images))
        found = preprocessing(model, options)
        assert {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()} == {
            **PREPROCESSING, "input_size": (1, 8, 8),
        }  # fmt: skip
        assert model.pretrained_cfg["label_names"] == list(CLASSES)  # type: ignore[index]
    assert settled(config).model == NAME
    assert settled(settled(config)) == settled(config)


@pytest.mark.parametrize("safe", [True, False])
def test_a_folder_is_the_model(tmp_path: Path, safe: bool) -> None:
    folder = written(tmp_path / "hf", safe)
    check(ModelConfig(model=f"local-dir:{folder}"))
    check(ModelConfig(checkpoint=str(folder)))
    check(ModelConfig(model=NAME, checkpoint=f"local-dir:{folder}"))
    assert settled(ModelConfig(checkpoint=str(folder))).model == NAME


def test_options_go_before_what_the_folder_says(tmp_path: Path) -> None:
    config = ModelConfig(model=f"local-dir:{written(tmp_path / 'hf')}", mean=(0.7,), crop_pct=1.0)
    found = preprocessing(create_model(config), config)
    assert (found["mean"], found["crop_pct"], found["std"]) == ([0.7], 1.0, [0.4])


def test_a_cached_repository_needs_no_network(tmp_path: Path, cache: Path) -> None:
    folder = snapshot(cache, "me/mine")
    folder.parent.mkdir()
    shutil.move(written(tmp_path / "hf", safe=False), folder)
    check(ModelConfig(model="hf-hub:me/mine"))
    check(ModelConfig(checkpoint="hf-hub:me/mine"))
    assert settled(ModelConfig(checkpoint="hf-hub:me/mine")).model == NAME


def test_cached_pretrained_weights_need_no_network(cache: Path) -> None:
    dense = timm.create_model("test_vit")
    folder = snapshot(cache, dense.pretrained_cfg["hf_hub_id"])
    folder.mkdir(parents=True)
    save_file(dense.state_dict(), folder / "model.safetensors")
    model = create_model(ModelConfig(model="test_vit", pretrained=True))
    assert torch.equal(model.get_parameter("head.weight"), dense.get_parameter("head.weight"))
    assert weights_of(model) == "timm's pretrained ones of test_vit"
    model = create_model(ModelConfig(model="test_vit", pretrained=True, num_classes=3))
    assert weights_of(model) == "timm's pretrained ones of test_vit, with a random head of 3 classes"


@pytest.mark.parametrize("options", [{"model": "test_vit", "pretrained": True}, {"model": "hf-hub:me/mine"}])
def test_without_network_and_cache_one_line_comes_at_once(
    cache: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's client sleeps before it tries again: it must not."""
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail(f"waits for {seconds} s"))
    with pytest.raises(ModelError, match=r"127\.0\.0\.1:9 does not answer.*give a file with --checkpoint, or HF_HUB_CACHE"):
        create_model(ModelConfig(**options))
    assert not constants.HF_HUB_OFFLINE


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "no model: give --model with a name of timm.list_models(), local-dir:"),
        ({"model": "local-dir:FOLDER/none"}, "nothing is at FOLDER/none"),
        ({"model": "local-dir:FOLDER/.."}, "has no config.json that says of which architecture"),
        ({"checkpoint": "FOLDER/model.safetensors"}, "has no config.json that says of which architecture"),
        ({"model": "vit_small_patch16_224", "checkpoint": "FOLDER"}, f"FOLDER holds {NAME}, not vit_small_patch16_224"),
        ({"model": "local-dir:FOLDER", "checkpoint": "other.pth"}, "two places for the weights"),
        ({"model": "FOLDER"}, "local-dir:FOLDER is what save_for_hf wrote"),
        ({"model": "timm/vit_tiny"}, "hf-hub:timm/vit_tiny what is on the hub"),
    ],
)
def test_a_folder_that_is_no_model(tmp_path: Path, options: dict[str, str], words: str) -> None:
    folder = str(written(tmp_path / "hf"))
    with pytest.raises(CompressionError) as raised:
        create_model(ModelConfig(**{key: value.replace("FOLDER", folder) for key, value in options.items()}))  # type: ignore[arg-type]
    assert words.replace("FOLDER", folder) in str(raised.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architecture": "nope"}, "an architecture that timm does not know: 'nope'"),
        ({"architecture": 5}, "an architecture that timm does not know: 5"),
        ({"allocation": {}}, "compressed already"),
        ({"model_args": 5}, "damaged"),
        ({"model_args": {"checkpoint_path": "/x"}}, "must not have checkpoint_path"),
        ({"model_args": {"pretrained_cfg": {}}}, "must not have pretrained_cfg"),
        ({"pretrained_cfg": {"mean": "x"}}, "mean cannot be 'x'"),
        ({"pretrained_cfg": {"std": [0]}}, "std must be of pixel values between 0 and 1, and more than 0, got 0"),
        ({"pretrained_cfg": {"crop_pct": 1e-9}}, "crop_pct must be between 0.1 and 1.5, got 1e-09"),
        ({"pretrained_cfg": {"interpolation": "zoom"}}, "interpolation must be one of"),
    ],
)
def test_a_damaged_description(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    path = written(tmp_path / "hf") / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CompressionError) as raised:
        create_model(ModelConfig(checkpoint=str(path.parent)))
    assert words in str(raised.value)


def test_another_library_s_description_is_none(tmp_path: Path) -> None:
    folder = written(tmp_path / "hf")
    (folder / "config.json").write_text('{"architectures": ["ViTForImageClassification"]}')
    model = create_model(ModelConfig(model=NAME, checkpoint=str(folder), model_kwargs={**SIZES, "qkv_bias": False}))
    assert torch.equal(model.get_parameter("head.weight"), made().get_parameter("head.weight"))


# Runs


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of save_for_hf for the digits, and beside it the same weights in a training checkpoint."""
    folder = tmp_path_factory.mktemp("digits")
    torch.manual_seed(0)
    model = timm.create_model(NAME, num_classes=10, **OPTIONS["model_kwargs"])
    own = {"mean": (0.3,), "std": (0.37,), "crop_pct": 1.0}
    write_hf(model, folder / "hf", own, model_args=OPTIONS["model_kwargs"], safe_serialization=True)
    torch.save({"model": {f"module.{key}": value for key, value in model.state_dict().items()}, "epoch": 9}, folder / "a.pth")
    return folder


def searched(output: Path, trials: int, **options: Any) -> tuple[int, list[str]]:
    own = ("model", "model_kwargs", "num_classes", "mean", "std", "crop_pct")
    rest = {key: value for key, value in OPTIONS.items() if key not in own}
    reporter = Silent()
    run = launch(SearchConfig.from_flat({**rest, **options, "steps": 1, "trials": trials, "output": str(output)}), reporter)
    return len(run.trials), [text for text in reporter.said if text.startswith("weights: ")]


def test_a_run_of_a_folder_goes_on_with_other_wrappers(digits: Path, tmp_path: Path) -> None:
    count, said = searched(tmp_path / "run", 1, model=f"local-dir:{digits / 'hf'}")
    assert (count, said) == (1, [f"weights: {digits / 'hf' / 'model.safetensors'}"])
    options = open_run(tmp_path / "run").config.flat()
    taken = ("model", "model_kwargs", *PREPROCESSING)
    assert (options["model"], options["mean"], options["crop_pct"]) == (NAME, [0.3], 1.0)
    shutil.copytree(digits / "hf", tmp_path / "moved")
    assert searched(tmp_path / "run", 2, model=f"local-dir:{tmp_path / 'moved'}")[0] == 2
    said = searched(
        tmp_path / "run",
        3,
        **{name: value for name, value in options.items() if name in taken},
        checkpoint=str(digits / "a.pth"),
    )[1]
    assert said == [f"weights: {digits / 'a.pth'}; model, names without 'module.'; left aside: epoch"]
    assert run_search.main(["launch", "--output", str(tmp_path / "run"), "--model", f"local-dir:{digits / 'hf'}"]) == 0


def test_a_run_of_a_file_goes_on_with_a_folder(digits: Path, tmp_path: Path) -> None:
    options = {key: OPTIONS[key] for key in ("model", "model_kwargs", "mean", "std", "crop_pct")}
    assert searched(tmp_path / "run", 1, **options, checkpoint=str(digits / "a.pth"))[0] == 1
    assert searched(tmp_path / "run", 2, **options, checkpoint=str(digits / "hf"))[0] == 2


def test_an_export_of_a_folder_s_model_loads_by_itself(digits: Path, tmp_path: Path, fails: Fails) -> None:
    config = settled(ModelConfig(model=f"local-dir:{digits / 'hf'}"))
    dense = create_model(config)
    description = {
        "architecture": config.model, "model_args": config.model_kwargs, "num_classes": 10, "label_names": None,
        "space": "contract", "multiple": 8, "allocation": dict(describe(dense).identity()),
        "pretrained_cfg": preprocessing(dense, config), "pictures": pictures_for(1),
    }  # fmt: skip
    save_compressed(tmp_path, dense, description)
    model = load_compressed(tmp_path)
    assert torch.equal(model.get_parameter("head.weight"), dense.get_parameter("head.weight"))
    assert model.pretrained_cfg["mean"] == [0.3]  # type: ignore[index]
    line = fails("launch", "--model", f"local-dir:{tmp_path}", "--dataset", "digits")
    assert "compressed already: a search begins with a dense one" in line
