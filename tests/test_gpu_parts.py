"""What `make gpu` runs, on the CPU at its small size: parts, resumption, what is skipped or stopped, and the page."""

import importlib.util
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from gpu import driver
from gpu.driver import Driver
from gpu.findings import FINDINGS, recipes, spearman
from gpu.page import render, write_pages
from gpu.parts import PARTS
from gpu.rows import DONE, END, SKIPPED, STOPPED, Row, append, latest, read, state
from gpu.setting import Setting
from gpu.unit import MODULES
from scipy.stats import spearmanr

ROOT = Path(__file__).parents[1]


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(device="cpu", tiny=True, folder=tmp_path / "gpu", data=tmp_path / "data", loaders=0)


def row(part: str, unit: str, what: str, **figures: object) -> Row:
    return Row(part=part, unit=unit, what=what, figures=figures, device="cuda", tiny=False, machine={"device": "NVIDIA H100"})


@pytest.mark.slow
@pytest.mark.long
def test_two_calls_share_the_work_and_the_page_has_both(tmp_path: Path) -> None:
    """The second call measures what the first one had no model for, and nothing again."""

    def call(*parts: str) -> tuple[str, list[Row]]:
        paths = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])
        command = [sys.executable, "-m", "gpu", "--device", "cpu", "--tiny", "--folder", "run", "--page", "pages"]
        ended = subprocess.run(
            [*command, "--part", *parts], cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths}, text=True, capture_output=True
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout, read(tmp_path / "run" / "rows.jsonl")

    said, rows = call("nccl", "memory", "train")
    assert "nccl, 2 epochs: skipped: the part train has not made its model" in said
    assert state(rows, "nccl", "2 epochs") == SKIPPED
    assert [state(rows, name, PARTS[name].units[0]) for name in ("memory", "train")] == [DONE, DONE]
    said, after = call("memory", "nccl")
    assert "memory: done before" in said
    assert after[: len(rows)] == rows
    assert {entry.part for entry in after[len(rows) :]} == {"nccl"}
    (page,) = (tmp_path / "pages").iterdir()
    assert page.name.startswith("gpu_cpu-tiny_")
    text = page.read_text()
    found = latest(after)
    alone, gloo = (found["nccl", "2 epochs"][what].figures["error after"] for what in ("alone", "through gloo"))
    assert alone == pytest.approx(gloo, abs=0.01)  # the group of one that goes the way of several trains the same model
    for expected in ("| nccl | 2 epochs | done |", "| train | 30 epochs | done |", "played: 2 parts", "| through gloo |"):
        assert expected in text


def test_a_unit_whose_time_is_up_is_ended_and_said(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PARTS, "memory", replace(PARTS["memory"], limit=0))
    pages: list[str] = []
    Driver(setting, 60.0, lambda: pages.append(render(read(setting.rows)))).run(["memory"])
    assert state(read(setting.rows), "memory", "ViT-S/16") == STOPPED
    assert "| memory | ViT-S/16 | stopped |" in pages[-1]


