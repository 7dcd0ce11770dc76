"""The page is served: live while a search writes the run, to this machine alone, and never in the search's way."""

import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from local_browse import Server, served
from local_browser import browser, needs_chromium
from local_launches import TIMES, Silent, config_of
from local_runs import Fails

import run_search
from search import launch
from search.layout import LOCK
from search.run.run import Run
from search.run.summary import RunSummary

pytestmark = pytest.mark.slow
TRIALS = 8


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return launch(config_of(tmp_path_factory.mktemp("served"), trials=TRIALS), Silent())


@pytest.fixture(scope="module")
def server(run: Run) -> Iterator[Server]:
    with served(run.directory) as server:
        server.wait()
        yield server


def test_what_is_served_is_the_run(server: Server, run: Run) -> None:
    assert server.url.startswith("http://127.0.0.1:")
    answer, body = server.get("/")
    assert (answer.status, answer.getheader("Cache-Control")) == (200, "no-store")
    assert run.summary.model in body.decode()
    points = server.content()["data"][0]["points"]
    assert sorted(map(int, points)) == list(run.trials["number"])


def test_what_has_not_changed_is_not_sent(server: Server) -> None:
    answer, _ = server.get("/content.json")
    tag = answer.getheader("ETag")
    assert tag
    answer, body = server.get("/content.json", **{"If-None-Match": tag})
    assert (answer.status, body) == (304, b"")


@pytest.mark.parametrize("path", ["/trials.csv", "/../config.yaml", "/study.journal", "/static/x"])
def test_nothing_else_is_served(server: Server, path: str) -> None:
    assert server.get(path)[0].status == 404


def test_a_name_of_somebody_else_is_refused(server: Server) -> None:
    assert server.get("/content.json", Host="evil.example")[0].status == 400
    assert server.get("/content.json", Host=f"localhost:{server.port}")[0].status == 200


def test_a_taken_port_is_one_line(server: Server, run: Run, fails: Fails) -> None:
    line = fails("browse", run.directory, "--no-open", "--port", str(server.port))
    assert "Address already in use" in line and "choose another --port" in line


def test_no_run_is_one_line(tmp_path: Path, fails: Fails) -> None:
    assert "no search in" in fails("browse", tmp_path / "nothing", "--no-open")
    assert "no search in" in fails("browse", tmp_path, "--no-open")


def test_the_front_as_text(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_search.main(["browse", str(run.directory), "--text"]) == 0
    assert "Pareto front" in capsys.readouterr().out


def test_ctrl_c_ends_it(run: Run) -> None:
    with served(run.directory) as server:
        server.get("/")
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(15) in (0, 130)


@needs_chromium
def test_a_search_is_followed_and_not_disturbed(tmp_path: Path, run: Run) -> None:
    """From before its first trial: its points are there within five seconds, twenty readers and a kill cost it nothing."""
    directory = tmp_path / "run"
    directory.mkdir()
    (directory / LOCK).touch()  # as by a launch that has just begun
    config = config_of(tmp_path, trials=TRIALS, output=str(directory))
    late: list[float] = []
    with served(directory) as server, browser() as visit:
        page = visit.open(server.url)
        assert "pareto.json is missing" in page.inner_text("#head")
        found: list[pd.DataFrame] = []
        search = threading.Thread(target=lambda: found.append(launch(config, Follows(server, late)).trials))
        search.start()
        page.wait_for_selector("#plot .main-svg", timeout=30_000)
        with ThreadPoolExecutor(20) as readers:
            contents = list(readers.map(lambda _: server.get("/content.json")[0].status, range(20)))
        assert contents == [200] * 20
        search.join(60)
        server.process.kill()
    assert max(late) < 5.0
    assert not [problem for problem in visit.problems if "ERR_CONNECTION" not in problem]
    pd.testing.assert_frame_equal(found[0].drop(columns=TIMES), run.trials.drop(columns=TIMES))


class Follows(Silent):
    """Waits after some trials until the server has them."""

    def __init__(self, server: Server, late: list[float]) -> None:
        super().__init__()
        self.server, self.late = server, late

    def finished(self, trial: Any, summary: RunSummary, count: int) -> None:
        super().finished(trial, summary, count)
        if count in (1, 4):
            began = time.monotonic()
            while str(trial.proposal.number) not in (self.server.content()["data"] or [{"points": {}}])[0]["points"]:
                assert time.monotonic() - began < 20
                time.sleep(0.1)
            self.late.append(time.monotonic() - began)
