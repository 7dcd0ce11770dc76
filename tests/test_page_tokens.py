"""The page of a search of tokens and branches: what it shows of a trial that merges some and leaves one out."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from local_browser import Visit, needs_chromium, sizes, window
from local_pages import framed, write_report
from playwright.sync_api import Browser

from search.run.trial_table import trials_of

BLOCKS = 12


@pytest.fixture(scope="module")
def visit(chromium: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visit]:
    path = tmp_path_factory.mktemp("page") / "page.html"
    summary, table = framed()
    write_report(path, summary, trials_of(table, summary))
    with window(chromium, viewport={"width": 1280, "height": 900}) as visit:
        visit.open(path.as_uri())
        yield visit


def cells(visit: Visit, block: int) -> list[str]:
    row = visit.page.locator("#sizes tbody tr").nth(block)
    return [" ".join(text.split()) for text in row.locator("td").all_inner_texts()]


@needs_chromium
def test_tokens_stand_before_all_that_is_computed_of_them(visit: Visit) -> None:
    """A column of them, a row a block; branches have none of their own."""
    visit.page.evaluate("pick(0, 1)")
    heads = [text.split("\n")[0] for text in visit.page.locator("#sizes thead th").all_inner_texts()]
    assert heads == ["block", "tokens", "qk", "vo", "hidden"]
    title = visit.page.locator("#sizes thead th").nth(1).get_attribute("title")
    assert title == "tokens: patch tokens that leave the attention of the block"
    counts = [sizes(visit)[f"blocks.{block}.tokens"] for block in range(BLOCKS)]
    assert counts == [196, 196, 196, 182, 168, 154, 140, 126, 112, 98, 98, 0]
    assert visit.problems == []


@needs_chromium
def test_a_branch_that_is_left_out_has_no_sizes(visit: Visit, tmp_path: Path) -> None:
    """Its FFN alone: the attention of the block is there, and that of another trial is."""
    visit.page.evaluate("pick(0, 1)")
    shown = sizes(visit)
    assert "blocks.3.mlp.hidden" not in shown
    assert {"blocks.3.attn.qk", "blocks.2.mlp.hidden"} < set(shown)
    assert cells(visit, 3)[-1] == "left out"
    visit.shot(tmp_path, "tokens")
    visit.page.evaluate("pick(0, 2)")
    assert "blocks.3.mlp.hidden" in sizes(visit)
    assert "left out" not in visit.page.inner_text("#sizes")


@needs_chromium
def test_along_the_front_a_branch_that_is_left_out_keeps_nothing(visit: Visit) -> None:
    drawn = visit.page.evaluate("(({ y, z, customdata }) => ({ y, z, customdata }))(document.getElementById('along').data[0])")
    numbers = [entry[0] for entry in drawn["customdata"][0]]
    assert 1 in numbers, "the trial is on this front"
    kept = dict(zip(drawn["y"], (row[numbers.index(1)] for row in drawn["z"]), strict=True))
    assert kept["blocks.3.mlp.hidden"] == 0
    assert kept["blocks.2.mlp.hidden"] > 0
    assert kept["blocks.9.tokens"] == pytest.approx(50)


@needs_chromium
def test_an_allocation_is_saved_with_tokens_and_branches(visit: Visit, tmp_path: Path) -> None:
    visit.page.evaluate("pick(0, 1)")
    with visit.page.expect_download() as download:
        visit.page.evaluate("saveAllocation()")
    text = Path(download.value.path()).read_text()
    assert '"blocks.3.tokens": 182' in text
    assert '"blocks.11.tokens": 0' in text
    assert '"blocks.3.mlp.branch": 0' in text
