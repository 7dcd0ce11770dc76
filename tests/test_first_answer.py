"""The first answer: what budgets cost as built, before any trial; where it is measured, kept, shown and exported."""

import json
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from local_launches import Silent, config_of
from local_pages import made_up
from local_runs import MODEL
from local_searches import COARSE, costs_of, errors_of, space_of
from local_vits import cut
from rich.console import Console

import run_search
from objectives.evaluator import Evaluator
from search import SearchConfig
from search.budgets.knapsack import Knapsack
from search.budgets.predicted import predicted
from search.driver.first_answer import STAGE, shares_between, wanted_shares
from search.driver.launch import launch
from search.driver.preview import preview
from search.report.html import assemble, page
from search.report.page_data import content
from search.run.first_answer import FirstAnswer, FirstPoint, bend_of, bend_text, read_first_answer, write_first_answer
from search.run.run import Run
from search.run.trial_table import trials_of
from search.terminal.first_tables import first_tables
from spaces.allocation import Allocation
from spaces.errors import RunError

DENSE = {"macs": 2_000_000.0, "params": 100_000.0}
IMAGES = ["--dataset", "digits", "--calibration-size", "64", "--workers", "0", "--device", "cpu"]


def point(share: float, changed: float | None, divergence: float | None = 0.1, cost: str = "macs") -> FirstPoint:
    return FirstPoint(
        cost=cost,
        share=share,
        allocation=Allocation({"blocks.0.mlp.hidden": 8}),
        costs={name: share * value for name, value in DENSE.items()},
        predicted=0.2,
        divergence=divergence,
        changed=changed,
    )


ANSWER = FirstAnswer(
    mark="m",
    images=512,
    dense=DENSE,
    points=(point(0.1, 0.9, 1.5), point(0.2, 0.1, 0.04), point(0.4, 0.05, 0.003), point(0.8, 0.0, 0.0001)),
)


# Which shares


def test_the_usual_shares_and_those_of_targets_are_among_a_dozen() -> None:
    shares = shares_between(0.03125, [0.6, 0.01])
    assert len(shares) == 12
    assert shares[0] == 0.0313, "no less than what is reached"
    assert {0.25, 0.35, 0.5, 0.6, 0.75, 0.9} <= set(shares)
    assert list(shares) == sorted(set(shares))
    assert max(high / low for low, high in zip(shares, (*shares[1:], 1.0), strict=True)) < 1.7


def test_where_little_can_be_saved_there_are_few() -> None:
    assert shares_between(0.95, [0.5]) == (0.95, 0.9747)


def test_every_cost_that_is_bounded_is_asked_about() -> None:
    reach = {"macs": (10.0, 100.0), "params": (5.0, 50.0), "latency": (1.0, 2.0)}
    wanted = wanted_shares([{"macs": 45.0}, {"macs": 30.0, "params": 20.0}], reach)
    assert list(wanted) == ["macs", "params"]
    assert {0.45, 0.3} <= set(wanted["macs"])
    assert 0.4 in wanted["params"]
    assert 0.45 not in wanted["params"]


# What is predicted


def test_the_allocation_of_least_error_on_every_share() -> None:
    """Alike branches whose errors are squares keep the same share; half of a branch is lost four times, squared."""
    space = space_of(sizes=COARSE)
    knapsack = Knapsack(space, costs_of(space), errors_of(space))
    half, whole = predicted(knapsack, {"macs": 4000}, (0.5, 1.0))
    assert set(half.allocation.values()) == {64}
    assert half.divergence == pytest.approx(4 * 0.5**2)
    assert whole.allocation == space.identity()
    assert whole.divergence == 0


def test_answers_that_change_are_counted_beside_the_dense_model(evaluator: Evaluator) -> None:
    assert evaluator.as_built(evaluator.dense.space.identity()).changed == 0
    allocation = cut(evaluator.dense.space, lambda site: site.choices[0])
    found = evaluator.as_built(allocation)
    images = torch.cat(evaluator.dense.screening.images)
    with torch.inference_mode():
        dense, built = (model.eval()(images).argmax(-1) for model in (evaluator.dense.model, evaluator.build(allocation)))
    assert found.changed == int((dense != built).sum()) / len(images) > 0
    assert found.divergence == evaluator.divergence(allocation) > 0


# Where it bends


def test_it_bends_at_the_point_farthest_below_the_line_between_the_ends() -> None:
    """In octaves from 0.1 the line falls from 0.9 by 0.3 an octave: 0.2 lies 0.5 below it, 0.4 lies 0.25 below."""
    assert bend_of(ANSWER.points) is ANSWER.points[1]
    assert bend_text(ANSWER.points) == "it bends at about 20 % of MACs"


@pytest.mark.parametrize("changed", [(0.9, 0.6, 0.3, 0.0), (0.9, 0.85, 0.6, 0.0), (0.0, 0.0, 0.0, 0.0), (0.9, None, None, 0.0)])
def test_an_even_or_slowing_pace_has_no_bend(changed: tuple[float | None, ...]) -> None:
    points = [point(share, part) for share, part in zip((0.1, 0.2, 0.4, 0.8), changed, strict=True)]
    assert bend_of(points) is None
    assert bend_text(points) == "it bends nowhere"


# Its file


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert read_first_answer(tmp_path) is None
    write_first_answer(tmp_path, ANSWER)
    assert read_first_answer(tmp_path) == ANSWER


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("share", 1.5),
        ("cost", "joules"),
        ("costs", {"macs": 1.0}),
        ("changed", "all"),
        ("allocation", [8]),
        ("divergence", "x"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path, place: str, value: object) -> None:
    write_first_answer(tmp_path, ANSWER)
    found = json.loads((tmp_path / "first.json").read_text())
    found["points"][1][place] = value
    (tmp_path / "first.json").write_text(json.dumps(found))
    with pytest.raises(RunError, match=r"first\.json cannot be read .*: remove it, and it is measured again$"):
        read_first_answer(tmp_path)


