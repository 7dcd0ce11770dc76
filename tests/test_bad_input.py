"""A wrong target, run, option or place to write gets one clear line and exit status 2, and nothing that was there is lost."""

import errno
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from local_runs import DIGITS, MODEL, Fails, content, model
from safetensors.torch import save_file

import run_search


@pytest.mark.parametrize("target", ["flops=banana", "flops", "50%", "latency=8", "flops=-5%", "params=1e6", ""])
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
    assert "to 3.85 K parameters (100%, the dense model)" in line
    assert not list(tmp_path.rglob("*.safetensors")), "nothing was computed for it"


def test_two_bounds_for_one_cost(launch: Fails) -> None:
    line = launch("--target", "flops=50%,macs=60%")
    assert "two bounds for one cost in 'flops=50%,macs=60%'" in line
    assert "--target flops=50% flops=30%" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--parametrisation", "sizes"), "the sampler 'additive' proposes multipliers: choose --sampler tpe for sizes"),
        (
            ("--parametrisation", "sizes", "--sampler", "random", "--target", "flops=60%", "flops=50%"),
            "parametrisation sizes serves one target, got flops=60%, flops=50%",
        ),
    ],
    ids=["additive", "two targets"],
)
def test_sizes_are_not_for_every_search(launch: Fails, arguments: tuple[str, ...], words: str) -> None:
    assert words in launch(*arguments)


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
        ("space: tiny", "space must be one of contract, heads, hybrid, low-rank, full, got 'tiny'"),
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
    assert f"{tmp_path / 'pareto.json'} cannot be read" in fails("browse", tmp_path, "--no-open")


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
        ((), "--target flops=50%, --trial N, --all-front or --allocation FILE"),
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
