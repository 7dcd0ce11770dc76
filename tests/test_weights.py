"""Weights of the front are kept, others are not."""

from pathlib import Path

import pytest

from search.layout import WEIGHTS, weights_of
from search.run.weights import keep_weights


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of four trials whose weights have 10 bytes each."""
    for number in range(4):
        fresh(tmp_path, number)
    return tmp_path


def fresh(run: Path, number: int) -> None:
    path = run / "trials" / f"{number:04d}" / WEIGHTS
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes([number]) * 10)


def kept(run: Path) -> list[int]:
    assert not list(run.glob(f"trials/*/{WEIGHTS}")), "what was dropped or moved is gone"
    return sorted(int(path.stem) for path in (run / "front").glob("*"))


def test_those_of_the_front_are_moved_and_the_others_dropped(run: Path) -> None:
    keep_weights(run, range(4), [2, 0])
    assert kept(run) == [0, 2]
    assert weights_of(run, 2).read_bytes() == bytes([2]) * 10


def test_what_leaves_the_front_is_dropped_later(run: Path) -> None:
    keep_weights(run, range(4), [2, 0])
    fresh(run, 4)
    keep_weights(run, range(5), [4, 0])
    assert kept(run) == [0, 4]


def test_weights_that_were_made_again_replace_the_old(run: Path) -> None:
    keep_weights(run, range(4), [2])
    (run / "trials" / "0002" / WEIGHTS).write_bytes(b"new")
    keep_weights(run, range(4), [2])
    assert weights_of(run, 2).read_bytes() == b"new"


def test_those_of_a_running_trial_are_left(run: Path) -> None:
    keep_weights(run, [0, 1, 2], [0])
    assert (run / "trials" / "0003" / WEIGHTS).exists()


def test_missing_weights_are_no_error(tmp_path: Path) -> None:
    keep_weights(tmp_path, [0, 1], [0], limit=100.0)
    assert kept(tmp_path) == []


@pytest.mark.parametrize(
    ("limit", "left"), [(30, [0, 1, 3]), (29, [1, 3]), (20, [1, 3]), (10, [3]), (9, []), (None, [0, 1, 3])]
)
def test_the_least_wanted_are_dropped_beyond_the_limit(run: Path, limit: float | None, left: list[int]) -> None:
    keep_weights(run, range(4), [3, 1, 0], limit)
    assert kept(run) == left
