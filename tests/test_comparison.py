"""Several runs in one page, one table after another: whose a point is, and what keeps them from being compared."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from local_browser import Visit, click, needs_chromium, sizes, window
from local_pages import data_of, made_up, write_tables
from playwright.sync_api import Browser, expect

import run_search
from search.browse.server import Shown
from search.layout import RUN_FORMAT
from search.report.comparison import differences
from search.report.html import assemble, page
from search.report.page_data import content_of
from search.run.run import Run

TRIALS = 40


def write_run(directory: Path, seed: int, **options: Any) -> Run:
    """A run directory of made-up tables."""
    directory.mkdir(parents=True)
    summary, trials = made_up(TRIALS, seed=seed)
    write_tables(directory, summary, trials)
    (directory / "config.yaml").write_text(yaml.safe_dump({"format": RUN_FORMAT, "dataset": "digits", "steps": 100, **options}))
    return Run(directory)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    folder = tmp_path_factory.mktemp("overlay")
    return [write_run(folder / "one", seed=1), write_run(folder / "<b>two", seed=2, steps=200)]


@pytest.fixture
def visit(chromium: Browser, runs: list[Run], tmp_path: Path) -> Iterator[Visit]:
    (tmp_path / "page.html").write_text(page(assemble([content_of(run) for run in runs])), encoding="utf-8")
    with window(chromium, viewport={"width": 1280, "height": 900}) as visit:
        visit.open((tmp_path / "page.html").as_uri())
        yield visit


def numbers_of(run: Run) -> list[int]:
    """Of finished trials that lie apart from all others, so that a click means one."""
    done = run.trials[run.trials["state"] == "COMPLETE"]
    far = [
        number
        for number, x, y in done[["number", "macs_kept", "error"]].itertuples(index=False)
        if 0.2 < x < 0.8 and not ((abs(done["macs_kept"] - x) < 0.01) & (done["number"] != number)).any()
    ]
    assert len(far) >= 3
    return far[:3]


@needs_chromium
def test_every_run_has_its_front_as_a_line_of_its_own(visit: Visit, runs: list[Run]) -> None:
    lines = visit.page.evaluate("plot.data.filter((each) => each.mode === 'lines+markers')")
    assert [line["name"] for line in lines] == ["one", "&lt;b&gt;two"]
    for line, run in zip(lines, runs, strict=True):
        front = sorted(run.front, key=lambda trial: trial.costs["macs"])
        assert line["x"] == pytest.approx([100 * trial.kept["macs"] for trial in front], abs=1e-3)
        assert line["y"] == pytest.approx([100 * trial.objective("error") for trial in front], abs=1e-3)
    looks = [(line["line"]["color"], line["line"]["dash"], line["marker"]["symbol"]) for line in lines]
    assert all(one != two for one, two in zip(*looks, strict=True)), "told apart without colours too"
    visit.page.emulate_media(color_scheme="dark")
    visit.page.wait_for_function(
        "(color) => plot.data.find((each) => each.mode === 'lines+markers').line.color !== color", arg=looks[0][0]
    )
    assert visit.problems == []


@needs_chromium
def test_a_click_shows_the_trial_of_its_run(visit: Visit, runs: list[Run]) -> None:
    for place, run in enumerate(runs):
        for number in numbers_of(run):
            hover = click(visit, number, place)
            assert run.directory.name in hover
            assert sizes(visit) == dict(run.trial(number).allocation)
            command = visit.page.inner_text("#command")
            assert command.startswith("python run_search.py export ") and str(run.directory) in command.replace("'", "")


@needs_chromium
def test_trials_of_two_runs_are_compared(visit: Visit, runs: list[Run]) -> None:
    one, two = (run.front[0].number for run in runs)
    visit.page.click(f"#rows tr[data-run='0'][data-number='{one}']")
    visit.page.click("#pin")
    visit.page.click(f"#rows tr[data-run='1'][data-number='{two}']")
    titles = visit.page.eval_on_selector_all("#sizes .size", "boxes => boxes.map((box) => box.title)")
    by_block = {name: (runs[1].trial(two).allocation[name], size) for name, size in runs[0].trial(one).allocation.items()}
    for title in titles:
        assert (int(title.split()[1]), int(title.rpartition(" ")[2])) == by_block[title.partition(":")[0]]
        assert f"trial {one} of one" in title
    visit.page.click("#pin")
    assert visit.page.locator("#sizes b").count() == 0


@needs_chromium
def test_the_keyboard_goes_over_the_heading_of_a_run(visit: Visit) -> None:
    last = visit.page.locator("#rows tr[data-run='0'] button").last
    last.focus()
    visit.page.keyboard.press("ArrowDown")
    first = visit.page.locator("#rows tr[data-run='1']").first
    expect(first.locator("button")).to_be_focused()
    expect(first).to_have_class(re.compile("chosen"))
    assert visit.problems == []


@needs_chromium
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_of_two_runs_fits(chromium: Browser, runs: list[Run], tmp_path: Path, width: int, theme: str) -> None:
    (tmp_path / "page.html").write_text(page(assemble([content_of(run) for run in runs])), encoding="utf-8")
    with window(chromium, viewport={"width": width, "height": 860}, color_scheme=theme) as visit:
        visit.open((tmp_path / "page.html").as_uri())
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
        assert visit.shot(tmp_path, f"overlay-{width}-{theme}").stat().st_size > 10_000
        assert visit.problems == []


def test_what_differs_is_said(runs: list[Run]) -> None:
    said = assemble([content_of(run) for run in runs]).parts["head"]
    assert "The fine-tunes differ: steps 100 / steps 200." in said
    summary, options = runs[0].summary, {"dataset": "digits", "steps": 100}
    assert differences([summary], [options]) == differences([summary, summary], [options, options]) == []
    dense = replace(summary.dense, costs={**summary.dense.costs, "macs": 17_000_000_000})
    other = replace(summary, model="vit_b", dense=dense)
    found = differences([summary, other], [options, {**options, "dataset": "torch/cifar10"}])
    assert len(found) == 2
    assert "deit_small, 4.6 G MACs, 22 M parameters, error 20.00% / vit_b, 17 G MACs" in found[0]
    assert found[1] == "The images differ, and with them what an error is: dataset digits / dataset torch/cifar10."


def test_a_run_that_cannot_be_read_does_not_hide_the_others(runs: list[Run], tmp_path: Path) -> None:
    shown = Shown([tmp_path / "nothing", *(run.directory for run in runs)])
    version, found = shown.now()
    assert [run["name"] for run in data_of(found)] == ["one", "<b>two"]
    assert "pareto.json is missing" in found.parts["head"]
    write_run(tmp_path / "nothing", seed=3)
    assert shown.now()[0] != version
    assert [run["name"] for run in data_of(shown.now()[1])] == ["nothing", "one", "<b>two"]


def test_runs_of_one_name_are_told_apart_by_their_folders(runs: list[Run], tmp_path: Path) -> None:
    other = write_run(tmp_path / "one", seed=4)
    found = assemble([content_of(runs[0]), content_of(other)])
    assert [run["name"] for run in data_of(found)] == [str(runs[0].directory), str(other.directory)]


def test_two_fronts_as_text(runs: list[Run], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_search.main(["browse", "--text", *(str(run.directory) for run in runs)]) == 0
    printed = capsys.readouterr().out
    tables = printed.split("Pareto front")
    assert tables[0].strip() == "one:" and tables[1].rstrip().endswith("<b>two:")
    for table, run in zip(tables[1:], runs, strict=True):
        shown = [int(number) for number in re.findall(r"│ +(\d+) │", table)]
        assert shown == [point.number for point in run.summary.front]
    assert "The fine-tunes differ: steps 100 / steps 200." in printed
