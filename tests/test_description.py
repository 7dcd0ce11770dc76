"""Folders that are damaged, changed or hostile: refused in one line, with nothing unpickled and no memory taken."""

import ast
import json
import math
import pickle
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from local_folders import Folder, changed, write_folder
from local_vits import MakeVit
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from spaces import load_compressed
from spaces.errors import CheckpointError
from spaces.folder.compressed import dense_architecture
from spaces.folder.description import FOLDER_FORMAT, fingerprint_of

ROOT = Path(__file__).parents[1]
PICTURES = {"mode": "RGB", "pixel_range": None, "background": "white"}


@pytest.fixture(scope="module")
def original(make_vit: MakeVit, images: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return write_folder(tmp_path_factory.mktemp("folders") / "whole", make_vit, images)


@pytest.fixture
def folder(original: Folder, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(original.path, tmp_path / "folder"))


def as_exported(folder: Path) -> None:
    """Have config.json tell the hash of the weights that are there now."""
    told = fingerprint_of(folder / "model.safetensors")
    changed(folder, lambda config: config["files"].update({"model.safetensors": told}))


class Poison:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_what_was_written_is_read_back(original: Folder) -> None:
    pictures = original.images(4)
    model = load_compressed(original.path)
    assert not model.training
    with torch.inference_mode():
        assert torch.equal(model(pictures), original.logits(pictures))
    assert model.pretrained_cfg["mean"] == [0.3, 0.35, 0.4]  # type: ignore[index]


def test_rotary_positions_are_computed_and_not_stored(make_vit: MakeVit, images: Tensor, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "rotary", make_vit, images, kind="rotary")
    stored = set(load_file(folder.path / "model.safetensors"))
    assert set(dict(folder.model.named_buffers())) - stored, "else this tests nothing"
    pictures = folder.images(4)
    with torch.inference_mode():
        assert torch.equal(load_compressed(folder.path)(pictures), folder.logits(pictures))


@pytest.mark.parametrize("protocol", ["pickle", "torch.save"])
def test_a_pickle_in_place_of_the_weights_is_not_unpickled(folder: Path, tmp_path: Path, protocol: str) -> None:
    mark, weights = tmp_path / "mark", folder / "model.safetensors"
    if protocol == "pickle":
        weights.write_bytes(pickle.dumps(Poison(mark)))
    else:
        torch.save({"head.weight": Poison(mark)}, weights)
    as_exported(folder)
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        load_compressed(folder)
    assert not mark.exists()
    with weights.open("rb") as file:
        torch.load(file, weights_only=False) if protocol == "torch.save" else pickle.load(file)
    assert mark.exists(), "the poison would have worked"


def test_loading_never_asks_for_a_pickle(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    assert isinstance(load_compressed(folder), nn.Module)


def test_no_code_here_unpickles() -> None:
    """Every reader of torch's files is told weights_only=True, and nothing else of pickle reads."""
    files = [path for package in ("spaces", "objectives", "search") for path in (ROOT / package).rglob("*.py")]
    calls = [
        (path.name, ast.unparse(node))
        for path in (*files, ROOT / "run_search.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    ]
    assert len(calls) > 1000
    readers = ("torch.load(", "load_state_dict(", "pickle.load", "cloudpickle.load")
    loads = [(name, text) for name, text in calls if text.startswith(readers)]
    assert loads and all("weights_only=True" in text for _, text in loads), loads


def without(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda config: config.pop(key)


def with_(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda config: config.update({key: value})


def within(key: str, name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda config: config[key].update({name: value})


def scheduled(*counts: int) -> Callable[[dict[str, Any]], None]:
    """Patch tokens that leave the blocks."""
    return lambda config: config["allocation"].update({f"blocks.{block}.tokens": left for block, left in enumerate(counts)})


def images_of(side: int) -> Callable[[dict[str, Any]], None]:
    """A model and its preprocessing that take images of this size."""

    def change(config: dict[str, Any]) -> None:
        config["model_args"]["img_size"] = side
        config["pretrained_cfg"]["input_size"] = [3, side, side]

    return change


def many_patches(depth: int) -> Callable[[dict[str, Any]], None]:
    """A tiny model of as many patches as are read, in each of so many blocks."""

    def change(config: dict[str, Any]) -> None:
        images_of(256)(config)
        config["model_args"].update(embed_dim=2, patch_size=1, depth=depth)

    return change


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("allocation"), "lacks allocation: it was not written by this project's export"),
        (with_("architecture", 7), "architecture must be of type str, got 7"),
        (with_("architecture", "resnet18"), "timm cannot create"),
        (with_("architecture", "hf-hub:someone/something"), "timm has no model"),
        (with_("num_classes", True), "num_classes must be of type int, got True"),
        (lambda config: config.update(num_classes=10**15, label_names=None), "cannot have become one of"),
        (with_("label_names", ["a"]), "label_names must be 5 texts"),
        (with_("class_order", "reversed"), "class_order must be timm, torchvision, class map FILE or null, got 'reversed'"),
        (with_("class_order", ["timm"]), "class_order must be timm"),
        (with_("label_names", [1, 2, 3, 4, 5]), "label_names must be 5 texts"),
        (with_("allocation", {"blocks.0.mlp.hidden": -4}), "must be a whole number, 0 or more, got -4"),
        (with_("allocation", {}), "no size for site"),
        (within("allocation", "blocks.9.attn.qk", 4), "unknown site"),
        (within("allocation", "blocks.0.tokens", "8"), "size of blocks.0.tokens must be a whole number, 0 or more, got '8'"),
        (within("allocation", "blocks.0.tokens", [8]), "size of blocks.0.tokens must be a whole number, 0 or more, got [8]"),
        (within("allocation", "blocks.0.tokens", 0), "blocks.0.tokens cannot be 0: choose one of 8, 9, 10"),
        (within("allocation", "blocks.0.tokens", 7), "blocks.0.tokens cannot be 7: choose one of 8, 9, 10"),
        (within("allocation", "blocks.0.tokens", 10**30), "blocks.0.tokens cannot be 1"),
        (within("allocation", "blocks.2.tokens", 16), "unknown site 'blocks.2.tokens'"),
        (scheduled(16, 12), "blocks.1.tokens cannot be 12 where 16 patch tokens enter: 0 or 16"),
        (scheduled(8, 16), "blocks.1.tokens cannot be 16 where 8 patch tokens enter: 0 or 8"),
        (within("allocation", "blocks.1.attn.branch", 2), "blocks.1.attn.branch cannot be 2: choose one of 0, 1"),
        (within("allocation", "blocks.1.attn.branch", 0), "blocks.1.attn is made smaller by contract and drop at once"),
        (many_patches(100), "65,536 patches in each of 100 blocks are more than 4,000,000"),
        (with_("space", "nonsense"), "unknown space"),
        (with_("multiple", 0), "multiple must be from 1 to 1,000,000, got 0"),
        (with_("multiple", 10**40), "multiple must be from 1 to 1,000,000"),
        (with_("num_classes", -5), "num_classes must be 0 or more, got -5"),
        (with_("architecture", "x" * 10**6), "architecture must be the name of a model"),
        (with_("architecture", "\ud800"), "timm has no model '\\ud800'"),
        (with_("files", {"../model.safetensors": {}}), "files must be named model.safetensors, model.onnx and the like"),
        (with_("files", {"/etc/passwd": {}}), "files must be named model.safetensors"),
        (with_("files", {"model..": {}}), "files must be named model.safetensors"),
        (with_("dtype", "int8"), "dtype must be one of float32, bfloat16, float16, got 'int8'"),
        (with_("dtype", "float16"), "is stored in torch.float32, not in torch.float16"),
        (with_("pictures", None), "pictures must have mode, pixel_range and background, got None"),
        (with_("pictures", {"mode": "RGB"}), "pictures must have mode, pixel_range and background"),
        (with_("pictures", {**PICTURES, "mode": "L"}), "mode of pictures must be L for 1 channel, RGB for 3, got 'L' for 3"),
        (with_("pictures", {**PICTURES, "pixel_range": [5, 1]}), "pixel_range of pictures must be two numbers low < high"),
        (with_("pictures", {**PICTURES, "pixel_range": [0, "9"]}), "pixel_range of pictures must be two numbers low < high"),
        (with_("pictures", {**PICTURES, "background": ["white"]}), "background of pictures must be one of white, black"),
        (with_("files", {"model.safetensors": "abc"}), "no size and hash of 'model.safetensors'"),
        (with_("files", {}), "has no model.safetensors"),
        (within("model_args", "checkpoint_path", "/etc/passwd"), "model_args must not have checkpoint_path"),
        (within("model_args", "pretrained", True), "model_args must not have pretrained"),
        (within("model_args", "nonsense", 1), "timm cannot create"),
        (within("model_args", "depth", 10**9), "depth 1000000000, and no vision transformer more than 1000 blocks"),
        (within("model_args", "embed_dim", 10**6), "cannot have become one of"),
        (within("model_args", "img_size", 10**6), "the model takes images of [3, 1000000, 1000000]"),
        (images_of(10**6), "are more than 4096 pixels wide, or give more than 65,536 patches"),
        (images_of(2048), "are more than 4096 pixels wide, or give more than 65,536 patches"),
        (within("model_args", "norm_layer", "nonsense"), "timm cannot create"),
        (within("model_args", "act_layer", "nonsense"), "timm cannot create"),
        (within("model_args", "drop_path_rate", [0] * 10**5), "timm cannot create"),
        (within("model_args", "embed_dim", nested(900)), "timm cannot create"),
        (within("model_args", "num_heads", 0), "timm cannot create"),
        (within("model_args", "mlp_ratio", 1e7), "cannot have become one of"),
        (within("model_args", "embed_dim", 10**30), "timm cannot create"),
        (within("model_args", "img_size", 20), "the model takes images of [3, 20, 20], but pretrained_cfg has"),
        (within("model_args", "patch_size", 0), "timm cannot create"),
        (within("pretrained_cfg", "mean", [0.5]), "mean must be 3 numbers"),
        (within("pretrained_cfg", "std", [0.5, None, 0.5]), "std must be 3 numbers"),
        (within("pretrained_cfg", "input_size", [3, 16]), "input_size must be three positive numbers"),
        (within("pretrained_cfg", "input_size", [3, 99999, 99999]), "the model takes images of [3, 16, 16]"),
        (within("pretrained_cfg", "crop_pct", float("nan")), "NaN is no number of JSON"),
        (within("pretrained_cfg", "crop_pct", 1e-9), "crop_pct must be a number from 0.1 to 10, got 1e-09"),
        (within("pretrained_cfg", "crop_pct", 1e9), "crop_pct must be a number from 0.1 to 10"),
        (within("pretrained_cfg", "mean", [10**4000, 0, 0]), "mean must be 3 numbers from -1e+06 to 1e+06"),
        (within("pretrained_cfg", "std", [0.5, 0, 0.5]), "std must be 3 numbers from 1e-06 to 1e+06"),
        (within("pretrained_cfg", "std", [0.5, -1, 0.5]), "std must be 3 numbers from 1e-06 to 1e+06"),
        (within("pretrained_cfg", "interpolation", None), "interpolation must be one of nearest, bilinear"),
        (within("pretrained_cfg", "interpolation", "random"), "interpolation must be one of nearest, bilinear"),
        (within("pretrained_cfg", "crop_mode", "middle"), "crop_mode must be one of center, squash, border"),
    ],
    ids=lambda value: None if callable(value) else value[:40],
)
def test_a_description_that_cannot_be_is_refused_before_memory_is_taken(
    folder: Path, change: Callable[[dict[str, Any]], None], words: str
) -> None:
    changed(folder, change)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError) as caught:
            load_compressed(folder)
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b"null", b"[" * 100_000, b"\x00", b"\xef\xbb\xbf{}", b"\xff\xfe{}", b"9" * 9999]
)
def test_what_is_no_json_object_is_refused(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        load_compressed(folder)


@pytest.mark.parametrize(("number", "words"), [
    (FOLDER_FORMAT + 1, rf"newer version \(format {FOLDER_FORMAT + 1}, this one reads {FOLDER_FORMAT}\): pip install -U"),
    (FOLDER_FORMAT - 1, "written by an older version .*: export the model again"),
    ("1", r"'1' in place of a format number.*: export the model again"),
    (True, "True in place of a format number"),
    (None, "no format number: an older version or another program wrote it .*: export the model again"),
])  # fmt: skip
def test_another_format_is_refused(folder: Path, number: Any, words: str) -> None:
    for read in (load_compressed, dense_architecture):
        with pytest.raises(CheckpointError, match=words):
            read(changed(folder, lambda config: config.update(format=number)))


def test_a_description_that_is_no_file_or_has_no_end_is_not_read(folder: Path) -> None:
    config = folder / "config.json"
    with config.open("ab") as file:
        file.truncate(16_000_001)
    with pytest.raises(CheckpointError, match="it has 16,000,001 bytes, and no more than 16,000,000 are read"):
        load_compressed(folder)
    config.unlink()
    config.symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match="it is no file"):
        load_compressed(folder)
    config.unlink()
    config.mkdir()
    with pytest.raises(CheckpointError, match="it is no file"):
        load_compressed(folder)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_no_numbers_are_refused(folder: Path, value: float) -> None:
    state = load_file(folder / "model.safetensors")
    state["blocks.1.mlp.fc1.bias"][3] = value
    save_file(state, folder / "model.safetensors")
    as_exported(folder)
    with pytest.raises(CheckpointError, match=r"blocks\.1\.mlp\.fc1\.bias holds NaN or infinite weights"):
        load_compressed(folder)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float64, torch.float8_e4m3fn])
