"""Which tests run one after another."""

from pathlib import Path

from xdist.scheduler import LoadFileScheduling

# Files whose tests start Ray: several of them at once start so slowly on two cores that all take longer.
RAY = ("chaos", "runners", "groups", "ray_train", "ray_cluster", "starts", "latency_search")


class Lanes(LoadFileScheduling):  # type: ignore[misc]  # pytest-xdist has no types
    """The tests of a file run in one process of pytest-xdist, and all that start Ray in the same one."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return "Ray" if Path(file).stem.removeprefix("test_") in RAY else file
