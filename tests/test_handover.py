"""An export in all formats from the command line: what it reports, its card, its documentation, and what makes it fail."""

import copy
import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from huggingface_hub import ModelCard, metadata_load
from local_runs import Fails
from safetensors.torch import load_file
from torch import nn

import run_search
from objectives.dense_model import load_dense
from objectives.deploy.formats import traced
from objectives.error import evaluate
from objectives.evaluator import Evaluator
from objectives.pictures.digits import Digits
from search.config import SearchConfig
from search.deploy.model_card import card
from search.run.run import open_run
from search.terminal.parser import build_parser
from spaces import load_compressed

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
FORMATS = ("safetensors", "onnx", "pt2")


@pytest.fixture(scope="module")
def run(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run, to export from."""
    return Path(shutil.copytree(finished, tmp_path_factory.mktemp("handover") / "run"))


@pytest.fixture(scope="module")
def folder(run: Path) -> Path:
    """The second trial of the run, which is cut."""
    assert run_search.main(["export", str(run), "--trial", "1", "--format", "onnx,pt2"]) == 0
    return run / "export" / "trial1"


@pytest.fixture(scope="module")
def report(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return content


def test_the_folder_is_complete(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert names == {"README.md", "config.json", "report.json", "model.safetensors", "model.onnx", "model.pt2"}
    assert json.loads((folder / "config.json").read_text())["label_names"] == [str(digit) for digit in range(10)]
    assert not [path for path in folder.parent.iterdir() if path != folder]


def test_the_report_sets_dense_and_compressed_side_by_side(folder: Path, report: dict[str, Any], run: Path) -> None:
    trials = open_run(run).trials.set_index("number")
    for figure in ("macs", "params"):
        assert (report[figure]["dense"], report[figure]["compressed"]) == tuple(int(trials[figure][row]) for row in (0, 1))
    macs, params = report["macs"], report["params"]
    assert macs["dense_fvcore"] == macs["dense_torch"] == macs["dense"]
    assert macs["fvcore_after_reload"] == macs["torch_after_reload"] == macs["compressed"] < macs["dense"]
    assert (params["after_reload"], params["dense_after_reload"]) == (params["compressed"], params["dense"])
    for name in ("dense", "compressed"):
        header = report["bytes"][name] - 4 * report["params"][name]
        assert 0 < header < 10_000, "four bytes a parameter, and the names of the tensors"
        assert all(entry[name] > 4 * report["params"][name] for entry in report["peak_memory"].values())
    assert report["peak_memory"]["32"]["dense"] > report["peak_memory"]["1"]["dense"]
    assert report["test_images"] == 360
    assert report["test_top1"]["after_reload"] == report["test_top1"]["finetuned"]


def test_the_report_has_every_format_as_it_was_reloaded(folder: Path, report: dict[str, Any]) -> None:
    assert tuple(report["formats"]) == FORMATS
    for name, entry in report["formats"].items():
        assert entry["bytes"] == (folder / entry["file"]).stat().st_size
        assert entry["max_output_difference"] <= entry["tolerance"] == 1e-4
        assert entry["top1"] == pytest.approx(report["test_top1"]["after_reload"], abs=1 / 360 + 1e-9), name
    for timings in report["latency"].values():
        assert set(timings) == {"dense", *FORMATS}
        assert timings["dense"]["of_dense"] == 1
        assert all(0 < timing["quartiles"][0] <= timing["seconds"] <= timing["quartiles"][1] for timing in timings.values())
    assert report["preprocessing"]["input_size"] == [1, 8, 8]
    assert report["finetune"]["seed"] == 0
    assert report["environment"]["packages"]["onnxruntime"]
    assert report["measured_on"]["threads"] >= 1


def test_the_dense_model_after_the_fine_tune_is_measured_once(report: dict[str, Any], run: Path, tmp_path: Path) -> None:
    """As whoever fine-tunes it with the run's seed finds it; the run keeps the figure, and no weights of it."""
    stored = open_run(run)
    dense = load_dense(stored.config.objective(run))
    Evaluator(dense).evaluate(dense.space.identity(), stored.config.study.seed, weights=tmp_path / "weights")
    model = copy.deepcopy(dense.model)
    model.load_state_dict(load_file(tmp_path / "weights"))
    top1 = 1 - evaluate(model, dense.data.evaluation("test")).error
    assert report["test_top1"]["dense_finetuned"] == pytest.approx(top1)
    assert json.loads((run / "reference.json").read_text())["test_top1"] == report["test_top1"]["dense_finetuned"]
    assert not (run / "front" / "0000.safetensors").exists()


def test_the_command_in_the_report_makes_the_same_export(report: dict[str, Any], run: Path) -> None:
    _, script, *words = report["command"].split()
    arguments = build_parser().parse_args(words)
    assert (script, arguments.command, arguments.run, arguments.trial) == ("run_search.py", "export", str(run), [1])
    assert (tuple(arguments.format), arguments.dtype) == (FORMATS, "fp32")


def test_the_card_is_what_the_hub_reads(folder: Path, report: dict[str, Any]) -> None:
    metadata = metadata_load(folder / "README.md")
    assert metadata is not None
    loaded = ModelCard.load(folder / "README.md")
    assert loaded.data.pipeline_tag == "image-classification"
    assert {"onnx", "pt2"} <= set(metadata["tags"])
    assert (metadata["license"], metadata.get("base_model")) == ("unknown", None), "weights of one's own"
    (result,) = loaded.data.eval_results or []
    assert (result.metric_type, result.dataset_type) == ("accuracy", "digits")
    assert result.metric_value == pytest.approx(report["test_top1"]["after_reload"], abs=1e-6)
    assert f"| {report['formats']['onnx']['top1']:.2%} |".replace("%", " %") in loaded.text
    assert "hf upload" in loaded.text and report["command"] in loaded.text


@pytest.mark.parametrize(
    ("name", "hub", "known", "further"),
    [
        ("deit_tiny_patch16_224", "timm/deit_tiny_patch16_224.fb_in1k", "apache-2.0", None),
        ("vit_small_patch16_dinov3", "timm/vit_small_patch16_dinov3.lvd1689m", "other", "dinov3-license"),
    ],
)
def test_the_card_of_timms_weights_names_them_and_their_licence(
    report: dict[str, Any], name: str, hub: str, known: str, further: str | None
) -> None:
    dense = timm.create_model(name, depth=1)
    options = {"model": name, "pretrained": True, "data_dir": 'images/a: "b" --- # c'}
    text = card(report, SearchConfig.from_flat(options), dense, "contract")
    metadata = yaml.safe_load(text.split("---\n")[1])
    assert (metadata["base_model"], metadata["license"], metadata.get("license_name")) == (hub, known, further)
    assert metadata["model-index"][0]["results"][0]["dataset"]["name"] == 'a: "b" --- # c, test split'
    assert f"The base model is {hub}, under the licence {further or known}." in text


def test_the_card_tells_times_in_seconds_and_what_their_ratio_is(report: dict[str, Any]) -> None:
    timing = {"seconds": 4.2149, "quartiles": [4.183, 4.3], "of_dense": 0.77}
    slow = {**report, "latency": {"1": dict.fromkeys(("dense", *FORMATS), timing)}, "command": "export `x`\n# y"}
    options = {"model": "vit_tiny_patch16_224", "dataset": "digits"}
    text = card(slow, SearchConfig.from_flat(options), nn.Identity(), "contract")
    assert "| latency, batch 1, PyTorch | 4.21 s (4.18–4.3) | 4.21 s (4.18–4.3) | ×0.77 |" in text
    assert "the median of the ratios of calls that were timed in turns, not the ratio of the two medians" in text
    assert r"Made by `export 'x'\n# y`." in text


def test_the_card_tells_tokens_and_dropped_branches(folder: Path, report: dict[str, Any]) -> None:
    """The export itself merges nothing: its last block computes the class token alone."""
    patches = report["tokens"]["entering"]
    assert report["tokens"]["leaving"] == [*[patches] * (len(report["tokens"]["leaving"]) - 1), 0]
    assert report["dropped"] == []
    exported = (folder / "README.md").read_text()
    assert "In the last block the class token, or others like it, are all that is computed" in exported
    assert "are merged" not in exported and "Left out, but for" not in exported and "agrees with it" not in exported
    formats = {**report["formats"], "onnx": {**report["formats"]["onnx"], "agreeing": 0.9375}}
    merged = {
        "tokens": {"entering": 16, "leaving": [12, 9, 9]},
        "dropped": ["blocks.0.attn", "blocks.2.mlp"],
        "formats": formats,
    }
    options = SearchConfig.from_flat({"model": "vit_tiny_patch16_224", "dataset": "digits"})
    text = card({**report, **merged}, options, nn.Identity(), "contract")
    assert (
        "Of 16 patch tokens, these leave the attention of blocks 0 to 2: 12, 9, 9. The most similar ones are merged.\n" in text
    )
    assert "Left out, but for their mean output, which stays as a bias: blocks.0.attn, blocks.2.mlp.\n" in text
    assert "model.onnx agrees with it to 0.0001 on 93.75 % of them: tokens that are equally similar" in text
    plain = card({**report, "tokens": None}, options, nn.Identity(), "contract")
    assert "patch tokens" not in plain


def test_every_snippet_of_the_documentation_runs_and_answers_as_predict_does(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder, tmp_path / "runs" / "demo" / "export" / "flops50")
    Digits("test")[3][0].resize((13, 11)).save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    commands = re.findall(r"^python run_search\.py (predict [^#\n]+)", text, re.MULTILINE)
    snippets = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert (len(commands), len(snippets)) == (2, 3)
    answers = []
    for command in commands:
        assert run_search.main(command.split()) == 0
        label, share = re.findall(r"\((\d)\) ([\d.]+)%", capsys.readouterr().out)[0]
        answers.append((int(label), float(share) / 100))
    for snippet in snippets:
        exec(compile(snippet, "docs/export.md", "exec"), {})
        label, share = capsys.readouterr().out.split()
        answers.append((int(label), float(share)))
    assert {label for label, _ in answers} == {answers[0][0]}
    assert all(share == pytest.approx(answers[-1][1], abs=0.0006) for _, share in answers)


def test_all_formats_predict_alike(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Digits("test")[5][0].save(tmp_path / "five.png")
    lines = set()
    for name in FORMATS:
        assert run_search.main(["predict", str(folder), str(tmp_path / "five.png"), "--format", name, "--top", "10"]) == 0
        lines.add(capsys.readouterr().out)
    assert len(lines) == 1


def test_a_file_that_gives_other_outputs_fails_the_export(
    run: Path, folder: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def of_another(model: nn.Module) -> Any:
        with torch.no_grad():
            other = copy.deepcopy(model)
            other.head.bias.add_(torch.arange(10) / 1000)  # type: ignore[union-attr, operator]
        return traced(other)

    monkeypatch.setattr("objectives.deploy.formats.traced", of_another)
    line = fails("export", run, "--trial", "1", "--format", "pt2", "--force")
    assert "the model reloaded from model.pt2 is not the one that was saved: its outputs on test images differ by" in line
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before, "the earlier export stays"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_full_disk_leaves_no_half_folder(run: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.export, "save", full)
    assert "No space left on device" in fails("export", run, "--trial", "0", "--format", "pt2")
    assert not (run / "export" / "trial0").exists()
    assert not list((run / "export").glob(".*"))


def test_what_cannot_be_written_is_told_before_anything_is_computed(
    run: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: Any) -> None:
        raise AssertionError("computed")

    monkeypatch.setattr(sys.modules["search.deploy.session"], "load_dense", never)
    assert "unknown format 'tensorrt'" in fails("export", run, "--trial", "1", "--format", "tensorrt")
    assert "with onnx" in fails("export", run, "--trial", "1", "--format", "onnx", "--dtype", "bf16")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "vit-compression-search[onnx]" in fails("export", run, "--trial", "1", "--format", "onnx")


@pytest.mark.long
def test_half_types_are_measured_as_they_are(run: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(run, tmp_path / "run"))
    assert run_search.main(["export", str(copied), "--trial", "1", "--dtype", "bf16"]) == 0
    folder = copied / "export" / "trial1"
    report = json.loads((folder / "report.json").read_text())
    assert next(load_compressed(folder).parameters()).dtype == torch.bfloat16
    assert report["dtype"] == "bf16"
    assert report["bytes"]["compressed"] < 0.75 * report["bytes"]["dense"]
    assert 0 <= report["test_top1"]["after_reload"] <= 1
    assert report["macs"]["fvcore_after_reload"] == report["macs"]["compressed"]
