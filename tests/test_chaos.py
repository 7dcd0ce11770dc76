"""A search is worth its hours only if it survives what happens to processes in hours."""

import os
import signal
from collections.abc import Iterator

import pytest
from local_chaos import KINDS, RAY, Chaos, Launches, faults_of, journal_of
from local_patience import PATIENCE, poll

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def launches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launches]:
    """Of one run, which every test goes on with."""
    found = Launches(tmp_path_factory.mktemp("chaos"), steps=120)
    yield found
    found.close()


@pytest.mark.long
def test_a_search_outlives_kills_at_random_moments(launches: Launches) -> None:
    """-9, to its workers and to itself: no result is lost or had twice, and no process, half file or weight is left over.

    Three kills, of a worker, the driver and a worker; benchmarks/chaos.py makes a hundred.
    """
    chaos = Chaos(launches, seed=1)  # two workers, then one, then two: no start of a third on two cores
    assert chaos.run(["worker", "worker", "driver"], seconds=1800) == 0, launches.log.read_text()
    assert not chaos.tally.stalls, launches.log.read_text()
    assert chaos.tally.kills.total() == 3
    assert not chaos.tally.lost
    errors = [line for line in launches.log.read_text().splitlines() if line.startswith("error: ")]
    assert all("no worker could be started" in error for error in errors), "the one thing for which a launch may end by itself"
    assert len(launches.finished()) > 0
    assert list(faults_of(launches.run)) == []
    assert poll(lambda: not any(launches.processes(kind) for kind in KINDS), seconds=60)


def test_a_search_that_loses_ray_ends_with_one_line_and_goes_on(launches: Launches) -> None:
    """No worker could be started any more, which Ray would wait for without an end. The next test goes on."""
    before = launches.finished()
    launches.start(*RAY[2], "--trials", "1000")
    assert poll(lambda: launches.finished().keys() > before.keys())
    for process in launches.latest("raylet"):
        launches.kill(process)
    assert launches.ended(PATIENCE) == 2
    assert "raylet) was lost: the same command continues the run" in launches.log.read_text()
    assert launches.finished().items() >= before.items()


def test_ctrl_c_in_a_terminal_reaches_the_search_and_not_its_workers(launches: Launches) -> None:
    """A terminal sends it to all processes of the group. Once: what runs is finished; twice: it is left to the next launch."""

    def ctrl_c() -> None:
        assert launches.driver is not None
        os.killpg(launches.driver.pid, signal.SIGINT)

    def told(words: str) -> int:
        return launches.log.read_text().count(words)

    def began() -> set[int]:
        return {int(path.parent.name) for path in (launches.run / "trials").glob("*/metrics.jsonl")}

    before, again = launches.finished(), told("is run again")
    launches.start(*RAY[2], "--trials", "1000")
    assert poll(lambda: launches.finished().keys() > before.keys() and len(launches.latest("worker")) == 2)
    ctrl_c()
    assert launches.ended(PATIENCE) == 130
    assert told("is run again") == again
    assert [trial.state.name for trial in journal_of(launches.run)].count("FAIL") == 0
    assert began() == {trial.user_attrs["number"] for trial in journal_of(launches.run)}
    assert list(faults_of(launches.run)) == []
    before = launches.finished()
    launches.start(*RAY[2], "--trials", "1000")
    assert poll(lambda: launches.finished().keys() > before.keys())
    ctrl_c()
    assert poll(lambda: told("finishing the trials that run; Ctrl-C again stops at once") == 2)
    ctrl_c()
    assert launches.ended(PATIENCE) == 130
    assert launches.finished().items() >= before.items()


def test_no_process_is_left(launches: Launches) -> None:
    """The last one of this file: agents of Ray wait a minute for a driver that was killed."""
    assert poll(lambda: not launches.processes())
