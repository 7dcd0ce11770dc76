"""What Hypothesis draws for the tests of laws: values of JSON, and values with one part replaced; how they are refused."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import strategies as st

NUMBERS = st.integers() | st.floats()
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=10),
    lambda parts: st.lists(parts, max_size=4) | st.dictionaries(st.text(max_size=6), parts, max_size=4),
    max_leaves=8,
)


def refusal(what: Callable[[], object], kind: type[Exception]) -> str:
    """The one line that an exception of this kind says; empty where nothing is raised."""
    try:
        what()
    except kind as error:
        said = str(error)
    else:
        return ""
    assert len(said.splitlines()) == 1
    return said


@st.composite
def damaged(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value of which one part was removed, or is another value."""
    changed = copy.deepcopy(value)
    holder, key = draw(st.sampled_from(list(_places(changed))))
    if draw(st.booleans()):
        holder[key] = draw(JSON)
    else:
        del holder[key]
    return changed


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every part of a value: what holds it, and by which key."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])
