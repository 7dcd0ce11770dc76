"""A cost that is one more entry of `COSTS` is bounded, searched, shown and exported, with no other change."""

import json
import re
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from local_launches import OPTIONS, config_of
from local_searches import costs_of, errors_of, score_of, space_of
from local_tables import summary_of
from rich.console import Console

import run_search
from objectives.cost.closed_form import cost_model
from objectives.cost.spec import COSTS, CostSpec
from objectives.units import format_size
from search import launch
from search.budgets.knapsack import Knapsack
from search.budgets.reach import check_jointly, reach_of, recipe_limits
from search.budgets.targets import Budget, parse_target
from search.config import StudyConfig
from search.deploy.points import pick_target
from search.report.html import assemble, page
from search.report.page_data import content_of
from search.run.edge import lower_edges
from search.run.finished_trial import finished_trials
from search.run.run import Run
from search.run.summary import summarise
from search.run.tables import RunTables
from search.study.journal import Journal, thaw
from search.terminal.display import Display
from search.terminal.tables import front_table
from search.trial import Proposal, Trial
from spaces.allocation import Allocation
from spaces.errors import TargetError
from spaces.models.create import ModelConfig, create_model
from spaces.operators.base import Sizes
from spaces.sites import Operator
from spaces.vit import describe

SIZE = CostSpec(
    name="bytes",
    flag="size",
    word="model size",
    heading="weights in float32",
    example="size=20MB",
    units={"b": 1.0, "kb": 1e3, "mb": 1e6},
    format=format_size,
    is_whole=True,
    count=lambda macs, params: 4 * params,
)
SPACE = space_of()
DENSE = {"macs": 4000, "params": 4000, "bytes": 16_000}
REACH = {"macs": (500.0, 4000.0), "params": (500.0, 4000.0), "bytes": (2000.0, 16_000.0)}


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COSTS, SIZE.name, SIZE)


@pytest.mark.parametrize(("text", "limit"), [("size=50%", 8000), ("size=9kB", 9000), ("Size = 0.01 MB", 10_000)])
def test_its_targets_are_understood(text: str, limit: float) -> None:
    assert parse_target(text).resolve(REACH).limits == {"bytes": limit}
    with pytest.raises(TargetError, match=r"'size=1kB' is 1 kB, but this space reaches from 2 kB \(12\.5%\) to 16 kB"):
        parse_target("size=1kB").resolve(REACH)
    with pytest.raises(TargetError, match=r"params=11M, latency=8ms or size=20MB$"):
        parse_target("size=9ms")


def test_options_know_it() -> None:
    study = StudyConfig(objectives=("error", "size"), target=("size=50%,flops=60%",), recipe="svd-energy")
    assert (study.minimised, study.targets[0].costs, study.times) == (("bytes",), ("bytes", "macs"), False)
    with pytest.raises(TargetError, match="keeps bounds on MACs or parameters or model size, not on latency"):
        StudyConfig(target=("latency=8ms",), recipe="svd-energy")


def test_it_is_counted_and_the_knapsack_bounds_it() -> None:
    model = create_model(ModelConfig(model=OPTIONS["model"], num_classes=10, model_kwargs=OPTIONS["model_kwargs"]))
    space = describe(model, "contract", 1)
    costs = cost_model(model, space)
    assert costs.dense["bytes"] == 4 * sum(parameter.numel() for parameter in model.parameters())
    budget = parse_target("size=60%").resolve(reach_of(costs, space))
    check_jointly([budget], costs, space)
    assert recipe_limits([budget], costs) == [budget.limits]
    found = costs.costs(Knapsack(space, costs, errors_of(space)).allocate(budget.limits))
    assert found["bytes"] == 4 * found["params"]
    assert 0.98 < found["bytes"] / budget.limits["bytes"] <= 1


def trial(number: int, width: int) -> Trial:
    allocation = Allocation(dict.fromkeys((site.name for site in SPACE.sites), width))
    score = score_of(allocation)
    cost = round(1000 * width / 128) * 4
    score = replace(score, costs={"macs": cost, "params": cost, "bytes": 4 * cost})
    label = "dense" if number == 0 else None
    proposal = Proposal(number=number, allocation=allocation, space="test", seed=0, label=label)
    return Trial(proposal=proposal, score=score, reason=None, ended="2026-11-24T01:00:00+00:00")


TRIALS = [trial(0, 128), trial(1, 64), trial(2, 32)]


def made(folder: Path, budget: Budget) -> Run:
    facts = summary_of(DENSE, SPACE, reach=REACH, objectives=("error", "bytes"), targets=(budget,))
    trials = finished_trials(TRIALS, DENSE)
    RunTables(folder).write(trials, summarise(facts, trials))
    return Run(folder)


