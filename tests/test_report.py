"""The page and the picture of a search: self-contained, safe against markup, and true to the table."""

import json
import math
from base64 import b64encode
from dataclasses import dataclass, field, replace
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import plotly.graph_objects as go
import pytest
from local_pages import write_report
from local_tables import bests_of, budget_of, finished, space_with, summary_of
from matplotlib.image import imread
from plotly.offline import get_plotlyjs

from search.evidence.intervals import WIDTH, Interval
from search.evidence.posterior import Evidence
from search.report.front_image import write_pictures
from search.report.html import assemble
from search.report.html import page as html
from search.report.page_data import content
from search.run.finished_trial import FinishedTrial
from search.run.summary import Best, DenseFigures, RunSummary, front_point
from search.run.trial_table import trial_table
from spaces.allocation import Allocation
from spaces.files import write_text
from spaces.sites import Site

MARKUP = """</script><script>alert(1)</script><img src="http://evil/x" onerror='alert(2)'>{{ 7*7 }}&amp;"""
SITES = (
    Site(name="blocks.0.attn.qk", branch="blocks.0.attn", kind="query_key", choices=(16, 32, 64)),
    Site(name="blocks.0.mlp.hidden", branch="blocks.0.mlp", kind="ffn_hidden", choices=(64, 128, 256)),
    Site(name="blocks.10.attn.qk", branch="blocks.10.attn", kind="query_key", choices=(16, 32, 64)),
)
# number, state, label, error before, error, MACs, parameters, sizes. Dense: 1,000 MACs, 200 parameters.
TABLE = (
    (0, "COMPLETE", "dense", 0.22, 0.20, 1000, 200, (64, 256, 64)),
    (1, "COMPLETE", "uniform", 0.60, 0.50, 500, 100, (32, 128, 32)),
    (2, "COMPLETE", None, 0.40, 0.25, 400, 120, (16, 128, 32)),
    (3, "FAIL", None, None, None, None, None, (16, 64, 16)),
    (4, "COMPLETE", None, 0.70, 0.40, 300, 150, (16, 64, 32)),
)


DENSE = {"macs": 1000, "params": 200}


def trials_of(table: tuple[Any, ...] = TABLE, reason: str = "loss is NaN") -> list[FinishedTrial]:
    found = []
    for number, state, label, before, error, macs, params, sizes in table:
        figures = {"error": error, "error_before": before, "kl": 0.1, "kl_before": 0.2}
        costs = {} if macs is None else {"macs": macs, "params": params}
        why = {"FAIL": reason, "PRUNED": "dominated by trial 2"}.get(state)
        found.append(finished(number, costs, DENSE, state=state, label=label, reason=why, allocation=sized(sizes), **figures))
    return found


def sized(sizes: tuple[int, ...]) -> Allocation:
    return Allocation({site.name: size for site, size in zip(SITES, sizes, strict=True)})


def labelled(label: str) -> list[FinishedTrial]:
    """The trials, with another label in place of uniform."""
    return [replace(trial, label=label) if trial.label == "uniform" else trial for trial in trials_of()]


def summary(**changes: Any) -> RunSummary:
    trials = {trial.number: trial for trial in trials_of()}
    fields: dict[str, Any] = {
        "model": "vit_tiny",
        "targets": (budget_of(("macs", 450, "flops=45%")),),
        "hypervolume": 0.5,
        "states": {"COMPLETE": 4, "FAIL": 1},
        "bests": bests_of((2,)),
        "front": tuple(front_point(trials[number]) for number in (0, 4, 2)),
    }
    return summary_of(DENSE, space_with(SITES), **{**fields, **changes})


