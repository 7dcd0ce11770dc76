"""The page of made-up tables: costs that only some runs have, the sensitivity profile, and a search of 2,000 trials."""

import time
from pathlib import Path

import numpy as np
import pytest
from local_browser import Visit, needs_chromium, sizes, window
from local_pages import DENSE, made_up, write_made_up, write_report, write_tables
from playwright.sync_api import Browser, expect

from objectives.profile import Profile, profile_name
from search.report.page_data import content_of
from search.report.script_data import sensitivity_of
from search.run.run import Run
from search.run.trial_table import trials_of
from spaces.sites import Space

MANY = 2000


def profile_of(space: Space) -> Profile:
    """Errors that fall with the size, and grow with the block: 0.001 times the block at half of the size."""
    errors = {
        site.name: {size: 0.002 * int(site.place[0]) * (1 - size / site.dense) for size in site.choices} for site in space.sites
    }
    return Profile(closed=errors, measured={}, images=0)


def costs_of(visit: Visit) -> list[str]:
    return list(visit.page.eval_on_selector_all("input[name=cost]", "inputs => inputs.map((input) => input.value)"))


@needs_chromium
def test_latency_is_a_cost_where_it_was_measured(chromium: Browser, tmp_path: Path) -> None:
    summary, trials = made_up(40, costs=("macs", "params", "latency"))
    trials.loc[trials["number"] == 5, ["latency", "latency_kept"]] = np.nan
    write_report(tmp_path / "page.html", summary, trials_of(trials, summary))
    done = trials[(trials["state"] == "COMPLETE") & trials["latency"].notna()]
    with window(chromium, viewport={"width": 1280, "height": 900}) as visit:
        visit.open((tmp_path / "page.html").as_uri())
        assert costs_of(visit) == ["macs", "params", "latency"]
        visit.page.check("input[name=cost][value=latency]")
        drawn = visit.page.evaluate("plot.data.find((each) => each.name === 'trials')")
        assert drawn["customdata"] == list(done["number"])
        assert drawn["x"] == pytest.approx([100 * seconds / DENSE["latency"] for seconds in done["latency"]], abs=1e-3)
        assert visit.page.evaluate("plot.layout.xaxis.title.text") == "latency kept (% of the dense 40 ms)"
        assert visit.page.evaluate("plot.layout.annotations") == [], "the target is on MACs"
        visit.page.evaluate("pick(0, 0)")
        assert "100.0\u00a0% (±0.0\u00a0%), 40\u00a0ms" in visit.page.inner_text("#facts")
        visit.page.evaluate("pick(0, 5)")
        assert "latency kept\n–, –" in visit.page.inner_text("#facts")
        assert visit.problems == []


@needs_chromium
def test_a_run_without_latency_offers_none(chromium: Browser, tmp_path: Path) -> None:
    write_made_up(tmp_path / "page.html", 40)
    with window(chromium) as visit:
        visit.open((tmp_path / "page.html").as_uri())
        assert costs_of(visit) == ["macs", "params"]
        assert "latency" not in visit.page.inner_text("body")
        assert visit.page.locator("#sensitivity-section").is_hidden()


@needs_chromium
def test_the_profile_is_shown_block_by_site(chromium: Browser, tmp_path: Path) -> None:
    summary, trials = made_up(40)
    space = summary.spaces[summary.space]
    write_report(
        tmp_path / "page.html", summary, trials_of(trials, summary), sensitivity=sensitivity_of(profile_of(space), space)
    )
    with window(chromium, viewport={"width": 1280, "height": 900}) as visit:
        visit.open((tmp_path / "page.html").as_uri())
        assert visit.page.inner_text("#conditions") == "closed-form errors, not measured"
        drawn = visit.page.evaluate(
            "(({ x, y, customdata }) => ({ x, y, customdata }))(document.getElementById('sensitivity').data[0])"
        )
        assert drawn["x"] == [str(block) for block in range(12)]
        assert drawn["y"] == ["attn.qk", "attn.vo", "mlp.hidden"]
        for row in drawn["customdata"]:
            assert row == pytest.approx([0.001 * block for block in range(12)])
        visit.page.check("input[name=share][value='25']")
        again = visit.page.evaluate("document.getElementById('sensitivity').data[0].customdata")
        assert again[0] == pytest.approx([0.0015 * block for block in range(12)])
        visit.shot(tmp_path, "sensitivity")
        assert visit.problems == []


def test_a_run_shows_the_profile_that_it_has(tmp_path: Path) -> None:
    """And is shown without one that cannot be read: the report is written while the search goes on."""
    summary, trials = made_up(10)
    write_tables(tmp_path, summary, trials)
    assert content_of(Run(tmp_path)).data.sensitivity is None
    path = tmp_path / "factors" / profile_name(summary.fingerprint)
    path.parent.mkdir()
    profile_of(summary.spaces[summary.space]).save(path, summary.fingerprint)
    found = content_of(Run(tmp_path)).data.sensitivity
    assert found is not None
    assert found.grids["50"]["3"]["attn.qk"] == pytest.approx(0.003)
    path.write_text("{")
    assert content_of(Run(tmp_path)).data.sensitivity is None


@needs_chromium
def test_2000_trials_open_and_answer(chromium: Browser, tmp_path: Path) -> None:
    """Times are in benchmarks/results; here that the page is made in seconds, and that a click draws no point again."""
    began = time.process_time()
    write_made_up(tmp_path / "page.html", MANY)
    assert time.process_time() - began < 20, "half a minute where the hypervolume was made of all points anew"
    assert (tmp_path / "page.html").stat().st_size < 10_000_000
    with window(chromium, viewport={"width": 1280, "height": 900}) as visit:
        visit.open((tmp_path / "page.html").as_uri())
        _, trials = made_up(MANY)
        number = int(trials["number"][trials["state"] == "COMPLETE"].iloc[1234])
        counted = visit.page.evaluate("document.querySelectorAll('#plot path.point').length")
        assert MANY * 0.9 < counted < MANY * 1.2
        assert visit.page.evaluate("document.querySelectorAll('*').length") < 4 * MANY
        changed = visit.page.evaluate(
            """async (number) => {
              let count = 0;
              const seen = new MutationObserver((records) => { count += records.length; });
              seen.observe(document.querySelector("#plot .scatterlayer"), { attributes: true, childList: true, subtree: true });
              pick(0, number);
              await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
              return count + seen.takeRecords().length;
            }""",
            number,
        )
        assert changed == 0, "the points are as they were"
        row = trials[trials["number"] == number].iloc[0]
        assert sizes(visit) == {name: int(row[name]) for name in trials.columns if name.startswith("blocks.")}
        expect(visit.page.locator("#command")).to_contain_text(f"--trial {number}")
        ring = visit.page.evaluate("plot.layout.shapes.filter((shape) => shape.type === 'circle')[0]")
        assert (ring["xanchor"], ring["yanchor"]) == (
            pytest.approx(100 * row["macs_kept"], abs=1e-3),
            pytest.approx(100 * row["error"], abs=1e-3),
        )
        assert visit.problems == []
