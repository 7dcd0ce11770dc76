"""A run where an exported model is wanted, and the other way round: what it is, and which command takes it."""

import json
from pathlib import Path

import pytest
from local_runs import Fails

import run_search


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """As far as commands look before they read it."""
    for name in ("config.yaml", "pareto.json", "study.journal"):
        (tmp_path / "runs" / "one" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "runs" / "one" / name).touch()
    (tmp_path / "runs" / "one" / "front").mkdir()
    return tmp_path / "runs" / "one"


def exported(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"allocation": {"blocks.0.mlp.hidden": 8}}))
    (folder / "model.safetensors").touch()
    return folder


@pytest.mark.parametrize("command", ["predict", "measure"])
def test_commands_that_take_an_exported_model(run: Path, tmp_path: Path, fails: Fails, command: str) -> None:
    images = ["image.png"] if command == "predict" else []
    line = fails(command, run, *images)
    assert f"{run} is a run of a search, not an exported model: python run_search.py export {run} makes one" in line
    for name in ("flops50", "trial3"):
        exported(run / "export" / name)
    (run / "export" / ".training").mkdir()
    models = f"give {command} {run / 'export' / 'flops50'} or {run / 'export' / 'trial3'}"
    assert models in fails(command, run, *images)
    for part in (run / "export", run / "front", run / "study.journal"):
        line = fails(command, part, *images)
        assert f"{part} is part of the run {run}, not an exported model: {models}" in line
    weights = run / "export" / "trial3" / "model.safetensors"
    assert f"{weights} is a file of an exported model: give {command} its folder, {weights.parent}" in fails(
        command, weights, *images
    )
    line = fails(command, tmp_path / "nothing", *images)
    assert "cannot be read" in line


@pytest.mark.parametrize("arguments", [["export"], ["audit"], ["browse"], ["browse", "--text"], ["inspect"]])
def test_commands_that_take_a_run(run: Path, tmp_path: Path, fails: Fails, arguments: list[str]) -> None:
    command, *flags = arguments
    inside, outside = exported(run / "export" / "flops50"), exported(tmp_path / "model")
    line = fails(command, outside, *flags)
    assert f"{outside} is an exported model, not a run of a search: predict and measure take it" in line
    assert f"predict and measure take it; it was exported from the run {run}" in fails(command, inside, *flags)
    assert f"{run / 'export'} is part of a run of a search: give the run itself, {run}" in fails(
        command, run / "export", *flags
    )


def test_a_run_is_not_written_into_an_exported_model(tmp_path: Path, fails: Fails) -> None:
    folder = exported(tmp_path / "model")
    line = fails("launch", "--model", "vit_tiny_patch16_224", "--dataset", "digits", "--output", folder)
    assert f"{folder} is an exported model, which predict and measure take: choose another --output" in line
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}


def test_what_is_neither_is_left_to_the_command(tmp_path: Path, fails: Fails, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder of a model of others, and one beside which there is a file of the name of a run's."""
    (tmp_path / "config.yaml").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"architecture": "vit"}')
    assert "no search in" in fails("browse", tmp_path / "other", "--text")
    assert "another program wrote it" in fails("predict", tmp_path / "other", "image.png")
    assert run_search.main(["inspect", "vit_tiny_patch16_224"]) == 0
    assert "sites in" in capsys.readouterr().out


def test_inspect_says_that_a_run_lacks_its_options(run: Path, fails: Fails) -> None:
    (run / "config.yaml").unlink()
    assert f"{run / 'config.yaml'} is missing: restore it from a backup" in fails("inspect", run)
