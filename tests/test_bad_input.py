"""Wrong input gets one clear line and exit status 2, before a trial is paid for, and nothing that was there is lost."""

import errno
import pickle
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

import run_search

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # timm leaves closing to the collector

SIZES = {"img_size": 8, "patch_size": 2, "in_chans": 1, "embed_dim": 16, "depth": 1, "num_heads": 2}
MODEL = ["--model", "vit_tiny_patch16_224", "--model-kwargs", *(f"{key}={value}" for key, value in SIZES.items())]
SHORT = ["--calibration-size", "64", "--steps", "1", "--trials", "2", "--workers", "0", "--device", "cpu"]
DIGITS = ["--dataset", "digits", *SHORT]

Fails = Callable[..., str]


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Fails:
    """Run a command that must fail; its only line on stderr."""

    def run(*arguments: str | Path) -> str:
        capsys.readouterr()
        assert run_search.main([str(argument) for argument in arguments]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        return lines[0]

    return run


def model(**changes: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    created: torch.nn.Module = timm.create_model("vit_tiny_patch16_224", **{**SIZES, "num_classes": 10, **changes})
    return created


def content(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "dense.safetensors"
    save_file(model().state_dict(), path)
    return path


@pytest.fixture(scope="module")
def finished(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two trials: the dense model, and a uniform allocation of about half of its MACs."""
    directory = tmp_path_factory.mktemp("runs") / "finished"
    assert run_search.main(["launch", *MODEL, "--checkpoint", str(checkpoint), *DIGITS, "--output", str(directory)]) == 0
    return directory


@pytest.fixture
def launch(checkpoint: Path, tmp_path: Path, fails: Fails) -> Fails:
    """The line that a launch with further arguments ends with; no run may come of it."""

    def run(*arguments: str | Path) -> str:
        output = tmp_path / "run"
        line = fails("launch", *MODEL, "--checkpoint", checkpoint, *DIGITS, "--output", output, *arguments)
        assert not (output / "study.journal").exists()
        assert not (output / "config.yaml").exists()
        return line

    return run


def test_unknown_model_names_near_ones(launch: Fails) -> None:
    line = launch("--model", "vit_tinny_patch16_224")
    assert "no model 'vit_tinny_patch16_224'" in line
    assert "did you mean" in line
    assert "vit_tiny_patch16_224" in line.partition("did you mean")[2]


def test_argument_that_timm_refuses(launch: Fails) -> None:
    assert "no_such_argument" in launch("--model-kwargs", "no_such_argument=1")


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


@pytest.mark.parametrize("target", ["flops=banana", "flops", "50%", "latency=8ms", "flops=-5%", "params=1e6", ""])
def test_malformed_target(launch: Fails, target: str) -> None:
    line = launch("--target", target)
    assert f"target {target!r} is not understood" in line
    assert "flops=50%" in line


@pytest.mark.parametrize("target", ["params=1%", "params=1", "params=200%"])
def test_unreachable_target_tells_the_range(launch: Fails, tmp_path: Path, target: str) -> None:
    """Dense: as many parameters as the model has, 3.85 K."""
    line = launch("--target", target)
    assert sum(parameter.numel() for parameter in model().parameters()) == 3850
    assert f"target {target!r}" in line
    assert "reaches from" in line
    assert "to 3.85 K (100%, the dense model)" in line
    assert not list(tmp_path.rglob("*.safetensors")), "nothing was computed for it"


def test_two_targets_for_one_cost(launch: Fails) -> None:
    assert "two targets for macs: flops=50%, macs=60%" in launch("--target", "flops=50%", "macs=60%")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--space", "low-rank"), "space='contract', not 'low-rank'"),
        (("--model", "vit_small_patch16_224"), "model='vit_tiny_patch16_224', not 'vit_small_patch16_224'"),
        (("--model-kwargs", "depth=2"), "model_kwargs="),
        (("--target", "flops=50%"), "target="),
        (("--steps", "7"), "steps=1, not 7"),
        (("--data-dir", "nowhere", "--dataset", ""), "dataset='digits', not ''"),
    ],
    ids=["space", "model", "arguments", "target", "steps", "images"],
)
def test_run_of_something_else_stays_as_it_is(fails: Fails, finished: Path, arguments: tuple[str, ...], words: str) -> None:
    before = content(finished)
    line = fails("launch", "--output", finished, *arguments)
    assert words in line
    assert "choose another --output" in line
    assert content(finished) == before


def test_run_of_other_weights_stays_as_it_is(fails: Fails, finished: Path, tmp_path: Path) -> None:
    other = {key: 2 * value for key, value in model().state_dict().items()}
    save_file(other, tmp_path / "other.safetensors")
    before = content(finished)
    line = fails("launch", "--output", finished, "--checkpoint", tmp_path / "other.safetensors", "--trials", "3")
    assert "other weights or images" in line
    assert content(finished) == before


def test_options_of_a_run_need_not_be_repeated(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The demo's options are for a run that has none."""
    trials = (finished / "trials.csv").read_bytes()
    assert run_search.main(["launch", "--output", str(finished)]) == 0
    assert (finished / "trials.csv").read_bytes() == trials
    assert not (finished / "dense.safetensors").exists()
    assert "training the demo model" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("trails: 3", "unknown option 'trails': did you mean trials"),
        ("xyzzy: 3", "unknown option 'xyzzy': known are model"),
        ("- trials\n- 3", "must hold 'name: value' lines, got a list"),
        ("just words", "must hold 'name: value' lines, got a str"),
        ("a: [1, 2\nb: }", "cannot be read as YAML"),
        ("\x00\x01", "cannot be read as YAML"),
        ("trials: many", "trials must be of type int, got 'many'"),
        ("trials: 2.5", "trials must be of type int, got 2.5"),
        ("trials: true", "trials must be of type int, got True"),
        ("trials: 0", "trials must be at least 1, got 0"),
        ("lr: fast", "lr must be of type float, got 'fast'"),
        ("pretrained: 3", "pretrained must be of type bool, got 3"),
        ("scale: [0.5]", "scale must have 2 values"),
        ("space: tiny", "space must be one of contract, hybrid, low-rank, full, got 'tiny'"),
        ("model: 5", "model must be of type str, got 5"),
        ("model_kwargs: 5", "model_kwargs must be of type dict, got 5"),
        ("sampler: magic", "sampler must be one of"),
        ("dataset: cifar10", "dataset must be empty, digits or begin with torch/"),
    ],
)
def test_wrong_configuration_file(fails: Fails, tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "search.yaml"
    path.write_text(text)
    assert words in fails("launch", "--config", path, "--output", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_missing_configuration_file(fails: Fails, tmp_path: Path) -> None:
    assert str(tmp_path / "none.yaml") in fails("launch", "--config", tmp_path / "none.yaml", "--output", tmp_path / "run")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("launch", "--trails", "3"), "unrecognized arguments: --trails 3: did you mean --trials"),
        (("launch", "--trials", "many"), "argument --trials: invalid int value: 'many'"),
        (("launch", "--space", "tiny"), "argument --space: invalid choice: 'tiny'"),
        (("launch", "--model-kwargs", "depth"), "argument --model-kwargs: 'depth' is not KEY=VALUE"),
        (("lunch",), "invalid choice: 'lunch'"),
        ((), "COMMAND"),
        (("export",), "arguments are required: run"),
    ],
)
def test_wrong_arguments(fails: Fails, arguments: tuple[str, ...], words: str) -> None:
    assert words in fails(*arguments)


def test_device_that_is_not_there(launch: Fails) -> None:
    assert "device 'cuda:99' is not available here" in launch("--device", "cuda:99")


def test_output_that_cannot_be_written(fails: Fails, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    output = tmp_path / "file" / "run"
    line = fails("launch", *MODEL, "--checkpoint", checkpoint, *DIGITS, "--output", output)
    assert f"cannot write to {output}" in line
    assert "--output" in line
    assert (tmp_path / "file").read_text() == "no folder"


def test_full_disk(fails: Fails, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("search.config.write_text", full)
    output = tmp_path / "run"
    line = fails("launch", *MODEL, "--checkpoint", checkpoint, *DIGITS, "--output", output)
    assert "No space left on device" in line
    assert str(output) in line


@pytest.mark.parametrize("command", [("browse", "--no-open"), ("export", "--target", "flops=50%"), ("export", "--trial", "0")])
@pytest.mark.parametrize("folder", ["empty", "nowhere"])
def test_folder_without_a_run(fails: Fails, tmp_path: Path, command: tuple[str, ...], folder: str) -> None:
    (tmp_path / "empty").mkdir()
    assert f"no search in {tmp_path / folder}" in fails(command[0], tmp_path / folder, *command[1:])
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_run_with_damaged_tables(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "pareto.json").write_text("{")
    (tmp_path / "trials.csv").touch()
    assert f"the tables of {tmp_path} cannot be read" in fails("browse", tmp_path, "--no-open")


def test_launch_over_a_damaged_table(fails: Fails, finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "pareto.json").write_text("{")
    before = content(run)
    assert "pareto.json cannot be read" in fails("launch", "--output", run)
    assert content(run) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--trial", "99"), "has no trial 99: it has 2"),
        (("--target", "flops=20%"), "keeps flops=20%: the nearest is trial 1"),
        (("--target", "flops=1%"), "reaches from"),
        (("--target", "flops=half"), "target 'flops=half' is not understood"),
        ((), "--target flops=50% or --trial N"),
    ],
    ids=["unknown trial", "kept by none", "unreachable", "malformed", "neither"],
)
def test_export_of_what_is_not_there(fails: Fails, finished: Path, arguments: tuple[str, ...], words: str) -> None:
    before = content(finished)
    assert words in fails("export", finished, *arguments)
    assert content(finished) == before


@pytest.mark.slow
def test_a_shell_sees_the_line_and_the_status(tmp_path: Path) -> None:
    command = [sys.executable, str(Path(run_search.__file__)), "launch", "--model", "vit_tinny", "--dataset", "digits"]
    done = subprocess.run([*command, "--output", str(tmp_path / "run")], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: timm has no model 'vit_tinny'")
