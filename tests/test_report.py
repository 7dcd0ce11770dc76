"""The page and the picture of a search: self-contained, safe against markup, and true to the table."""

import json
from base64 import b64encode
from dataclasses import dataclass, field
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from local_pages import write_report
from matplotlib.image import imread
from plotly.offline import get_plotlyjs

from search.report.front_image import write_pictures
from spaces.sites import Site

NAN = float("nan")
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
    (2, "COMPLETE", NAN, 0.40, 0.25, 400, 120, (16, 128, 32)),
    (3, "FAIL", NAN, NAN, NAN, NAN, NAN, (16, 64, 16)),
    (4, "COMPLETE", NAN, 0.70, 0.40, 300, 150, (16, 64, 32)),
)


def frame(table: tuple[Any, ...] = TABLE, reason: Any = "loss is NaN") -> pd.DataFrame:
    rows = []
    for number, state, label, before, error, macs, params, sizes in table:
        figures = {"error": error, "error_before": before, "kl": 0.1, "kl_before": 0.2, "macs": macs, "params": params}
        shares = {
            "macs_kept": macs / 1000,
            "params_kept": params / 200,
            "seconds": 3.0,
            "seed": 0,
            "ended": "2026-11-24T01:00:00+00:00",
        }
        why = {"FAIL": reason, "PRUNED": "dominated by trial 2"}
        named = {"number": number, "state": state, "label": label, "space": "contract", "reason": why.get(state, NAN)}
        named |= {"rung": NAN, "rung_error": NAN}
        rows.append(named | figures | shares | {site.name: size for site, size in zip(SITES, sizes, strict=True)})
    return pd.DataFrame(rows)


def point(number: int) -> dict[str, Any]:
    _, _, label, _, error, macs, params, sizes = TABLE[number]
    allocation = {site.name: size for site, size in zip(SITES, sizes, strict=True)}
    return {
        "number": number,
        "label": label if isinstance(label, str) else None,
        "error": error,
        "macs": macs,
        "params": params,
        "allocation": allocation,
    }


def summary(**changes: Any) -> dict[str, Any]:
    return {
        "model": "vit_tiny",
        "space": "contract",
        "spaces": {"contract": [{"name": site.name} for site in SITES]},
        "objectives": ["error", "macs"],
        "dense": {"macs": 1000, "params": 200, "error": 0.24, "error_finetuned": 0.20},
        "targets": [{"cost": "macs", "limit": 450, "text": "flops=45%", "group": 0}],
        "hypervolume": 0.5,
        "states": {"COMPLETE": 4, "FAIL": 1},
        "best": [2],
        "front": [point(0), point(4), point(2)],
    } | changes


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
    def write(trials: pd.DataFrame, found: dict[str, Any], run: str = "RUN") -> Page:
        write_report(tmp_path / "report.html", found, trials, SITES, run)
        assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
        return Page((tmp_path / "report.html").read_text(encoding="utf-8"))

    return write


def test_page_requests_nothing(page: Any) -> None:
    written = page(frame(), summary())
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
    written = page(frame(), summary())
    policy = next(attributes["content"] for _, attributes in written.tags if "http-equiv" in attributes)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    digests = [b64encode(sha256(script.encode()).digest()).decode() for script in written.scripts[1:]]
    assert rules["script-src"] == f"'sha256-{digests[0]}' 'sha256-{digests[1]}'"


@pytest.mark.parametrize("finished", [True, False])
def test_markup_is_shown_and_never_executed(page: Any, finished: bool) -> None:
    trials = frame(reason=MARKUP)
    trials["label"] = pd.Series(["dense", MARKUP, NAN, MARKUP, NAN], dtype=object)
    trials = trials if finished else trials[trials["state"] == "FAIL"]
    clean = page(frame() if finished else trials.assign(label=NAN, reason="out of memory"), summary())
    target = {"cost": "macs", "limit": 450, "text": MARKUP, "group": 0}
    written = page(trials, summary(model=MARKUP, space=MARKUP, targets=[target], states={MARKUP: 1}), run=MARKUP)
    assert [tag for tag, _ in written.tags] == [tag for tag, _ in clean.tags]
    assert not any(name.startswith("on") for _, attributes in written.tags for name in attributes)
    assert written.words.count(" ".join(MARKUP.split())) >= 3
    if finished:
        assert written.data["points"]["1"]["label"] == MARKUP
        assert "<" not in written.scripts[0]


