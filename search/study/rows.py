"""The trials of a study as rows of Optuna's tables: written with one statement a table, and read with one.

Optuna itself sends some statements for every parameter of a trial that it writes, and makes an object of every row that it
reads. It can read what is written here, and the other way round. Trials have no intermediate values here.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import sqlalchemy
from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.trial import FrozenTrial
from sqlalchemy.orm import Session

from search.optuna_internals import models

_TRIAL, _PARAMETER, _VALUE = models.TrialModel, models.TrialParamModel, models.TrialValueModel
_USER, _SYSTEM = models.TrialUserAttributeModel, models.TrialSystemAttributeModel

_Rows = Sequence[Sequence[Any]]
_decoded = lru_cache(maxsize=4096)(json_to_distribution)  # the trials of a search share their distributions


def insert(study_id: int, number: int, trial: FrozenTrial, session: Session) -> models.TrialModel:
    """Insert a finished trial; the row of its study is locked.

    Its distributions are not compared with those of the trials before: all are of one search.

    Args:
        study_id: of its study.
        number: how many trials that has, which is what Optuna numbers by.
        trial: without intermediate values.
        session: with the transaction.
    """
    row = _TRIAL(
        study_id=study_id,
        number=number,
        state=trial.state,
        datetime_start=trial.datetime_start,
        datetime_complete=trial.datetime_complete,
    )
    session.add(row)
    session.flush()  # gives it its id
    for model, entries in _parts(trial):
        if entries:
            session.execute(sqlalchemy.insert(model.__table__), [{"trial_id": row.trial_id, **entry} for entry in entries])
    return row


def _parts(trial: FrozenTrial) -> Iterator[tuple[Any, list[dict[str, Any]]]]:
    """Tables, and the rows of a trial in them."""
    values = [(objective, *_VALUE.value_to_stored_repr(value)) for objective, value in enumerate(trial.values or ())]
    yield _VALUE, [{"objective": objective, "value": value, "value_type": kind} for objective, value, kind in values]
    yield (
        _PARAMETER,
        [
            {
                "param_name": name,
                "param_value": trial.distributions[name].to_internal_repr(value),
                "distribution_json": distribution_to_json(trial.distributions[name]),
            }
            for name, value in trial.params.items()
        ],
    )
    for model, attributes in ((_USER, trial.user_attrs), (_SYSTEM, trial.system_attrs)):
        yield model, [{"key": key, "value_json": json.dumps(value)} for key, value in attributes.items()]


def read(study_id: int, after: int | None, session: Session) -> list[FrozenTrial]:
    """The trials of a study in the order of their insertion.

    Args:
        study_id: of the study.
        after: id of the last trial that is not wanted; all without.
        session: to read with.

    Raises:
        Exception: a row is damaged; drivers and Optuna raise what they like.
    """
    wanted = [_TRIAL.study_id == study_id, *([] if after is None else [_TRIAL.trial_id > after])]

    def grouped(order: Any, *columns: Any) -> Mapping[int, _Rows]:
        """Rows of a table by the trials that they belong to."""
        found = defaultdict(list)
        query = sqlalchemy.select(order.class_.trial_id, *columns).join(_TRIAL, _TRIAL.trial_id == order.class_.trial_id)
        for trial, *row in session.execute(query.where(*wanted).order_by(order)):
            found[trial].append(row)
        return found

    trials: Sequence[Any] = session.scalars(sqlalchemy.select(_TRIAL).where(*wanted).order_by(_TRIAL.trial_id)).all()
    parts = (
        grouped(_VALUE.trial_value_id, _VALUE.objective, _VALUE.value, _VALUE.value_type),
        grouped(_PARAMETER.param_id, _PARAMETER.param_name, _PARAMETER.param_value, _PARAMETER.distribution_json),
        grouped(_USER.trial_user_attribute_id, _USER.key, _USER.value_json),
        grouped(_SYSTEM.trial_system_attribute_id, _SYSTEM.key, _SYSTEM.value_json),
    )
    return [_trial(trial, *(part.get(trial.trial_id, []) for part in parts)) for trial in trials]


def _trial(row: Any, values: _Rows, parameters: _Rows, user: _Rows, system: _Rows) -> FrozenTrial:
    figures = {objective: _VALUE.stored_repr_to_value(value, kind) for objective, value, kind in values}
    distributions = {name: _decoded(text) for name, _, text in parameters}
    return FrozenTrial(
        number=row.number,
        state=row.state,
        value=None,
        values=[figures[objective] for objective in range(len(figures))] or None,
        datetime_start=row.datetime_start,
        datetime_complete=row.datetime_complete,
        params={name: distributions[name].to_external_repr(value) for name, value, _ in parameters},
        distributions=distributions,
        user_attrs={key: json.loads(text) for key, text in user},
        system_attrs={key: json.loads(text) for key, text in system},
        intermediate_values={},
        trial_id=row.trial_id,
    )
