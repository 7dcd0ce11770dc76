"""The naive engine that benchmarks/throughput.py compares with, its clock and its records, and the script as a whole."""

import copy
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from naive import MULTIPLE, build, count_macs, first, layers, prune_neurons, truncated, uniform
from ready_made import library, patched
from stages import IMPORTS, REST, Stages
from throughput_records import Key, Log, Record, read
from throughput_report import grouped, growth, reached
from torch import nn

ROOT = Path(__file__).parents[1]
WIDTH, DEPTH, TOKENS, CLASSES = 32, 2, 5, 10
KEY = Key(case="digits", part="search", engine="naive")


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": 4}
    model: nn.Module = timm.create_model("vit_tiny_patch16_224", num_classes=CLASSES, **sizes)
    return model.eval()


def test_macs_are_those_of_the_shapes(dense: nn.Module) -> None:
    patches = (TOKENS - 1) * 16 * WIDTH
    block = TOKENS * 12 * WIDTH * WIDTH + 2 * TOKENS * TOKENS * WIDTH
    assert count_macs(dense) == patches + DEPTH * block + WIDTH * CLASSES


def test_a_candidate_costs_what_its_sizes_say(dense: nn.Module) -> None:
    model = build(dense, {"blocks.0.attn.qkv": 0.34, "blocks.1.mlp": 0.5})
    rank = 8  # the multiple next to 0.34 x 96 x 32 / (96 + 32)
    saved = TOKENS * (96 * 32 - rank * (96 + 32)) + TOKENS * 2 * WIDTH * 64
    assert count_macs(dense) - count_macs(model) == saved


def test_whole_layers_leave_the_model_as_it_is(dense: nn.Module) -> None:
    images = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(build(dense, dict.fromkeys(layers(dense), 1.0))(images), dense(images))


def test_truncation_leaves_the_smallest_singular_values_out() -> None:
    linear = nn.Linear(32, 96)
    cut = truncated(linear, 16 * (96 + 32) / (96 * 32))
    assert isinstance(cut, nn.Sequential)
    with torch.no_grad():
        error = cut(torch.eye(32)) - linear(torch.eye(32))
        left_out = torch.linalg.svdvals(linear.weight)[16:]
    assert error.square().sum().item() == pytest.approx(left_out.square().sum().item(), rel=1e-4)


def test_the_neurons_of_largest_norms_stay() -> None:
    mlp = timm.layers.Mlp(4, 16).requires_grad_(False)
    strong = torch.arange(1, 16, 2)
    mlp.fc1.weight[strong] *= 100
    kept = mlp.fc1.weight[strong].clone()
    prune_neurons(mlp, 0.5)
    assert torch.equal(mlp.fc1.weight, kept) and mlp.fc2.weight.shape == (4, MULTIPLE)


def test_uniform_sizes_keep_the_budget_and_no_larger_ones_do(dense: nn.Module) -> None:
    sizes = uniform(dense, 0.6)
    (share,) = set(sizes.values())
    larger = dict.fromkeys(sizes, share + 0.01)
    assert count_macs(build(dense, sizes)) <= 0.6 * count_macs(dense) < count_macs(build(dense, larger))


def test_attention_of_any_width_computes_what_timm_computes(dense: nn.Module) -> None:
    images = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        assert torch.allclose(patched(copy.deepcopy(dense))(images), dense(images), atol=1e-5)


def test_without_torch_pruning_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(SystemExit, match="pip install torch-pruning"):
        library()


def test_batches_go_on_in_another_pass() -> None:
    batch = (torch.zeros(1), torch.zeros(1))
    assert len(list(first([batch] * 3, 7))) == 7


def test_every_second_belongs_to_the_innermost_stage() -> None:
    now = [2.0]
    stages = Stages(lambda: now[0])

    def values() -> Iterator[int]:
        now[0] += 5
        yield 1

    now[0] += 1
    with stages.stage("outer"):
        now[0] += 10
        for _ in stages.each("inner", values()):
            now[0] += 100
    assert stages.read() == {IMPORTS: 2, REST: 1, "outer": 110, "inner": 5}


def test_records_add_to_those_of_an_earlier_process(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    Log(path, KEY).add(0, 0.5, 0.1, {"steps": 3.0}, {"mlp": 0.5})
    with path.open("a", encoding="utf-8") as file:
        file.write('{"key": {"case": "dig')  # killed here
    Log(path, KEY).add(1, 0.4, 0.2, {"steps": 4.0})
    before, after = read(path)
    assert (before.sizes, after.number, after.seconds["steps"]) == ({"mlp": 0.5}, 1, 7.0)
    assert after.cpu > before.cpu and after.wall > before.wall


def test_when_ours_was_as_far_as_the_other() -> None:
    naive = [record(number, 0.5, error, 10.0 * number) for number, error in enumerate((0.5, 0.25, 0.3), start=1)]
    ours = [record(number, share, 0.2, 2.0 * number) for number, share in enumerate((1.0, 0.9, 0.5, 0.4), start=1)]
    assert growth(naive) == pytest.approx([0.25, 0.375, 0.375])
    assert "with trial 4, after 6.0 CPU s: 5.0 times sooner" in reached(ours, growth(naive)[-1], naive[-1], "CPU s")
    assert "has not reached it: 0.0800 after 2 trials" in reached(ours[:2], growth(naive)[-1], naive[-1], "CPU s")


def test_candidates_are_those_after_the_last_reference() -> None:
    key = replace(KEY, part="candidates", budget=60.0)
    found = [replace(record(number, share, 0.5, 1.0), key=key) for number, share in enumerate((1.0, 0.8, 0.6, 0.58))]
    assert [each.number for each in grouped(found)[key]] == [1, 2, 3]
    assert [each.number for each in grouped(found[2:])[key]] == [2, 3]


def record(number: int, share: float, error: float, cpu: float) -> Record:
    return Record(key=KEY, process=0, number=number, share=share, error=error, cpu=cpu, wall=cpu)


@pytest.mark.slow
@pytest.mark.long
def test_both_engines_are_measured_and_never_twice(tmp_path: Path) -> None:
    def run(part: str, *options: str) -> str:
        command = [
            sys.executable,
            "-W",
            "ignore",
            "benchmarks/throughput.py",
            part,
            "--tiny",
            "--output",
            str(tmp_path),
            *options,
        ]
        return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout

    for part in ("naive", "ours"):
        assert re.findall(rf"^{part} (\d)", run(part, "--trials", "3"), re.MULTILINE) == ["0", "1", "2"]
    assert re.findall(r"^naive (\d)", run("naive", "--trials", "4"), re.MULTILINE) == ["3"]
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    for engine in ("naive", "ours"):
        (*_, last) = [line for line in lines if line["key"]["engine"] == engine]
        assert {"batches", "teacher", "steps", "building", "evaluation"} <= last["seconds"].keys()
        assert all(last["seconds"][stage] > 0 for stage in ("steps", "evaluation"))
    assert re.search(r"The 0\.\d{4} of 'naive' after 4 trials", run("report"))