def test_tables_hold_it(tmp_path: Path) -> None:
    run = made(tmp_path, parse_target("size=50%").resolve(REACH))
    assert list(run.trials["bytes"]) == [16_000, 8000, 4000]
    assert list(run.trials["bytes_kept"]) == [1.0, 0.5, 0.25]
    assert (run.summary.objectives, run.summary.best) == (("error", "bytes"), (1,))
    assert run.summary.front[0].costs["bytes"] == 4000, "in the order of the cost"
    point = pick_target(run, "size=30%")
    assert (point.name, point.number, point.costs["bytes"]) == ("size30", 2, 4000)
    assert point.load == pytest.approx(4000 / 4800)


def test_a_smaller_target_is_proposed_by_its_flag(tmp_path: Path) -> None:
    run = made(tmp_path, parse_target("size=60%").resolve(REACH))
    ((number, sentence),) = lower_edges(run.summary, band=0.85)
    assert number == 1
    assert sentence.endswith("try --target size=51% with another --output")


def test_a_journal_keeps_it(tmp_path: Path) -> None:
    Journal(tmp_path, 2).append(TRIALS[1], [0.1, 8000.0], {}, {})
    (frozen,) = Journal(tmp_path, 2).frozen()
    assert thaw(frozen).score == TRIALS[1].score


def test_the_terminal_and_the_page_show_it(tmp_path: Path) -> None:
    run, shown = made(tmp_path, parse_target("size=50%").resolve(REACH)), StringIO()
    Console(file=shown, width=250).print(front_table(run.summary))
    heads = [[cell.strip() for cell in line.split("┃")] for line in shown.getvalue().splitlines() if "┃" in line]
    assert ("", "model size") in zip(*heads, strict=True) and ("keeps of", "model size") in zip(*heads, strict=True)
    assert re.search(r"│ +8 kB │ +50\.0 % \(−50\.0 %\) │", shown.getvalue())
    found = content_of(run)
    data = found.data.to_json("one")
    assert data["costs"]["bytes"] == "model size"
    assert data["figures"]["bytes"]["title"] == "model size kept (% of the dense 16 kB)"
    assert data["points"][1]["bytes"] == "8\u00a0kB"
    assert found.bests[0].keeps["model size"].startswith("keeps 50.0\u00a0%")
    html = page(assemble([found]))
    assert '<input type="radio" name="cost" value="bytes" > model size' in html
    assert '<th scope="col">model size kept</th>' in html


@pytest.mark.slow
def test_a_search_keeps_a_bound_on_it_and_an_export_tells_it(tmp_path: Path) -> None:
    text = StringIO()
    with Display(Console(file=text, width=250)) as display:
        run = launch(config_of(tmp_path, target=["size=70%"], trials=4), display)
    assert (run.trials["bytes"] == 4 * run.trials["params"]).all()
    assert 0.6 < run.trials["bytes_kept"][2:].max() <= 0.7  # after the dense model, and that without what no output reads
    assert f", {format_size(run.summary.dense.costs['bytes'])}, error" in text.getvalue()
    assert run_search.main(["export", str(run.directory)]) == 0
    folder = run.directory / "export" / "size70"
    costs = json.loads((folder / "report.json").read_text())["costs"]
    assert costs["bytes"]["compressed"] == 4 * costs["params"]["compressed"]
    row = "| weights in float32 | {} | {} |".format(*(format_size(costs["bytes"][name]) for name in ("dense", "compressed")))
    assert row in (folder / "README.md").read_text()


class Energy:
    """8 J, of which every branch saves up to 2."""

    def whole(self, schedule: tuple[int, ...]) -> float:
        return 8.0

    def saved(self, schedule: tuple[int, ...], operator: Operator, sizes: Sizes) -> float:
        return 2 * (1 - operator.sites[0].share(sizes["hidden"]))


def test_a_measured_cost_is_bounded_where_its_figures_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    energy = replace(SIZE, name="energy", flag="energy", word="energy", units={"j": 1.0}, format="{:.3g} J".format, count=None)
    monkeypatch.setitem(COSTS, energy.name, energy)
    target = parse_target("energy=60%")
    with pytest.raises(TargetError, match="this run measured no energy"):
        target.resolve(REACH)
    counted = costs_of(SPACE)
    costs = counted.with_cost("energy", 8.0, Energy())
    limits = target.resolve(reach_of(costs, SPACE)).limits
    assert limits == {"energy": pytest.approx(4.8)}
    found = costs.costs(Knapsack(SPACE, costs, errors_of(SPACE)).allocate(limits))
    assert 4.7 < found["energy"] <= 4.8
