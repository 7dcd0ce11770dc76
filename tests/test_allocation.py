import json
import pickle
from contextlib import nullcontext
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from local_strategies import JSON

from spaces.allocation import Allocation
from spaces.errors import AllocationError


def test_order_of_sites_does_not_matter() -> None:
    a = Allocation({"blocks.10.mlp.hidden": 8, "blocks.2.mlp.hidden": 16})
    b = Allocation({"blocks.2.mlp.hidden": 16, "blocks.10.mlp.hidden": 8})
    assert a == b
    assert hash(a) == hash(b)
    assert list(a) == ["blocks.2.mlp.hidden", "blocks.10.mlp.hidden"]


@given(st.dictionaries(st.text(max_size=20), st.integers(0, 2**70), max_size=6).map(Allocation))
@example(Allocation({"blocks.0.attn.qk": 8, "blocks.0.mlp.hidden": 64}))
def test_json_round_trip(allocation: Allocation) -> None:
    assert Allocation.from_json(allocation.to_json()) == allocation
    assert pickle.loads(pickle.dumps(allocation)) == allocation
    assert eval(repr(allocation)) == allocation


@given(JSON)
def test_any_value_is_an_allocation_of_whole_numbers_or_refused(value: Any) -> None:
    whole = isinstance(value, dict) and all(type(size) is int and size >= 0 for size in value.values())
    with nullcontext() if whole else pytest.raises(AllocationError):
        assert dict(Allocation.from_json(json.dumps(value))) == value


def test_is_immutable() -> None:
    allocation = Allocation({"a": 1})
    with pytest.raises(AttributeError):
        allocation.pairs = ()  # type: ignore[misc]
    changed = allocation.replace({"a": 2})
    assert (allocation["a"], changed["a"]) == (1, 2)


@pytest.mark.parametrize("size", [-1, -8, 1.5, "8", None, True])
def test_sizes_are_whole_numbers(size: object) -> None:
    with pytest.raises(AllocationError, match="must be a whole number, 0 or more"):
        Allocation({"a": size})  # type: ignore[dict-item]


@pytest.mark.parametrize("text", ["[1]", "{", '{"a": -1}', "3", "[" * 10_000])
def test_bad_json_is_refused(text: str) -> None:
    with pytest.raises(AllocationError):
        Allocation.from_json(text)


def test_replace_refuses_unknown_sites() -> None:
    with pytest.raises(AllocationError, match="unknown site 'b'"):
        Allocation({"a": 1}).replace({"b": 2})
