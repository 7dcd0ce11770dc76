"""A headless Chromium, and what a page did in it."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Dialog, Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
SHOTS = os.environ.get("BROWSE_SHOTS")  # folder that screenshots are kept in


class Visit:
    """A page that is open, all that it asked for and complained of."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.requests: list[str] = []
        self.problems: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", lambda message: self.problems.append(message.text) if message.type in ("error", "warning") else None)
        page.on("dialog", self._dismiss)

    def _dismiss(self, dialog: Dialog) -> None:
        self.problems.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def open(self, url: str) -> Page:
        self.page.goto(url)
        self.page.wait_for_selector("#plot .main-svg, main.empty, .title")
        return self.page

    def off_machine(self) -> list[str]:
        """Requests that went anywhere but to a file, the page itself or this machine."""
        near = ("file:", "data:", "blob:", "http://127.0.0.1")
        return [url for url in self.requests if not url.startswith(near)]

    def shot(self, folder: Path, name: str) -> Path:
        path = (Path(SHOTS) if SHOTS else folder) / f"{name}.png"
        self.page.screenshot(path=path, full_page=True)
        return path


@contextmanager
def started() -> Iterator[Browser]:
    """Chromium; the tests of a file share one (the fixture `chromium`), as its start takes longer than most of them."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield chromium
        finally:
            chromium.close()


@contextmanager
def window(chromium: Browser, **options: Any) -> Iterator[Visit]:
    """One that shares nothing with others; `options` are Playwright's of a context: viewport, color_scheme."""
    context = chromium.new_context(**options)
    try:
        yield Visit(context.new_page())
    finally:
        context.close()


@contextmanager
def browser(**options: Any) -> Iterator[Visit]:
    """The only window of a Chromium of its own."""
    with started() as chromium, window(chromium, **options) as visit:
        yield visit


def sizes(visit: Visit) -> dict[str, int]:
    """Site -> size, as the bars' titles give them."""
    titles = visit.page.eval_on_selector_all("#sizes .size", "boxes => boxes.map((box) => box.title)")
    return {title.partition(":")[0]: int(title.split()[1]) for title in titles}


def click(visit: Visit, number: int, place: int = 0) -> str:
    """Click the point of a trial of a run in the plot; what was shown when the mouse was over it."""
    at = visit.page.evaluate(
        """([number, place]) => {
          const plot = document.getElementById("plot");
          const trace = plot.data.find((each) => each.name === "trials" && each.meta === place);
          const at = trace.customdata.indexOf(number);
          const box = plot.getBoundingClientRect();
          const { xaxis, yaxis } = plot._fullLayout;
          return [box.x + xaxis._offset + xaxis.l2p(trace.x[at]), box.y + yaxis._offset + yaxis.l2p(trace.y[at])];
        }""",
        [number, place],
    )
    visit.page.wait_for_timeout(400)  # two clicks within 300 ms are a double click, which resets the zoom
    visit.page.mouse.move(*at, steps=4)
    hover = visit.page.locator("#plot .hovertext")
    expect(hover).to_contain_text(re.compile(rf"Trial {number}\D"))
    shown = hover.text_content() or ""
    visit.page.mouse.click(*at)
    expect(visit.page.locator("#command")).to_have_text(re.compile(rf" {number}$"))
    return shown