# How it is shown


def test_the_terminal_shows_a_row_a_point_from_the_largest() -> None:
    written = StringIO()
    for table in first_tables(ANSWER):
        Console(width=120, file=written).print(table)
    lines = written.getvalue().splitlines()
    assert lines[0].startswith("First answer, before any fine-tune: it bends at about 20 % of MACs")
    rows = [line for line in lines if "−" in line]
    assert [row.split(" %")[0].strip("│ ") for row in rows] == ["80.0", "40.0", "20.0", "10.0"]
    assert "10.0 %" in rows[2]
    assert "0.040" in rows[2]


@pytest.mark.parametrize("trials", [0, 12])
def test_the_page_shows_it_before_the_front_until_there_is_one(trials: int) -> None:
    summary, table = made_up(12)
    ended = trials_of(table, summary)[:trials]
    found = assemble([content(summary, ended, "", first=ANSWER)])
    shown, drawn = page(found), found.parts["first"]
    head, main, last = (shown.index(mark) for mark in ("<header", "<main", 'id="notes"'))
    first = shown.index("First answer: it bends at about 20 % of MACs")
    assert head < first < main if not trials else main < first < last
    assert drawn.count("<circle") == 8, "of the divergences, and of the answers that change"
    assert drawn.count('class="bend"') == 4, "a ring, its line, its text and a row"
    assert 'id="first">\n</div>' in page(assemble([content(summary, ended, "")]))


def test_what_is_larger_is_higher_and_further_right() -> None:
    summary, _ = made_up(12)
    dots = content(summary, [], "", first=ANSWER).first[0].dots
    assert np.all(np.diff([dot.x for dot in dots]) > 0)
    assert np.all(np.diff([dot.divergence for dot in dots]) > 0), "downwards in a drawing"
    assert np.all(np.diff([dot.changed for dot in dots]) > 0)


# In a run


def inspected(folder: Path, **options: object) -> tuple[SearchConfig, FirstAnswer, Silent]:
    told = Silent()
    config = config_of(folder, trials=3, baselines=["none"], steps=1, **options)
    return config, preview(config, told), told


def test_a_launch_goes_on_from_it_and_measures_nothing_again(tmp_path: Path) -> None:
    config, answer, told = inspected(tmp_path)
    run = Run(config.study.output)
    assert (len(run.ended), run.summary.dense.costs) == (0, answer.dense)
    assert told.stages[STAGE][-1] == (len(answer.points), len(answer.points))
    assert all(point.costs["macs"] <= point.share * answer.dense["macs"] + 1e-6 for point in answer.points)
    assert 0.6 in [point.share for point in answer.points], "the target"
    again = Silent()
    found = launch(config, again)
    assert STAGE not in again.stages
    assert len(found.ended) == 3
    assert read_first_answer(found.directory) == answer
    assert preview(config, Silent()) == answer
    assert len(Run(found.directory).ended) == 3, "what a launch has written stays"


def test_a_launch_may_have_other_options_until_there_is_a_trial(tmp_path: Path) -> None:
    """Another target, and a learning rate that it probes itself."""
    inspected(tmp_path, target=[])
    changed = config_of(tmp_path, trials=1, baselines=["none"], steps=1, target=["params=40%"], lr=None)
    told = Silent()
    assert read_first_answer(launch(changed, told).directory).costs == ("params",)  # type: ignore[union-attr]
    assert told.told.index(STAGE) < told.told.index("learning rate"), "the answer comes before any fine-tune"
    with pytest.raises(RunError, match="was searched with lr=None"):
        launch(config_of(tmp_path, trials=1, baselines=["none"], steps=1), Silent())


def test_inspect_front_prints_it_and_what_to_do_next(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    given = [MODEL[1], *MODEL[2:], "--checkpoint", str(checkpoint), *IMAGES, "--output", str(run), "--front"]
    assert run_search.main(["inspect", *given]) == 0
    printed = capsys.readouterr().out
    assert "First answer, before any fine-tune" in printed
    assert f"as built: python run_search.py export {run} --target flops=50% --predicted" in printed
    assert json.loads((run / "pareto.json").read_text())["states"] == {}
    assert "First answer" in (run / "report.html").read_text()


@pytest.mark.slow
def test_what_was_predicted_is_exported_without_a_trial_and_says_that_it_had_no_fine_tune(tmp_path: Path) -> None:
    config, answer, _ = inspected(tmp_path, lr=None)
    output = config.study.output
    assert run_search.main(["export", output, "--target", "flops=60%", "--predicted"]) == 0
    folder = Path(output) / "export" / "flops60-predicted"
    report, card = json.loads((folder / "report.json").read_text()), (folder / "README.md").read_text()
    (chosen,) = (point for point in answer.points if point.share == 0.6)
    assert json.loads((folder / "config.json").read_text())["allocation"] == dict(chosen.allocation)
    assert report["test_top1"]["as_built"] == report["test_top1"]["after_reload"]
    assert (report["finetune"], report["test_top1"]["dense_finetuned"]) == (None, None)
    assert 0 < report["origin"]["search_error"] < 1
    assert "(as built, no fine-tune)" in card
    assert "No fine-tune." in card
    written = (folder / "report.json").stat().st_mtime_ns
    assert run_search.main(["export", output, "--target", "flops=60%", "--predicted"]) == 0
    assert (folder / "report.json").stat().st_mtime_ns == written, "it was there already"
