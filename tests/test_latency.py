"""What is timed: medians over rounds, ratios within rounds, of calls that are as they will be run."""

import itertools
import time

import pytest
import torch
from torch import nn

from objectives.latency.config import Setting
from objectives.latency.timing import Timing, forward, time_calls
from spaces.errors import ConfigError


def test_a_timing_is_the_median_of_its_rounds() -> None:
    timing = Timing((1.0, 9.0, 2.0, 4.0, 3.0))
    assert timing.seconds == 3.0
    assert timing.quartiles == (2.0, 4.0)
    assert Timing((7.0,)).quartiles == (7.0, 7.0)


def test_a_ratio_is_taken_round_by_round() -> None:
    """A machine that is ten times slower in every other round leaves it as it is."""
    dense = Timing((1.0, 10.0, 1.0, 10.0, 1.0))
    smaller = Timing((0.5, 5.0, 0.5, 5.0, 0.5))
    assert smaller.ratio(dense).rounds == (0.5,) * 5


def test_calls_take_turns() -> None:
    order: list[str] = []

    def call(name: str) -> None:
        order.append(name)
        time.sleep(0.003)  # longer than a round has to be: one call is a round

    found = time_calls({"a": lambda: call("a"), "b": lambda: call("b")}, seconds=0.0)
    assert len(found["a"].rounds) == len(found["b"].rounds) >= 9
    assert found["a"].seconds >= 0.003
    changes = sum(before != after for before, after in itertools.pairwise(order))
    assert changes >= 2 * 9 - 1


def test_a_longer_call_takes_longer() -> None:
    found = time_calls({"long": lambda: time.sleep(0.02), "short": lambda: time.sleep(0.002)}, seconds=0.0)
    assert found["long"].ratio(found["short"]).seconds > 2


def test_nothing_is_recorded_for_gradients_and_threads_are_set() -> None:
    seen: set[tuple[bool, int]] = set()
    before = torch.get_num_threads()
    other = 1 if before > 1 else 2
    time_calls(
        {"a": lambda: seen.add((torch.is_inference_mode_enabled(), torch.get_num_threads()))}, seconds=0.0, threads=other
    )
    assert seen == {(True, other)}
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("amp", "expected"), [(False, torch.float32), (True, torch.bfloat16)])
def test_a_forward_pass_has_the_precision_that_was_asked_for(amp: bool, expected: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)).train()
    output = forward(model, torch.ones(2, 4), Setting(batch_size=2, amp=amp))()
    assert isinstance(output, torch.Tensor)
    assert (output.dtype, output.shape) == (expected, (2, 3))
    assert not model.training, "dropouts would be timed"


def test_settings_are_told_and_checked() -> None:
    assert Setting().text == "batch 1, fp32, eager"
    assert Setting(batch_size=32, amp=True, compiled=True).text == "batch 32, AMP, compiled"
    with pytest.raises(ConfigError, match="at least 1"):
        Setting(batch_size=0)
