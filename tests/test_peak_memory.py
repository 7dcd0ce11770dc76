"""Peak memory of a forward pass, against sums by hand."""

import itertools

import pytest
import torch
from torch import nn

from objectives.cost.peak_memory import peak_memory, weight_bytes

FLOAT = 4
BATCH, INPUTS, HIDDEN, OUTPUTS = 64, 128, 512, 32


def layers(*widths: int) -> nn.Module:
    return nn.Sequential(*(nn.Linear(rows, columns, bias=False) for rows, columns in itertools.pairwise(widths))).eval()


def test_weights_are_parameters_and_buffers_in_their_own_types() -> None:
    assert weight_bytes(nn.Linear(10, 3)) == FLOAT * (30 + 3)
    assert weight_bytes(nn.Linear(10, 3).half()) == 2 * (30 + 3)
    assert weight_bytes(nn.BatchNorm1d(5)) == FLOAT * 4 * 5 + 8, "and a counter of eight bytes"


def test_what_is_alive_at_once_counts_and_what_was_freed_does_not() -> None:
    images = torch.zeros(BATCH, INPUTS)
    fixed = FLOAT * BATCH * INPUTS
    one = layers(INPUTS, HIDDEN)
    assert peak_memory(one, images) == weight_bytes(one) + fixed + FLOAT * BATCH * HIDDEN
    two = layers(INPUTS, HIDDEN, OUTPUTS)
    assert peak_memory(two, images) == weight_bytes(two) + fixed + FLOAT * BATCH * (HIDDEN + OUTPUTS)
    three = layers(INPUTS, HIDDEN, OUTPUTS, OUTPUTS)
    assert peak_memory(three, images) == weight_bytes(three) + fixed + FLOAT * BATCH * (HIDDEN + OUTPUTS)


@pytest.mark.parametrize("batch", [1, 3])
def test_activations_grow_with_the_batch_and_weights_do_not(batch: int, vit: nn.Module) -> None:
    def activations(count: int) -> int:
        return peak_memory(vit, torch.zeros(count, 3, 16, 16)) - weight_bytes(vit)

    assert activations(4 * batch) == 4 * activations(batch)