def test_markup_in_a_drawn_label_is_escaped_for_plotly(page: Any) -> None:
    labels = page(frame().replace({"label": {"uniform": "<b>u"}}), summary()).data["figures"]["macs"]["labels"]
    assert labels["wide"]["text"] == labels["narrow"]["text"] == ["&lt;b&gt;u"]


def test_command_quotes_the_run(page: Any) -> None:
    assert page(frame(), summary(), run="runs/a b; rm x").data["command"] == (
        "python run_search.py export 'runs/a b; rm x' --trial "
    )


def test_sizes_are_those_of_the_table(page: Any) -> None:
    data = page(frame(), summary()).data
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
    traces = page(frame(), summary()).data["figures"]["macs"]["traces"]
    for name in ("line", "front"):
        assert traces[name]["customdata"] == [4, 2, 0]
        assert traces[name]["x"] == pytest.approx([30, 40, 100])
        assert traces[name]["y"] == pytest.approx([40, 25, 20])
    assert traces["trials"]["customdata"] == [0, 1, 2, 4]
    assert traces["baselines"]["customdata"] == [1]
    assert (traces["dense"]["x"], traces["dense"]["y"]) == ([100], [20])


def test_line_over_the_other_cost_leaves_out_what_is_beaten_there(page: Any) -> None:
    traces = page(frame(), summary()).data["figures"]["params"]["traces"]
    assert traces["front"]["customdata"] == [2, 4, 0]
    assert traces["front"]["x"] == pytest.approx([60, 75, 100])
    assert traces["line"]["customdata"] == [2, 0]


def test_target_is_drawn_against_its_own_cost(page: Any) -> None:
    figures = page(frame(), summary()).data["figures"]
    assert [(limit["x"], limit["text"]) for limit in figures["macs"]["limits"]] == [(45, "flops=45%")]
    assert figures["params"]["limits"] == []


def test_target_out_of_reach_is_still_in_view(page: Any) -> None:
    found = summary(best=[None], targets=[{"cost": "macs", "limit": 50, "text": "flops=5%", "group": 0}])
    written = page(frame(), found)
    assert written.data["figures"]["macs"]["ranges"]["x"][0] < 5
    assert "No finished trial is under the target." in written.words


def test_plotly_accepts_the_coordinates(page: Any) -> None:
    figure = page(frame(), summary()).data["figures"]["macs"]
    for name, trace in figure["traces"].items():
        drawn = go.Scatter(trace | (figure["labels"]["wide"] if name == "baselines" else {}))
        assert len(drawn.x) == len(drawn.y) == len(drawn.customdata)


def test_header_states_both_sides_and_the_ratio(page: Any) -> None:
    words = page(frame(), summary()).words
    for figure in ("keeps 40.0 % (−60.0 %)", "keeps 60.0 % (−40.0 %)", "25.00 %, ×1.25 of dense", "trial 2"):
        assert figure in words
    assert "dense, given the same fine-tune 20.00 %" in words


def test_without_a_fine_tuned_dense_error_the_page_says_so(page: Any) -> None:
    written = page(frame(), summary(dense={"macs": 1000, "params": 200, "error": 0.5, "error_finetuned": None}))
    assert "dense, not fine-tuned 50.00 %" in written.words
    assert written.data["points"]["2"]["ratio"] == "×0.50"


def test_dense_keeps_everything_and_no_error_has_no_ratio(page: Any) -> None:
    dense = {"macs": 1000, "params": 200, "error": 0.0, "error_finetuned": 0.0}
    shown = page(frame(), summary(dense=dense)).data["points"]["0"]
    assert shown["macs_kept"] == "100.0\u00a0% (±0.0\u00a0%)"
    assert shown["ratio"] == "–"


@pytest.mark.parametrize(("best", "chosen"), [(2, 2), (None, 4), (3, 4)])
def test_first_choice_is_the_best_else_the_cheapest_of_the_front(page: Any, best: int | None, chosen: int) -> None:
    assert page(frame(), summary(best=[best])).data["chosen"] == chosen


def several(*best: int | None) -> dict[str, Any]:
    """A run of two targets, the second of two bounds."""
    bounds = (("macs", 450, "flops=45%", 0), ("macs", 350, "flops=35%", 1), ("params", 160, "params=80%", 1))
    targets = [dict(zip(("cost", "limit", "text", "group"), bound, strict=True)) for bound in bounds]
    return summary(best=list(best), targets=targets)


