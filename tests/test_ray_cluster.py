"""A Ray cluster of two nodes, simulated on one machine, that a search joins; one of the nodes is lost, and another comes."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import ray
from local_launches import Silent, config_of
from local_patience import PATIENCE
from ray.cluster_utils import Cluster

from objectives.runtime.progress import Step
from search import launch
from search.run.summary import RunSummary

pytestmark = [pytest.mark.slow, pytest.mark.long]

TRIALS = 4
NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 128 << 20}


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    cluster.add_node(wait=False, **NODE)
    cluster.wait_for_nodes(PATIENCE)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


class Loses(Silent):
    """Removes a node while two trials run; another one joins when both have ended."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__()
        self.cluster, self.running, self.at_loss, self.rejoined = cluster, set[int](), set[int](), False
        self.held = list[psutil.Process]()

    def step(self, number: int, step: Step) -> None:
        super().step(number, step)
        if not self.held:
            self._hold()
        self.running.add(number)
        if len(self.running) == 2 and not self.at_loss:
            self.at_loss = set(self.running)
            (lost,) = self.cluster.worker_nodes
            self.cluster.remove_node(lost, allow_graceful=False)
            self._release()

    def finished(self, trial: Any, summary: RunSummary, count: int) -> None:
        super().finished(trial, summary, count)
        self.running.discard(trial.proposal.number)
        if self.at_loss and not self.rejoined and not self.at_loss & self.running:
            self.rejoined = True
            self.cluster.add_node(wait=False, **NODE)

    def _hold(self) -> None:
        """The first worker does nothing until the second, which starts now, runs a trial too."""
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if process.name().startswith("ray::Worker"):
                    process.suspend()
                    self.held.append(process)

    def _release(self) -> None:
        for process in self.held:
            with suppress(psutil.NoSuchProcess):  # it may have been on the node that is lost
                process.resume()


def test_a_search_outlives_a_node(tmp_path: Path, cluster: Cluster) -> None:
    """What ran there is run again on the other one with the same result, and the search does not wait for a third."""
    reporter, options = Loses(cluster), {"trials": TRIALS, "sampler": "random"}
    config = config_of(tmp_path, ray_address=cluster.address, parallel=2, trial_timeout=PATIENCE, **options)
    table = launch(config, reporter).trials
    assert len(reporter.at_loss) == 2
    assert len(reporter.held) == 1
    assert sorted(table["number"]) == list(range(TRIALS))
    assert set(table["state"]) == {"COMPLETE"}
    assert any("is run again: its worker was lost" in notice for notice in reporter.notices)
    alone = tmp_path / "alone"
    alone.mkdir()
    expected = launch(config_of(alone, **options), Silent()).trials
    columns = ["number", "error", "macs", "params"]
    pd.testing.assert_frame_equal(table.sort_values("number")[columns].reset_index(drop=True), expected[columns])
