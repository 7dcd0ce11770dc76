"""The page of a run in a real browser: what it shows is what the tables hold, and nothing leaves the machine."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from local_browser import Visit, click, needs_chromium, sizes, window
from local_launches import Silent, config_of
from playwright.sync_api import Browser, expect

from search import launch
from search.report.write import render
from search.run.run import Run
from search.run.summary_file import write_summary
from search.run.trial_table import EXPECTED

pytestmark = [pytest.mark.slow, needs_chromium]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return launch(config_of(tmp_path_factory.mktemp("page")), Silent())


@pytest.fixture
def visit(chromium: Browser, run: Run) -> Iterator[Visit]:
    with window(chromium, viewport={"width": 1280, "height": 900}) as visit:
        visit.open((run.directory / "report.html").as_uri())
        yield visit


def test_the_page_opens_without_a_complaint_or_a_request(visit: Visit) -> None:
    assert visit.problems == []
    assert visit.off_machine() == []
    assert [url for url in visit.requests if not url.startswith(("data:", "blob:"))] == [visit.page.url]


def shown_sizes(run: Run, number: int) -> dict[str, int]:
    """Of a trial: tokens of the blocks, and sizes of the branches that it does not leave out."""
    allocation = run.trial(number).allocation
    gone = {site.branch for site in run.space.sites if site.kind == "branch" and allocation[site.name] == 0}
    shown = [site for site in run.space.all_sites if site.kind != "branch" and site.branch not in gone]
    return {site.name: allocation[site.name] for site in shown}


def test_a_click_on_a_point_shows_its_sizes(visit: Visit, run: Run) -> None:
    kept = {trial.number: trial.kept["macs"] for trial in run.complete}
    apart = [number for number, x in kept.items() if sum(abs(x - other) < 0.02 for other in kept.values()) == 1]
    assert len(apart) >= 3
    for number in apart:
        click(visit, number)
        assert sizes(visit) == shown_sizes(run, number)


def test_a_row_of_the_table_and_the_keyboard_choose_too(visit: Visit, run: Run) -> None:
    visit.page.click("#rows tr:nth-child(2)")
    number = int(visit.page.get_attribute("#rows tr:nth-child(2)", "data-number") or "")
    assert visit.page.inner_text("#command").endswith(f"--trial {number}")
    visit.page.focus("#rows tr:nth-child(2) button")
    visit.page.keyboard.press("ArrowUp")
    above = visit.page.get_attribute("#rows tr:nth-child(1)", "data-number")
    assert visit.page.inner_text("#command").endswith(f"--trial {above}")


def test_an_allocation_and_the_table_are_taken_along(visit: Visit, run: Run) -> None:
    visit.page.click("#rows tr:nth-child(2)")
    number = int(visit.page.get_attribute("#rows tr:nth-child(2)", "data-number") or "")
    with visit.page.expect_download() as taken:
        visit.page.click("#save-allocation")
    found = json.loads(Path(taken.value.path()).read_text())
    assert (found["number"], found["space"]) == (number, "contract")
    assert found["allocation"] == dict(run.trial(number).allocation)
    with visit.page.expect_download() as taken:
        visit.page.click("#save-table")
    assert Path(taken.value.path()).read_text() == (run.directory / "trials.csv").read_text()


def test_two_trials_are_compared(visit: Visit, run: Run) -> None:
    numbers = visit.page.eval_on_selector_all("#rows tr", "rows => rows.map((row) => Number(row.dataset.number))")
    first, second = numbers[:2]
    visit.page.click(f"#rows tr[data-number='{first}']")
    visit.page.click("#pin")
    visit.page.click(f"#rows tr[data-number='{second}']")
    titles = visit.page.eval_on_selector_all("#sizes .size", "boxes => boxes.map((box) => box.title)")
    other = run.trial(first).allocation
    assert {title.partition(":")[0]: (int(title.split()[1]), int(title.rpartition(" ")[2])) for title in titles} == {
        name: (size, other[name]) for name, size in shown_sizes(run, second).items()
    }
    visit.shot(Path(run.directory), "compare")
    visit.page.click("#pin")
    assert visit.page.locator("#sizes b").count() == 0


def test_the_heat_map_shows_the_front_and_chooses_from_it(visit: Visit, run: Run) -> None:
    heat_map = visit.page.evaluate(
        "(({ z, y, customdata }) => ({ z, y, customdata }))(document.getElementById('along').data[0])"
    )
    numbers = [trial.number for trial in run.front]
    for name, shares, cells in zip(heat_map["y"], heat_map["z"], heat_map["customdata"], strict=True):
        site = next(site for site in run.space.all_sites if site.name == name)
        assert [cell[0] for cell in cells] == numbers
        kept = [shown_sizes(run, number).get(name, 0) for number in numbers]
        assert shares == [pytest.approx(100 * size / site.dense) for size in kept]
    visit.page.locator("#along .nsewdrag").click(position={"x": 10, "y": 10})
    expect(visit.page.locator("#command")).to_have_text(re.compile(rf" {numbers[0]}$"))


def test_trials_that_were_stopped_are_drawn_at_their_rung(chromium: Browser, run: Run, tmp_path: Path) -> None:
    trials = run.trials.astype({"reason": object, "rung": float})
    shown = {trial.number for trial in run.front} | {0, *run.summary.best}
    stopped = max(number for number in trials["number"] if number not in shown)
    pruned: dict[str, Any] = {"state": "PRUNED", "reason": "dominated by <b>", "rung": 2.0, "rung_error": 0.5}
    for column, value in (pruned | dict.fromkeys(("error", *EXPECTED), float("nan"))).items():
        trials.loc[stopped, column] = value
    trials.to_csv(tmp_path / "trials.csv", index=False)
    write_summary(tmp_path, run.summary)
    render(Run(tmp_path))
    with window(chromium) as visit:
        page = visit.open((tmp_path / "report.html").as_uri())
        drawn = page.evaluate("document.getElementById('plot').data.find((each) => each.name === 'stopped early')")
        assert (drawn["customdata"], drawn["y"]) == ([stopped], [50.0])
        assert drawn["x"] == [pytest.approx(100 * trials["macs_kept"][stopped], abs=1e-3)]
        assert "stopped at step 2" in drawn["hovertext"][0] and "dominated by &lt;b&gt;" in drawn["hovertext"][0]
        assert visit.problems == []


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits(chromium: Browser, run: Run, tmp_path: Path, width: int, theme: str) -> None:
    with window(chromium, viewport={"width": width, "height": 860}, color_scheme=theme) as visit:
        page = visit.open((run.directory / "report.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page itself does not scroll sideways"
        assert visit.shot(tmp_path, f"{width}-{theme}").stat().st_size > 10_000
        assert visit.problems == []


def test_markup_of_a_run_is_text(chromium: Browser, run: Run, tmp_path: Path) -> None:
    """In the label, the reason, the stderr, the model and the folder."""
    folder = tmp_path / "<img src=x onerror=alert(1)>"
    folder.mkdir()
    trials = run.trials.astype({"label": object, "reason": object})
    trials["label"] = "<b onclick=alert(3)>bold</b>"
    trials.loc[1, "state"], trials.loc[1, "reason"] = "FAIL", "</script><script>alert(4)</script>"
    trials.to_csv(folder / "trials.csv", index=False)
    front = tuple(point for point in run.summary.front if point.number != 1)
    write_summary(folder, replace(run.summary, model="<script>alert(2)</script>", front=front))
    (folder / "trials" / "0001").mkdir(parents=True)
    (folder / "trials" / "0001" / "stderr.log").write_text("<img src=x onerror=alert(5)>")
    render(Run(folder))
    with window(chromium) as visit:
        page = visit.open((folder / "report.html").as_uri())
        assert visit.problems == []
        assert page.inner_text("h1") == "<script>alert(2)</script>"
        page.eval_on_selector("#failed", "details => { details.open = true; }")
        assert "</script><script>alert(4)" in page.inner_text("#failed")
        assert "<img src=x onerror=alert(5)>" in (page.text_content("#stderr-1 pre") or "")
        assert "<img src=x onerror=alert(1)>" in page.inner_text("#command")
