"""A run goes on and is exported from any folder and after it was moved, and a launch binds no later one to what was its own."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from local_launches import OPTIONS, Silent, config_of
from local_runs import Fails

import run_search
from objectives.evaluator import Evaluator
from search import SearchConfig, export, launch
from search.paths import absolute, moved, placeless
from search.run.continuation import check_same_run, identity_of
from search.run.options import stored_config, stored_options, with_stored
from search.run.run import Run
from spaces.errors import RunError, explained, named
from spaces.files import replacing
from spaces.tensors import save_tensors

STEPS = {"steps": 1, "calibration_size": 64}


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of two trials whose paths were given relative, its dense model inside of it; the folder that it was started in."""
    folder = tmp_path / "there"
    folder.mkdir()
    config_of(folder)
    (folder / "run").mkdir()
    (folder / "dense.safetensors").rename(folder / "run" / "dense.safetensors")
    monkeypatch.chdir(folder)
    options = {**OPTIONS, **STEPS, "checkpoint": "run/dense.safetensors", "output": "run", "trials": 2, "max_hours": 5.0}
    launch(SearchConfig.from_flat(options), Silent())
    return folder


def test_relative_paths_lead_to_the_same_files_from_any_folder(
    started: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = yaml.safe_load((started / "run" / "config.yaml").read_text())
    assert stored["checkpoint"] == str(started / "run" / "dense.safetensors")
    assert stored["output"] == str(started / "run")
    monkeypatch.chdir(started.parent)
    assert run_search.main(["launch", "--output", "there/run", "--trials", "3"]) == 0
    assert "continuing after 2" in capsys.readouterr().out


def test_a_run_that_was_moved_goes_on_and_is_exported(
    started: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = started.parent / "else where" / "renamed"
    elsewhere.parent.mkdir()
    shutil.move(started / "run", elsewhere)
    monkeypatch.chdir(started.parent)
    assert run_search.main(["launch", "--output", "else where/renamed", "--trials", "3"]) == 0
    assert "continuing after 2" in capsys.readouterr().out
    assert yaml.safe_load((elsewhere / "config.yaml").read_text())["checkpoint"] == str(elsewhere / "dense.safetensors")
    exported: list[Evaluator] = []
    monkeypatch.setattr(
        "search.deploy.session.write_export", lambda folder, run, point, evaluator, *rest: exported.append(evaluator)
    )
    export(Run("else where/renamed"), trial=1)
    assert exported[0].dense.fingerprint == Run(elsewhere).summary.fingerprint
    assert not (started / "run").exists()


def test_a_copy_uses_its_own_files(started: Path) -> None:
    shutil.copytree(started / "run", started / "copy")
    config = stored_config(started / "copy")
    assert config.model.checkpoint == str(started / "copy" / "dense.safetensors")
    assert config.study.output == str(started / "copy")
    assert stored_config(started / "run").model.checkpoint == str(started / "run" / "dense.safetensors")


def test_paths_are_told_from_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "map.txt").touch()
    before: dict[str, Any] = {
        "model": "vit_tiny", "data_dir": "images", "class_map": "map.txt", "checkpoint": None, "output": "runs/x",
        "storage": "sqlite:///studies.db?timeout=5", "trials": 3,
    }  # fmt: skip
    assert absolute(before) == {
        "model": "vit_tiny", "data_dir": f"{tmp_path}/images", "class_map": f"{tmp_path}/map.txt", "checkpoint": None,
        "output": f"{tmp_path}/runs/x", "storage": f"sqlite:///{tmp_path}/studies.db?timeout=5", "trials": 3,
    }  # fmt: skip
    assert absolute(absolute(before)) == absolute(before)
    names = {
        "data_dir": "https://h/x.tar",
        "class_map": "in_the_root.txt",
        "model": "local-dir:m",
        "storage": "postgresql://h/d",
    }
    assert absolute(names) == {**names, "model": f"local-dir:{tmp_path}/m"}
    assert absolute({"storage": "sqlite:///:memory:", "output": ""}) == {"storage": "sqlite:///:memory:", "output": ""}
    inside = {"checkpoint": "/old/run/d.pth", "data_dir": "/old/runs", "storage": "sqlite:////old/run/s.db", "seed": 0}
    assert moved(inside, "/old/run", Path("/new")) == {
        "checkpoint": "/new/d.pth", "data_dir": "/old/runs", "storage": "sqlite:////new/s.db", "seed": 0,
    }  # fmt: skip
    assert placeless("class_map", "/a/map.txt") == "map.txt" and placeless("model", "hf-hub:a/b") == "hf-hub:a/b"


def test_a_class_map_may_move_and_not_change(tmp_path: Path) -> None:
    options = {"model": "vit_tiny_patch16_224", "output": str(tmp_path / "run")}
    for name, text in (("here", "cat\ndog\n"), ("there", "cat\ndog\n"), ("other", "dog\ncat\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "map.txt").write_text(text)
    here, there, other = (
        SearchConfig.from_flat({**options, "class_map": str(tmp_path / name / "map.txt")})
        for name in ("here", "there", "other")
    )
    (tmp_path / "run").mkdir()
    here.dump(tmp_path / "run" / "config.yaml")
    check_same_run(tmp_path / "run", there)
    with pytest.raises(RunError, match="class_map="):
        check_same_run(tmp_path / "run", other)
    assert identity_of(here, "f") == identity_of(there, "f")


def test_the_hours_of_one_launch_do_not_bind_the_next(started: Path) -> None:
    assert "max_hours" not in stored_options(started / "run")
    assert stored_config(started / "run").machines.max_hours is None
    text = (started / "run" / "config.yaml").read_text()
    (started / "run" / "config.yaml").write_text(f"{text}max_hours: 1.0\n")
    assert "max_hours" not in with_stored(started / "run", {})
    assert with_stored(started / "run", {"max_hours": 2.0})["max_hours"] == 2.0


@pytest.mark.parametrize("trials", [1, 2])
def test_fewer_trials_than_there_are_is_no_more_to_do(started: Path, trials: int, capsys: pytest.CaptureFixture[str]) -> None:
    before = (started / "run" / "trials.csv").read_bytes()
    assert run_search.main(["launch", "--output", str(started / "run"), "--trials", str(trials)]) == 0
    printed = capsys.readouterr().out
    assert f"2 trials are finished already, --trials {trials} asks for no more" in printed
    assert "-" + str(2 - trials) + " trials" not in printed and "forecast" not in printed
    assert (started / "run" / "trials.csv").read_bytes() == before


# What the system refuses


KINDS = {
    errno.ENOSPC: "make room", errno.EDQUOT: "share of that disk", errno.EACCES: "ask for the right", errno.EROFS: "be read",
    errno.EMFILE: "ulimit -n", errno.ENAMETOOLONG: "shorter name", errno.EIO: "from a backup",
}  # fmt: skip


@pytest.mark.parametrize("code", KINDS)
def test_what_the_system_refuses_is_told_with_the_path_and_what_to_do(
    tmp_path: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*arguments: Any) -> Any:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("portalocker.portalocker.LOCKER", refuse)
    line = fails("launch", "--model", OPTIONS["model"], "--dataset", "digits", "--output", tmp_path / "run")
    assert f"{tmp_path / 'run' / '.lock'}: {os.strerror(code)}: " in line and KINDS[code] in line and "Errno" not in line


def test_a_full_disk_without_a_name_gets_that_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as caught, replacing(tmp_path / "config.yaml"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert explained(caught.value).startswith(f"{tmp_path / 'config.yaml'}: No space left on device: make room there")
    assert list(tmp_path.iterdir()) == []
    assert named("/a/.run.7.partial/x.json") == "/a/run/x.json" and named("/a/.x.old.7.partial") == "/a/x"
    assert named("/a/.hidden/x.partial") == "/a/.hidden/x.partial"


def test_tensors_without_room_are_told_likewise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import SafetensorError

    def full(*arguments: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("spaces.tensors.save_file", full)
    with pytest.raises(OSError, match="No space left") as caught:
        save_tensors(tmp_path / "factors.safetensors", {})
    assert explained(caught.value).startswith(f"{tmp_path / 'factors.safetensors'}: No space left on device: make room")


def test_a_file_where_the_run_should_be_is_told(tmp_path: Path, fails: Fails) -> None:
    (tmp_path / "run").write_text("no folder")
    config_of(tmp_path)
    line = fails("launch", "--model", OPTIONS["model"], "--dataset", "digits", "--output", tmp_path / "run")
    assert str(tmp_path / "run") in line and "Errno" not in line and "--output" in line
    assert json.loads(json.dumps(line))
