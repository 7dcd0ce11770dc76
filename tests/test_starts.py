"""How Ray and its workers are started, and what is done where they do not start."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from local_starts import Deaths, Mortal

from search.runners import ray_cluster as cluster
from search.runners.base import Listener
from search.runners.ray_actors import RayRunner
from search.runners.ray_cluster import Connection
from search.runners.resources import MachineConfig
from spaces.allocation import Allocation
from spaces.errors import RunError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _started() -> Iterator[None]:
    """A Ray of this machine, though the environment names a cluster, as a file of Ray's does where one was started here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "127.0.0.1:1")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
        connection = Connection(MachineConfig(parallel=2))
        yield
        connection.close()


def prepared(folder: Path, deaths: int, timings: int = 0) -> tuple[Any, Deaths, list[str]]:
    """A runner of two workers that has been asked for a forecast, what it had to go through, and what it told."""
    notices: list[str] = []
    objective: Any = Deaths(folder / "starts", deaths, timings)
    worker: Any = Mortal
    runner = RayRunner(objective, MachineConfig(parallel=2), Listener(notice=notices.append), worker)
    try:
        runner.prepare(())
        assert runner.forecast(Allocation({}))
    finally:
        runner.close()
    return runner, objective, notices


def test_ray_is_that_of_this_search_alone() -> None:
    assert not ray.get_runtime_context().gcs_address.endswith(":1")
    assert len([node for node in ray.nodes() if node["Alive"]]) == 1


def test_its_files_lie_where_paths_of_sockets_are_short_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the 107 characters that Linux has for them: a socket is session_DATE_TIME_PID/sockets/plasma_store there."""
    (session,) = Path(ray.nodes()[0]["ObjectStoreSocketName"]).parents[1:2]
    assert session.parent.name.startswith("vcs-")
    name = "session_2026-11-27_01-55-02_123456_1234567"
    for temporary in ("/tmp", "/" + 25 * "x", "/" + 26 * "x", "/scratch/of/a/very/long/name/of/a/job"):
        monkeypatch.setenv("RAY_TMPDIR", temporary)
        path = cluster.scratch_parent() / "vcs-12345678" / name / "sockets" / "plasma_store"
        assert len(str(path)) <= 107
        assert str(path).startswith(temporary if len(temporary) <= 26 else "/tmp/")


@pytest.mark.long
def test_where_the_first_worker_is_given_up_the_second_goes_on(tmp_path: Path) -> None:
    """And is replaced when it dies while a trial is timed."""
    runner, deaths, notices = prepared(tmp_path, deaths=3, timings=1)
    assert (runner.workers, deaths.starts) == (1, 5)
    assert sum("a worker was lost (before it was ready)" in notice for notice in notices) == 3
    assert sum("a worker did not start 3 times, going on with 1" in notice for notice in notices) == 1
    assert "a worker was lost (pid " in notices[-1]


def test_without_any_worker_the_search_ends(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no worker could be started: "):
        prepared(tmp_path, deaths=1000)
    assert Deaths(tmp_path / "starts", 0).starts == 6, "three of each"


def test_whatever_ray_raises_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def slow(**options: Any) -> None:
        raise Exception("The current node timed out\nduring startup.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "init", slow)
    monkeypatch.setattr(cluster, "scratch_parent", lambda: tmp_path)
    with pytest.raises(RunError, match=r"^Ray cannot be started: The current node timed out during startup\.$"):
        Connection(MachineConfig(parallel=2))
    assert not list(tmp_path.iterdir()), "nothing is left of what did not start"
    monkeypatch.setattr("search.runners.ray_cluster.check_reachable", lambda address: None)
    with pytest.raises(RunError, match=r"^the cluster at here:1 cannot be reached: The current node timed out during"):
        Connection(MachineConfig(ray_address="here:1"))
