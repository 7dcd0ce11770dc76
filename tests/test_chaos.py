"""A search is worth its hours only if it survives what happens to processes in hours."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from local_chaos import KINDS, RAY, Chaos, Launches, faults_of, poll

pytestmark = pytest.mark.slow


@pytest.fixture
def launches(tmp_path: Path) -> Iterator[Launches]:
    found = Launches(tmp_path, steps=120)
    yield found
    found.close()


def test_a_search_outlives_kills_at_random_moments(launches: Launches) -> None:
    """-9, to its workers and to itself: no result is lost or had twice, and no process, half file or weight is left over."""
    chaos = Chaos(launches, seed=0)
    assert chaos.run(["worker"] * 17 + ["driver"] * 3) == 0, launches.log.read_text()
    assert sum(chaos.tally.kills.values()) == 20
    assert not chaos.tally.stalls
    assert not chaos.tally.lost
    assert len(launches.finished()) > 0
    assert list(faults_of(launches.run)) == []
    assert not any(launches.processes(kind) for kind in KINDS)
    assert poll(lambda: not launches.processes(), seconds=120), "agents of Ray wait a minute for a driver that was killed"


def test_a_search_that_loses_ray_ends_with_one_line_and_goes_on(launches: Launches) -> None:
    """No worker could be started any more, which Ray would wait for without an end."""
    launches.start(*RAY[2], "--trials", "1000")
    assert poll(launches.finished, seconds=60)
    for process in launches.processes("raylet"):
        launches.kill(process)
    assert launches.ended(seconds=60) == 2
    assert "raylet) was lost: the same command continues the run" in launches.log.read_text()
    before = launches.finished()
    launches.start(*RAY[1], "--trials", str(len(before) + 2))
    assert launches.ended(seconds=60) == 0
    assert launches.finished().items() >= before.items()
