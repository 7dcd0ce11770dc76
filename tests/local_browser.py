"""A headless Chromium, and what a page did in it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, sync_playwright

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
        page.on("dialog", lambda dialog: (self.problems.append(f"dialog: {dialog.message}"), dialog.dismiss()))

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
def browser(**options: Any) -> Iterator[Visit]:
    """A window; `options` are Playwright's of a context: viewport, color_scheme."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield Visit(chromium.new_context(**options).new_page())
        finally:
            chromium.close()