def test_a_call_that_is_ended_ends_its_processes_and_says_so(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gpu.driver.time.sleep", interrupted)
    called = Driver(setting, 60.0, lambda: None)
    with pytest.raises(KeyboardInterrupt):
        called.run(["memory", "train"])
    (end,) = read(setting.rows)
    assert (end.part, end.figures["state"], end.figures["reason"]) == ("memory", STOPPED, "the call was ended")


def test_a_process_that_dies_is_a_failure_of_its_unit_alone(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here it cannot even begin: its modules are nowhere."""
    monkeypatch.setattr(driver, "HERE", setting.folder / "nowhere")
    monkeypatch.setenv("PYTHONPATH", "")
    Driver(setting, 60.0, lambda: None).run(["memory", "train"])
    ends = {entry.part: entry.figures for entry in read(setting.rows) if entry.what == END}
    assert {part: figures["reason"] for part, figures in ends.items()} == dict.fromkeys(
        ("memory", "train"), "its process ended with status 1"
    )


def test_what_cannot_be_had_is_skipped_with_its_reason(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    large = replace(setting, tiny=False)
    assert PARTS["train"].lacks(large) == (
        f"Fashion-MNIST is not in {setting.data}: bring the four *-ubyte.gz of Debian's dataset-fashion-mnist there"
    )
    setting.data.mkdir()
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (setting.data / f"{name}-ubyte.gz").touch()
    assert PARTS["train"].lacks(large) is None
    assert PARTS["memory"].lacks(large) == "it needs a CUDA device, not cpu"
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert PARTS["workers"].lacks(large) == "ray is not installed: make wheels, and bring both folders of wheels/"


def test_what_does_not_fit_in_the_time_is_not_begun(setting: Setting) -> None:
    setting.folder.mkdir()
    (setting.folder / "dense.safetensors").touch()
    setting.data.mkdir()
    for number in range(4):
        (setting.data / f"{number}-ubyte").touch()
    Driver(replace(setting, tiny=False), 25.0, lambda: None).run(["train"])
    (end,) = read(setting.rows)
    assert end.figures["state"] == SKIPPED
    assert end.figures["reason"] in ("5 s were left, about 80 are needed", "4 s were left, about 80 are needed")


def test_a_torn_line_is_left_out_and_the_next_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    first, second = row("amp", "12 allocations", "60%", kept=0.6), row("amp", "12 allocations", "45%", kept=0.45)
    append(path, first)
    with path.open("a") as file:
        file.write('{"part": "amp", "uni')
    append(path, second)
    assert read(path) == [first, second]


def test_the_last_row_of_a_measurement_counts() -> None:
    rows = [row("train", "30 epochs", END, state=state_) for state_ in (SKIPPED, STOPPED, DONE)]
    assert [state(rows[:count], "train", "30 epochs") for count in range(4)] == [None, SKIPPED, STOPPED, DONE]


def test_every_part_has_a_module_and_findings_are_of_parts() -> None:
    for name in PARTS:
        assert importlib.util.find_spec(f"gpu.measures.{MODULES.get(name, name)}") is not None, name
    assert set(FINDINGS) <= set(PARTS)
    assert all(part.seconds < part.limit for part in PARTS.values())


def test_rank_correlation_is_scipys() -> None:
    rng = random.Random(0)
    for _ in range(20):
        first, second = ([rng.randrange(5) for _ in range(9)] for _ in range(2))  # with ties
        assert spearman(first, second) == pytest.approx(spearmanr(first, second).statistic)
    assert str(spearman([1, 1], [1, 2])) == "nan"


def test_the_claim_of_gohsp_is_judged_against_the_dense_model_as_given() -> None:
    """0.08 is no more than 0.08: no loss; the second seed loses. Relative errors are against the same fine-tune's: 0.05."""
    found = {
        ("dense, seed 0", "at the cut"): {"test split": 0.08},
        ("dense, seed 0", "after 20 epochs"): {"test split": 0.05},
        ("gohsp, seed 0", "after 20 epochs"): {"test split": 0.08},
        ("dense, seed 1", "at the cut"): {"test split": 0.08},
        ("dense, seed 1", "after 20 epochs"): {"test split": 0.05},
        ("gohsp, seed 1", "after 20 epochs"): {"test split": 0.09},
    }
    said = recipes(found)
    assert said[0].startswith("gohsp: ×1.700 ± 0.141 of")
    assert [line.rsplit(" ", 1)[1] for line in said[1:]] == ["holds.", "hold."]
    assert "does not hold" in said[2]


def test_the_page_is_named_for_the_device_and_tells_what_was_not_tried(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    append(path, row("train", "30 epochs", "errors", **{"test split": 0.0812}))
    append(path, row("train", "30 epochs", END, state=DONE, reason="", seconds=61.5))
    append(path, replace(row("workers", "1", END, state=SKIPPED, reason="no | ray", seconds=0.0), machine={}))
    (page,) = write_pages(path, tmp_path / "pages")
    text = page.read_text()
    assert page.name.startswith("gpu_h100_2")
    for expected in (
        "| train | 30 epochs | done | 61.5 |", "| workers | 1 | skipped | 0.0 | no / ray |", "| search | seed 2 | not tried |",
        "| 30 epochs | errors | 0.0812 |",
    ):  # fmt: skip
        assert expected in text
