"""The table of latencies: what it makes of times that are a known function of the sizes."""

import copy
import json
import random
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from local_damage import damaged_json
from local_latency import MERGING, FakeTimer, cut, places_of, seconds_of
from torch import nn

from objectives.cost.closed_form import cost_model
from objectives.latency import probe as latency_probe
from objectives.latency import timing as latency
from objectives.latency.config import LatencyConfig
from objectives.latency.grid import Grid
from objectives.latency.probe import clock_of, measure_latency
from objectives.latency.smoothing import monotone, smoothed
from objectives.latency.table import LatencyTable
from spaces.allocation import Allocation
from spaces.errors import ConfigError, RunError
from spaces.modules import ConstantBranch
from spaces.sites import Space
from spaces.vit import describe

Make = Callable[..., nn.Module]


def measured(model: nn.Module, space: Space) -> LatencyTable:
    return measure_latency(model, space, cost_model(model, space), torch.zeros(1, 3, 16, 16), LatencyConfig(), "mark")


def drawn(space: Space, seed: int) -> Allocation:
    """Random operators and sizes, of tokens too; some branches are left out."""
    rng = random.Random(seed)
    chosen = [site for rivals in space.branches.values() for site in rng.choice(rivals).sites]
    allocation = space.identity().replace({site.name: rng.choice(site.choices) for site in chosen})
    return allocation.replace(space.scheduled(drawn_schedule(space, rng)))