def test_every_target_has_its_best(page: Any) -> None:
    written = page(frame(), several(2, 4))
    assert "best under flops=45% trial 2 MACs keeps 40.0 % (−60.0 %)" in written.words
    assert "best under flops=35% and params=80% trial 4 MACs keeps 30.0 % (−70.0 %)" in written.words
    assert written.words.count("dense, given the same fine-tune") == 1
    assert written.data["chosen"] == 2
    figures = written.data["figures"]
    assert [limit["text"] for limit in figures["macs"]["limits"]] == ["flops=45%", "flops=35%"]
    assert [limit["text"] for limit in figures["params"]["limits"]] == ["params=80%"]


def test_a_target_without_a_trial_hides_no_other(page: Any) -> None:
    written = page(frame(), several(None, 4))
    assert "flops=45% trial" not in written.words
    assert "best under flops=35% and params=80% trial 4" in written.words
    assert written.data["chosen"] == 4
    assert "No finished trial is under any target." in page(frame(), several(None, None)).words


def test_no_target_asks_for_a_point(page: Any) -> None:
    written = page(frame(), summary(best=[], targets=[]))
    assert "No target was set: pick a point of the front." in written.words
    assert written.data["chosen"] == 4


def test_table_lists_the_front_then_the_baselines(page: Any) -> None:
    written = page(frame(), summary())
    numbers = [attributes["data-number"] for _, attributes in written.tags if "data-number" in attributes]
    assert numbers == ["4", "2", "0", "1"]
    assert "uniform not on the front 50.0 % (−50.0 %) 50.0 % (−50.0 %) 60.00 % → 50.00 %" in written.words


@pytest.mark.parametrize("value", [NAN, float("inf")])
def test_trials_without_figures_are_listed_and_not_drawn(page: Any, value: float) -> None:
    diverged = (5, "COMPLETE", NAN, NAN, value, 300, 100, (16, 64, 16))
    stopped = (6, "PRUNED", NAN, 0.8, NAN, 250, 80, (16, 64, 16))
    written = page(frame((*TABLE, diverged, stopped)), summary())
    assert list(written.data["points"]) == ["0", "1", "2", "4"]
    assert "2 trials without a result" in written.words
    assert "3 FAIL loss is NaN" in written.words
    assert "5 COMPLETE its error or a cost is not finite" in written.words
    assert "1 trial stopped early trial MACs kept reason 6 25.0 % (−75.0 %) dominated by trial 2" in written.words


def test_a_small_divergence_is_not_zero(page: Any) -> None:
    shown = page(frame().assign(kl=0.000123, kl_before=0.1), summary()).data["points"]["2"]
    assert shown["kl"] == "0.10 → 0.00012"


def test_missing_side_figures_are_dashes(page: Any) -> None:
    trials = frame().assign(error_before=NAN, kl=NAN, kl_before=NAN, seed=NAN)
    shown = page(trials, summary()).data["points"]["2"]
    assert (shown["before"], shown["kl"], shown["time"]) == ("–", "– → –", "3 s, seed –")


@pytest.mark.parametrize("trials", [pd.DataFrame(), frame().iloc[:0], frame().iloc[3:4]])
def test_no_finished_trial(page: Any, tmp_path: Path, trials: pd.DataFrame) -> None:
    found = summary(front=[], best=[None], hypervolume=0.0)
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
    table = tuple((number, "COMPLETE", NAN, 0.512345, 0.412345, 400 + number % 7, 120, (64, 128, 32)) for number in range(1000))
    sizes = pd.DataFrame({site.name: np.full(1000, 1024) for site in sites})
    trials = pd.concat([frame(table).drop(columns=[site.name for site in SITES]), sizes], axis=1)
    write_report(tmp_path / "report.html", summary(front=[], best=[None]), trials, sites)
    assert (tmp_path / "report.html").stat().st_size < 10_000_000


def test_picture_has_ink_where_the_front_is(tmp_path: Path) -> None:
    write_pictures([tmp_path / "pareto.png"], summary(), frame())
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
    trials = frame().replace({"label": {"uniform": r"$\frac{<b>$"}})
    target = {"cost": "macs", "limit": 450, "text": r"$\x{", "group": 0}
    write_pictures([tmp_path / "pareto.png", tmp_path / "pareto.svg"], summary(model=r"$\frac{$", targets=[target]), trials)
    assert ElementTree.parse(tmp_path / "pareto.svg").getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert imread(tmp_path / "pareto.png").std() > 0.05