def test_weights_of_another_type_are_refused(folder: Path, dtype: torch.dtype) -> None:
    state = load_file(folder / "model.safetensors")
    state["head.bias"] = state["head.bias"].to(dtype)
    save_file(state, folder / "model.safetensors")
    as_exported(folder)
    with pytest.raises(CheckpointError, match=rf"head\.bias is stored in {dtype}, not in torch\.float32"):
        load_compressed(folder)


def test_the_dense_model_of_absurd_size_is_not_made(folder: Path) -> None:
    changed(folder, within("model_args", "embed_dim", 10**6))
    with pytest.raises(CheckpointError, match=r"config\.json does not describe .* cannot have become one of"):
        dense_architecture(folder)


def test_weights_that_changed_on_the_way_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"is not the file that was exported \(its SHA-256 is"):
        load_compressed(folder)
    weights.write_bytes(content[:-100])
    with pytest.raises(CheckpointError, match=rf"its size is {len(content) - 100}, config\.json says {len(content)}"):
        load_compressed(folder)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read: .*No such file"):
        load_compressed(folder)


def test_weights_of_other_shapes_or_names_are_refused_though_the_hash_fits(folder: Path) -> None:
    weights = folder / "model.safetensors"
    state = load_file(weights)
    for changed_state in (
        {**state, "head.weight": state["head.weight"][:, :-1].contiguous()},
        {key: value for key, value in state.items() if key != "head.weight"},
        {**state, "further": torch.zeros(3)},
    ):
        save_file(changed_state, weights)
        as_exported(folder)
        with pytest.raises(CheckpointError, match=r"model\.safetensors does not fit .*config\.json") as caught:
            load_compressed(folder)
        assert "\n" not in str(caught.value)


def test_timm_reads_the_description_as_its_own(folder: Path) -> None:
    """The keys that timm's config.json has too mean the same there."""
    from timm.models._hub import load_model_config_from_path

    config, architecture, arguments = load_model_config_from_path(folder)
    assert architecture == "vit_tiny_patch16_224"
    assert (config["num_classes"], config["label_names"], config["mean"]) == (5, list("abcde"), [0.3, 0.35, 0.4])
    assert arguments == json.loads((folder / "config.json").read_text())["model_args"]
