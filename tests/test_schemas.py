"""The schemas of a run's files: what is written is read, and any other content is refused in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from local_strategies import JSON, damaged, refusal

from search.run.activity import RUNNING_SCHEMA
from search.run.audit_file import AUDIT_SCHEMA
from search.run.summary_file import summary_from_json, summary_to_json
from spaces.schema import SchemaError, check, read_json

WITH_A_RUN = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def summary(finished: Path) -> Any:
    return read_json(finished / "pareto.json")


def test_what_a_run_has_written_is_read_and_written_again(summary: Any) -> None:
    assert json.dumps(summary_to_json(summary_from_json(summary))) == json.dumps(summary)


@given(JSON)
def test_any_value_is_no_file_of_a_run(value: Any) -> None:
    assert refusal(lambda: check(value, AUDIT_SCHEMA), SchemaError)
    assert refusal(lambda: check(value, RUNNING_SCHEMA), SchemaError)
    assert refusal(lambda: summary_from_json(value), SchemaError)


@WITH_A_RUN
@given(st.data())
def test_a_damaged_summary_is_refused_or_another_summary(summary: Any, data: st.DataObject) -> None:
    changed = data.draw(damaged(summary))
    if not refusal(lambda: summary_from_json(changed), SchemaError):
        assert changed.keys() >= {"model", "space", "dense", "reach", "front", "best"}