def drawn_schedule(space: Space, rng: random.Random) -> list[int]:
    """Patch tokens that leave the attention of every block: all in some of them."""
    found: list[int] = []
    for site in space.tokens:
        entering = found[-1] if found else site.dense
        least = -(-entering // 2) if site.choices[0] else entering
        leaving = rng.choice([entering, rng.randint(least, entering)])
        found.append(rng.choice([0, leaving]) if site.choices[0] == 0 else leaving)
    return found


@pytest.mark.parametrize(
    ("space", "options"),
    [
        ("contract", {}), ("heads", {}), ("hybrid", {}), ("full", {}), ("contract", {"depth": 5}),
        ("contract", {"global_pool": "avg", "class_token": False}), ("contract", {"name": "deit_tiny_distilled_patch16_224"}),
        ("contract", {"global_pool": "map", "class_token": False}),
    ],
)  # fmt: skip
def test_times_that_are_linear_in_the_sizes_are_reproduced(
    space: str, options: dict[str, Any], make_vit: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of whole models, though blocks were measured a kind at a time, and at some sizes and numbers of tokens only."""
    FakeTimer(monkeypatch)
    model = make_vit(num_heads=4, embed_dim=64, **options)
    offered = describe(model, space)
    table = measured(model, offered)
    assert table.dense == pytest.approx(seconds_of(model))
    assert table.error == pytest.approx(0, abs=1e-9)
    assert (table.tokens is None) == (options.get("global_pool") == "map")
    costs = cost_model(model, offered).with_cost("latency", table.dense, table)
    assert costs.costs(offered.identity()) == {**cost_model(model, offered).dense, "latency": table.dense}
    for seed in range(40):
        allocation = drawn(offered, seed)
        truth = seconds_of(cut(model, offered, allocation))
        assert table.latency(offered, allocation) == pytest.approx(truth, rel=1e-9)
        assert costs.count(allocation, "latency") == pytest.approx(truth, rel=1e-9)


def test_at_the_numbers_of_tokens_that_are_measured_nothing_is_guessed(make_vit: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where attention's time is no straight line over its tokens."""

    def squared(model: Any) -> float:
        places = zip(model.blocks, places_of(model), strict=True)
        seen = [entering for block, (entering, _) in places if not isinstance(block.attn, ConstantBranch)]
        return seconds_of(model) + 1e-3 * sum((count / 16) ** 2 for count in seen)

    FakeTimer(monkeypatch, squared)
    model = make_vit(depth=4, class_token=False, global_pool="avg")
    space = describe(model)
    table = measured(model, space)
    assert table.tokens is not None
    assert table.tokens.counts == (1, 4, 8, 12, 16)
    for schedule in ((8, 8, 8, 8), (16, 8, 4, 4), (12, 12, 12, 8)):
        whole = space.identity().replace(space.scheduled(schedule))
        assert table.whole(schedule) == pytest.approx(squared(cut(model, space, whole)), rel=0.03)
    assert table.tokens.merging * table.dense == pytest.approx(MERGING, rel=0.5)


def test_a_model_whose_tokens_cannot_be_merged_has_one_schedule(make_vit: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeTimer(monkeypatch)
    model = make_vit(global_pool="map", class_token=False)
    space = describe(model)
    table = measured(model, space)
    assert table.tokens is None
    assert table.whole(()) == table.dense
    (neurons, _) = space.branches["blocks.1.mlp"]
    allocation = space.identity().replace({"blocks.1.mlp.hidden": 40})
    assert table.dense - table.saved((), neurons, {"hidden": 40}) == pytest.approx(seconds_of(cut(model, space, allocation)))


def test_tokens_do_not_double_what_is_timed(make_vit: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    for options in ({"class_token": False, "global_pool": "map"}, {}):
        timer, model = FakeTimer(monkeypatch), make_vit(depth=4, **options)
        measured(model, describe(model))
        counts.append(len(timer.timed))
    assert counts[0] < counts[1] < 2 * counts[0]


def test_alike_blocks_are_measured_once(make_vit: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    for depth in (2, 4):
        timer, model = FakeTimer(monkeypatch), make_vit(depth=depth)
        table = measured(model, describe(model))
        assert [len(unit.branches) for unit, _ in table.grids] == [depth] * 4
        counts.append(len(timer.timed))
    assert counts[0] == counts[1]


def test_a_block_of_another_shape_is_measured_by_itself(make_vit: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeTimer(monkeypatch)
    model = make_vit(depth=3)
    wide = make_vit(depth=1, mlp_ratio=8.0)
    model.blocks[1].mlp = wide.blocks[0].mlp  # type: ignore[index,union-attr]
    space = describe(model)
    table = measured(model, space)
    branches = {unit.branches for unit, _ in table.grids if unit.operator == "neurons"}
    assert branches == {("blocks.0.mlp", "blocks.2.mlp"), ("blocks.1.mlp",)}
    allocation = space.identity().replace({"blocks.1.mlp.hidden": 40, "blocks.0.mlp.hidden": 88})
    assert table.latency(space, allocation) == pytest.approx(seconds_of(cut(model, space, allocation)))


def test_what_is_noisy_is_timed_more_often(make_vit: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """As often as it takes for a standard error of 1 %: 4 % in one pass are 1.4 % after the most passes, eight."""
    model, rng, counts, errors = make_vit(), random.Random(0), [], []
    space, allocation = describe(model), drawn(describe(model), 0)
    for spread in (0.0, 0.02, 0.04):
        timer = FakeTimer(monkeypatch, lambda found, spread=spread: seconds_of(found) * rng.gauss(1, spread))  # type: ignore[misc]
        table = measured(model, space)
        counts.append(len(timer.timed))
        errors.append(
            abs(
                table.latency(space, allocation) / table.dense * seconds_of(model) / seconds_of(cut(model, space, allocation))
                - 1
            )
        )
    assert counts[1] / counts[0] in (3.5, 4.0, 4.5, 5.0)  # sqrt 2 of it: the dense model's time is noisy too
    assert counts[2] == 4 * counts[0]
    assert errors[0] < 1e-9
    assert max(errors) < 0.03


def test_sums_are_fitted_to_whole_models(make_vit: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a model saves less than its branches alone, the table says less than their sum."""
    model = make_vit(global_pool="map", class_token=False)
    dense, space = seconds_of(model), describe(model)

    def law(found: nn.Module) -> float:
        saved = [dense - seconds_of(part) for part in _parts(model, found)]
        return dense - (0.7 if all(saved) else 1.0) * sum(saved)

    FakeTimer(monkeypatch, law)
    table = measured(model, space)
    allocation = space.identity().replace({"blocks.0.attn.qk": 4, "blocks.0.attn.vo": 4, "blocks.1.mlp.hidden": 32})
    sums, found = dense - seconds_of(cut(model, space, allocation)), table.dense - table.latency(space, allocation)
    assert 0.7 * sums < found < 0.85 * sums
    assert table.error < 0.06


def _parts(dense: nn.Module, found: nn.Module) -> Iterator[nn.Module]:
    """The model with its attention alone cut, and with its FFNs alone."""
    for other in ("mlp", "attn"):
        part = copy.deepcopy(found)
        for whole, small in zip(dense.blocks, part.blocks, strict=True):  # type: ignore[arg-type]
            setattr(small, other, getattr(whole, other))
        yield part


def test_between_measured_sizes_it_is_linear() -> None:
    grid = Grid({"qk": (8, 16, 32), "vo": (8, 24)}, np.array([[0.5, 0.3], [0.4, 0.2], [0.1, 0.0]]))
    assert grid.at({"qk": 16, "vo": 8}) == pytest.approx(0.4)
    assert grid.at({"qk": 24, "vo": 8}) == pytest.approx(0.25)
    assert grid.at({"qk": 12, "vo": 16}) == pytest.approx((0.5 + 0.3 + 0.4 + 0.2) / 4)
    assert grid.at({"qk": 32, "vo": 32}) == pytest.approx(-0.05), "a little beyond the last size"
    assert Grid({"hidden": (8,)}, np.array([0.5])).at({"hidden": 8}) == 0.5


def test_what_falls_stays_and_what_does_not_is_mended() -> None:
    falling = np.array([[0.5, 0.3], [0.4, 0.3], [0.4, -0.1]])
    assert (monotone(falling) == falling).all()
    assert monotone(np.array([0.5, 0.2, 0.4, 0.1])) == pytest.approx([0.5, 0.3, 0.3, 0.1])
    noisy = falling[:, :, None] + np.random.default_rng(0).normal(0, 0.2, (3, 2, 4))
    for axis in range(3):
        assert (np.diff(monotone(noisy), axis=axis) <= 1e-12).all()


def test_noise_is_taken_away_and_steps_stay() -> None:
    """Of a device that computes 128 columns at a time; the noise is known from timing twice."""
    axes = {"hidden": (8, 120, 224, 336, 440, 552, 656, 768)}
    steps = 0.4 - 0.4 * np.ceil(np.array(axes["hidden"]) / 128) / 6
    line = 0.4 - 0.4 * np.array(axes["hidden"]) / 768
    assert smoothed(axes, steps, 0.0) == pytest.approx(steps)
    left = []
    for seed in range(50):
        noise = np.random.default_rng(seed).normal(0, 0.03, 8)
        left.append(np.abs(smoothed(axes, line + noise, 0.03) - line).mean() / np.abs(noise).mean())
        assert (np.diff(smoothed(axes, line + noise, 0.03)) <= 1e-12).all()
    assert np.mean(left) < 0.75


def test_a_table_is_read_as_it_was_written(make_vit: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    FakeTimer(monkeypatch)
    model = make_vit()
    space, path = describe(model, "full"), tmp_path / "latency.json"
    table = measured(model, space)
    table.save(path)
    again = LatencyTable.load(path)
    assert (again.config, again.fingerprint, again.device) == (LatencyConfig(), "mark", table.device)
    assert (again.threads, again.clock, again.checks) == (1, "cpu", table.checks)
    for seed in range(10):
        assert again.latency(space, drawn(space, seed)) == table.latency(space, drawn(space, seed))
    content = json.loads(path.read_text())
    del content["grids"][0]["unit"]["parts"]
    path.write_text(json.dumps(content))
    with pytest.raises(RunError, match=r"latency\.json cannot be read"):
        LatencyTable.load(path)


def test_a_damaged_table_is_refused_in_one_line_or_read(
    make_vit: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    FakeTimer(monkeypatch)
    model = make_vit()
    space, path = describe(model, "full"), tmp_path / "latency.json"
    measured(model, space).save(path)
    before, refused = path.read_bytes(), list[str]()
    for seed in range(300):
        path.write_bytes(damaged_json(before, seed))
        try:
            table = LatencyTable.load(path, "mark", space)
        except RunError as error:
            refused.append(str(error))
            continue
        if table.fingerprint == "mark":
            assert np.isfinite([table.latency(space, drawn(space, choice)) for choice in range(3)]).all()
    assert len(refused) > 100
    assert all("latency.json cannot be read" in line and "\n" not in line for line in refused)


def test_the_real_timer_measures_models_that_run(make_vit: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is said of the times: a machine that does other things has any."""
    for module, name, value in ((latency, "_FEWEST", 1), (latency, "_SHORTEST", 1e-4), (latency_probe, "_PASSES", 2)):
        monkeypatch.setattr(module, name, value)
    model = make_vit()
    space = describe(model)
    config = LatencyConfig(latency_batch_size=2, latency_amp=True, latency_seconds=0.001)
    stages: list[tuple[str, int, int]] = []
    table = measure_latency(
        model, space, cost_model(model, space), torch.zeros(2, 3, 16, 16), config, "mark",
        lambda *stage: stages.append(stage),
    )  # fmt: skip
    assert table.dense > 0
    assert all(np.isfinite(grid.saved).all() for _, grids in table.grids for grid in grids.values())
    assert len(table.checks) == 16
    assert stages[0] == ("latency", 0, stages[-1][2]), "of two passes"
    assert stages[-1] == ("latency", stages[-1][2], stages[-1][2])
    assert all(before[1] < after[1] for before, after in pairwise(stages))


def test_other_processes_have_no_part_where_one_thread_works() -> None:
    cpu = torch.device("cpu")
    assert [clock_of(cpu, 1), clock_of(cpu, 2), clock_of(torch.device("meta"), 1)] == ["cpu", "wall", "wall"]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"latency_batch_size": 0}, "latency_batch_size must be at least 1"), ({"latency_seconds": 0}, "latency_seconds must be")],
)
def test_options_out_of_range(options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LatencyConfig(**options)  # type: ignore[arg-type]
