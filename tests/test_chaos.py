"""A search is worth its hours only if it survives what happens to processes in hours."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from local_chaos import KINDS, Chaos, Launches, faults_of, poll

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