@dataclass
class Page(HTMLParser):
    """The page as a browser would split it: tags, the text that is shown, and the contents of its scripts."""

    text: str
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)
    scripts: list[str] = field(default_factory=list)
    styles: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.feed(self.text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        raw = {"script": self.scripts, "style": self.styles}.get(self.cdata_elem or "", self.shown)
        raw.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.shown).split())

    @property
    def data(self) -> dict[str, Any]:
        runs: list[dict[str, Any]] = json.loads(self.scripts[0], parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
        assert len(runs) == 1
        return runs[0]


@pytest.fixture
def page(tmp_path: Path) -> Any:
    def write(trials: list[FinishedTrial], found: RunSummary, run: str = "RUN") -> Page:
        write_report(tmp_path / "report.html", found, trials, run)
        assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
        return Page((tmp_path / "report.html").read_text(encoding="utf-8"))

    return write


def test_page_requests_nothing(page: Any) -> None:
    written = page(trials_of(), summary())
    for tag, attributes in written.tags:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            assert attributes.get(name, "data:,") == "data:,", (tag, attributes)
    assert not {"iframe", "object", "embed", "base", "form"} & {tag for tag, _ in written.tags}
    style = "".join(written.styles)
    assert "url(" not in style
    assert "@import" not in style
    script = written.scripts[2]
    assert not any(call in script for call in ("fetch(", "XMLHttpRequest", "import ", "import(", "http:", "https:"))
    assert get_plotlyjs().strip() == written.scripts[1].strip()


def test_policy_allows_only_the_two_scripts(page: Any) -> None:
    written = page(trials_of(), summary())
    policy = next(attributes["content"] for _, attributes in written.tags if "http-equiv" in attributes)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    digests = [b64encode(sha256(script.encode()).digest()).decode() for script in written.scripts[1:]]
    assert rules["script-src"] == f"'sha256-{digests[0]}' 'sha256-{digests[1]}'"


@pytest.mark.parametrize("done", [True, False])
def test_markup_is_shown_and_never_executed(page: Any, done: bool) -> None:
    labels = dict(enumerate(["dense", MARKUP, None, MARKUP, None]))
    trials = [replace(trial, label=labels[trial.number]) for trial in trials_of(reason=MARKUP) if done or trial.state == "FAIL"]
    clean = page(trials_of() if done else [replace(trials[0], label=None, reason="out of memory")], summary())
    target = budget_of(("macs", 450, MARKUP))
    written = page(trials, summary(model=MARKUP, space=MARKUP, targets=(target,), states={MARKUP: 1}), run=MARKUP)
    assert [tag for tag, _ in written.tags] == [tag for tag, _ in clean.tags]
    assert not any(name.startswith("on") for _, attributes in written.tags for name in attributes)
    assert written.words.count(" ".join(MARKUP.split())) >= 3
    if done:
        assert written.data["points"]["1"]["label"] == MARKUP
        assert "<" not in written.scripts[0]


def test_markup_in_a_drawn_label_is_escaped_for_plotly(page: Any) -> None:
    labels = page(labelled("<b>u"), summary()).data["figures"]["macs"]["labels"]
    assert labels["wide"]["text"] == labels["narrow"]["text"] == ["&lt;b&gt;u"]


def test_command_quotes_the_run(page: Any) -> None:
    assert page(trials_of(), summary(), run="runs/a b; rm x").data["command"] == (
        "python run_search.py export 'runs/a b; rm x' --trial "
    )


def test_sizes_are_those_of_the_table(page: Any) -> None:
    data = page(trials_of(), summary()).data
    assert [(site["name"], site["block"], site["dense"]) for site in data["sites"]] == [
        ("blocks.0.attn.qk", "0", 64),
        ("blocks.0.mlp.hidden", "0", 256),
        ("blocks.10.attn.qk", "10", 64),
    ]
    assert {number: shown["sizes"] for number, shown in data["points"].items()} == {
        "0": [64, 256, 64],
        "1": [32, 128, 32],
        "2": [16, 128, 32],
        "4": [16, 64, 32],
    }


def test_front_is_that_of_the_summary(page: Any) -> None:
    traces = page(trials_of(), summary()).data["figures"]["macs"]["traces"]
    for name in ("line", "front"):
        assert traces[name]["customdata"] == [4, 2, 0]
        assert traces[name]["x"] == pytest.approx([30, 40, 100])
        assert traces[name]["y"] == pytest.approx([40, 25, 20])
    assert traces["trials"]["customdata"] == [0, 1, 2, 4]
    assert traces["baselines"]["customdata"] == [1]
    assert (traces["dense"]["x"], traces["dense"]["y"]) == ([100], [20])


def test_line_over_the_other_cost_leaves_out_what_is_beaten_there(page: Any) -> None:
    traces = page(trials_of(), summary()).data["figures"]["params"]["traces"]
    assert traces["front"]["customdata"] == [2, 4, 0]
    assert traces["front"]["x"] == pytest.approx([60, 75, 100])
    assert traces["line"]["customdata"] == [2, 0]


def test_target_is_drawn_against_its_own_cost(page: Any) -> None:
    figures = page(trials_of(), summary()).data["figures"]
    assert [(limit["x"], limit["text"]) for limit in figures["macs"]["limits"]] == [(45, "flops=45%")]
    assert figures["params"]["limits"] == []


def test_target_out_of_reach_is_still_in_view(page: Any) -> None:
    found = summary(bests=(None,), targets=(budget_of(("macs", 50, "flops=5%")),))
    written = page(trials_of(), found)
    assert written.data["figures"]["macs"]["ranges"]["x"][0] < 5
    assert "No finished trial is under the target." in written.words


def test_plotly_accepts_the_coordinates(page: Any) -> None:
    figure = page(trials_of(), summary()).data["figures"]["macs"]
    for name, trace in figure["traces"].items():
        drawn = go.Scatter(trace | (figure["labels"]["wide"] if name == "baselines" else {}))
        assert len(drawn.x) == len(drawn.y) == len(drawn.customdata)


def test_header_states_both_sides_and_the_ratio(page: Any) -> None:
    words = page(trials_of(), summary()).words
    for figure in ("keeps 40.0 % (−60.0 %)", "keeps 60.0 % (−40.0 %)", "25.00 %, ×1.25 of dense", "trial 2"):
        assert figure in words
    assert "dense, given the same fine-tune 20.00 %" in words


def expecting() -> tuple[list[FinishedTrial], RunSummary]:
    """A point more error is expected of every trial than was measured, 2 points less to 3 more; 4 is tied with the best."""
    trials = [replace(trial, expected=None if trial.error is None else interval(trial.error + 0.01)) for trial in trials_of()]
    front = tuple(front_point(trials[number]) for number in (0, 4, 2))
    dense = DenseFigures(costs=DENSE, error=0.24, error_finetuned=0.20, images=200, expected=interval(0.20))
    return trials, summary(front=front, dense=dense, bests=(Best(number=2, tied=(4,), among=3),))


def interval(mean: float) -> Interval:
    return Interval(mean=mean, low=mean - 0.02, high=mean + 0.03)


def test_expected_errors_are_drawn_with_their_intervals_and_ties_with_rings(page: Any) -> None:
    figure = page(*expecting()).data["figures"]["macs"]
    traces = figure["traces"]
    assert traces["trials"]["y"] == pytest.approx([21, 51, 26, 41])
    assert (traces["line"]["y"], traces["dense"]["y"]) == (pytest.approx([41, 26, 21]), [20])
    assert (traces["intervals"]["customdata"], traces["tied"]["customdata"]) == ([0, 2, 4], [4])
    assert traces["intervals"]["error_y"]["array"] == pytest.approx([3, 3, 3])
    assert traces["intervals"]["error_y"]["arrayminus"] == pytest.approx([2, 2, 2])
    assert figure["errors"] == "expected top-1 error (%)"
    for name in ("intervals", "tied", "trials"):
        go.Scatter(traces[name])


def test_the_table_and_the_head_have_the_expected_error_and_the_verdict(page: Any) -> None:
    words = page(*expecting()).words
    assert "4 ≈ 30.0 % (−70.0 %) 75.0 % (−25.0 %) 70.00 % 40.00 % 41.0 % (39.0–44.0)" in words
    assert "2 best 40.0 % (−60.0 %) 60.0 % (−40.0 %) 40.00 % 25.00 % 26.0 % (24.0–29.0)" in words
    assert "dense, given the same fine-tune 20.0 % (18.0–23.0)" in words
    assert "On 200 search images 2 of 3 finished trials under flops=45% cannot be told apart" in words


def test_the_ratio_to_dense_has_the_interval_of_the_difference(tmp_path: Path) -> None:
    """Trial 2 has 0.05 ± 0.01 more error than the dense 0.20; nothing is known of trial 4 but what was measured."""
    trials, found = expecting()
    own = (0.01 / WIDTH) ** 2
    evidence = Evidence(numbers=(0, 2), means=np.array([0.2, 0.25]), covariance=np.array([[1.0, 1.0], [1.0, 1.0 + own]]))
    write_report(tmp_path / "report.html", found, trials, evidence=evidence)
    written = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert written.data["points"]["2"]["ratio"] == "×1.25 (1.20–1.30)"
    assert written.data["points"]["4"]["ratio"] == "×2.00"
    assert "26.0 % (24.0–29.0), ×1.25 (1.20–1.30) of dense" in written.words


def test_a_picture_has_intervals_and_ties(tmp_path: Path) -> None:
    trials, found = expecting()
    write_pictures([tmp_path / "pareto.svg"], found, trials)
    text = (tmp_path / "pareto.svg").read_text(encoding="utf-8")
    assert all(name in text for name in ("95 % intervals", "not told apart from the best", "expected top-1 error"))
    write_pictures([tmp_path / "pareto.svg"], summary(), trials_of())
    text = (tmp_path / "pareto.svg").read_text(encoding="utf-8")
    assert not any(name in text for name in ("95 % intervals", "not told apart", "expected top-1 error"))


def test_without_a_fine_tuned_dense_error_the_page_says_so(page: Any) -> None:
    written = page(trials_of(), summary(dense=DenseFigures(costs=DENSE, error=0.5)))
    assert "dense, not fine-tuned 50.00 %" in written.words
    assert written.data["points"]["2"]["ratio"] == "×0.50"


def test_dense_keeps_everything_and_no_error_has_no_ratio(page: Any) -> None:
    dense = DenseFigures(costs=DENSE, error=0.0, error_finetuned=0.0)
    shown = page(trials_of(), summary(dense=dense)).data["points"]["0"]
    assert shown["macs_kept"] == "100.0\u00a0% (±0.0\u00a0%)"
    assert shown["ratio"] == "–"


@pytest.mark.parametrize(("best", "chosen"), [(2, 2), (None, 4), (3, 4)])
def test_first_choice_is_the_best_else_the_cheapest_of_the_front(page: Any, best: int | None, chosen: int) -> None:
    assert page(trials_of(), summary(bests=bests_of((best,)))).data["chosen"] == chosen


def several(*best: int | None) -> RunSummary:
    """A run of two targets, the second of two bounds."""
    second = budget_of(("macs", 350, "flops=35%"), ("params", 160, "params=80%"))
    return summary(bests=bests_of(best), targets=(budget_of(("macs", 450, "flops=45%")), second))


def test_every_target_has_its_best(page: Any) -> None:
    written = page(trials_of(), several(2, 4))
    assert "best under flops=45% trial 2 MACs keeps 40.0 % (−60.0 %)" in written.words
    assert "best under flops=35% and params=80% trial 4 MACs keeps 30.0 % (−70.0 %)" in written.words
    assert written.words.count("dense, given the same fine-tune") == 1
    assert written.data["chosen"] == 2
    figures = written.data["figures"]
    assert [limit["text"] for limit in figures["macs"]["limits"]] == ["flops=45%", "flops=35%"]
    assert [limit["text"] for limit in figures["params"]["limits"]] == ["params=80%"]


def test_a_target_without_a_trial_hides_no_other(page: Any) -> None:
    written = page(trials_of(), several(None, 4))
    assert "flops=45% trial" not in written.words
    assert "best under flops=35% and params=80% trial 4" in written.words
    assert written.data["chosen"] == 4
    assert "No finished trial is under any target." in page(trials_of(), several(None, None)).words


def test_no_target_asks_for_a_point(page: Any) -> None:
    written = page(trials_of(), summary(bests=(), targets=()))
    assert "No target was set: pick a point of the front." in written.words
    assert written.data["chosen"] == 4


def test_table_lists_the_front_then_the_baselines(page: Any) -> None:
    written = page(trials_of(), summary())
    numbers = [attributes["data-number"] for _, attributes in written.tags if "data-number" in attributes]
    assert numbers == ["4", "2", "0", "1"]
    assert "uniform not on the front 50.0 % (−50.0 %) 50.0 % (−50.0 %) 60.00 % 50.00 %" in written.words
    assert "error as built (training images) error fine-tuned" in written.words


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_trials_without_figures_are_listed_and_not_drawn(page: Any, value: float | None) -> None:
    diverged = (5, "COMPLETE", None, None, value, 300, 100, (16, 64, 16))
    stopped = (6, "PRUNED", None, 0.8, None, 250, 80, (16, 64, 16))
    written = page(trials_of((*TABLE, diverged, stopped)), summary())
    assert list(written.data["points"]) == ["0", "1", "2", "4"]
    assert "2 trials without a result" in written.words
    assert "3 FAIL loss is NaN" in written.words
    assert "5 COMPLETE its error or a cost is not finite" in written.words
    assert "1 trial stopped early trial MACs kept reason 6 25.0 % (−75.0 %) dominated by trial 2" in written.words


def test_a_small_divergence_is_not_zero(page: Any) -> None:
    shown = page([replace(trial, kl=0.000123, kl_before=0.1) for trial in trials_of()], summary()).data["points"]["2"]
    assert (shown["kl_before"], shown["kl"]) == ("0.10", "0.00012")


def test_missing_side_figures_are_dashes(page: Any) -> None:
    trials = [replace(trial, error_before=None, kl=math.nan, kl_before=None, seed=None) for trial in trials_of()]
    shown = page(trials, summary()).data["points"]["2"]
    assert (shown["before"], shown["kl_before"], shown["kl"], shown["time"]) == ("–", "–", "–", "3 s, seed –")


@pytest.mark.parametrize("trials", [[], trials_of()[3:4]])
def test_no_finished_trial(page: Any, tmp_path: Path, trials: list[FinishedTrial]) -> None:
    found = summary(front=(), bests=(None,), hypervolume=0.0)
    written = page(trials, found)
    assert "No trial has finished yet" in written.words
    assert written.scripts == []
    write_pictures([tmp_path / "pareto.png"], found, trials)
    assert (tmp_path / "pareto.png").stat().st_size > 1000


def test_page_of_a_thousand_trials_is_below_10_mb(tmp_path: Path) -> None:
    sites = [
        Site(name=f"blocks.{block}.{name}", branch=f"blocks.{block}.{name[:4]}", kind="rank", choices=(64, 1024))
        for block in range(24)
        for name in ("attn.qk", "attn.vo", "attn.qkv", "attn.proj", "mlp.hidden", "mlp.fc1", "mlp.fc2")
    ]
    sizes = Allocation(dict.fromkeys((site.name for site in sites), 64))
    figures = {"error": 0.412345, "error_before": 0.512345, "allocation": sizes}
    trials = [finished(number, {"macs": 400 + number % 7, "params": 120}, DENSE, **figures) for number in range(1000)]
    found = summary_of(DENSE, space_with(sites))
    csv = trial_table(trials, found.costs, found.sites).to_csv(index=False)
    write_text(tmp_path / "report.html", html(assemble([content(found, trials, csv)])))
    assert (tmp_path / "report.html").stat().st_size < 10_000_000


def test_picture_has_ink_where_the_front_is(tmp_path: Path) -> None:
    write_pictures([tmp_path / "pareto.png"], summary(), trials_of())
    assert [path.name for path in tmp_path.iterdir()] == ["pareto.png"]
    pixels = imread(tmp_path / "pareto.png")[..., :3]
    assert pixels.shape == (720, 1152, 3)
    blue = np.abs(pixels - np.array([0x1D, 0x5F, 0xA8]) / 255).max(axis=-1) < 0.02
    brown = np.abs(pixels - np.array([0xB4, 0x54, 0x0A]) / 255).max(axis=-1) < 0.02
    rows, columns = np.nonzero(blue)
    assert blue.sum() > 500
    assert brown.sum() > 20
    assert columns.max() - columns.min() > 600
    assert rows.max() - rows.min() > 200


def test_picture_takes_any_text(tmp_path: Path) -> None:
    found = summary(model=r"$\frac{$", targets=(budget_of(("macs", 450, r"$\x{")),))
    write_pictures([tmp_path / "pareto.png", tmp_path / "pareto.svg"], found, labelled(r"$\frac{<b>$"))
    assert ElementTree.parse(tmp_path / "pareto.svg").getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert imread(tmp_path / "pareto.png").std() > 0.05
