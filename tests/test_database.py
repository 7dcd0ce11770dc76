"""Wherever a study is kept it is the same: nothing finished is lost, stored twice, or mixed with another search."""

import math
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import optuna
import pytest
import sqlalchemy
from local_searches import asked, opened, proposed, score_of, scored, searched, space_of
from local_servers import (
    PASSWORD,
    QUOTED,
    Journal,
    Place,
    Server,
    Sqlite,
    mariadb,
    missing_mariadb,
    missing_postgresql,
    postgresql,
)
from optuna.storages import RDBStorage
from sqlalchemy.exc import OperationalError

from search.masking import masked
from search.study.study import Study
from search.trial import Outcome, Proposal, Trial
from spaces.errors import RunError

optuna.logging.set_verbosity(optuna.logging.WARNING)
pytestmark = pytest.mark.slow

SERVERS = {"postgresql": (postgresql, missing_postgresql), "mariadb": (mariadb, missing_mariadb)}
PLACES = ("journal", "sqlite", *SERVERS)
DATABASES = PLACES[1:]
PARAMETRISATION = searched(space_of(rivals=True), [{"macs": 2000}], [0.7])


@pytest.fixture(scope="session")
def servers() -> Iterator[dict[str, Server]]:
    """Those that were started; they end with the tests."""
    with ExitStack() as stack:
        yield (started := _Started(stack))
        started.clear()


class _Started(dict[str, Server]):
    def __init__(self, stack: ExitStack) -> None:
        super().__init__()
        self._stack = stack

    def __missing__(self, name: str) -> Server:
        start, missing = SERVERS[name]
        if reason := missing():
            pytest.skip(reason)
        self[name] = self._stack.enter_context(start())
        return self[name]


@pytest.fixture
def place(request: pytest.FixtureRequest, servers: dict[str, Server], tmp_path: Path) -> Place:
    name = getattr(request, "param", "sqlite")
    if name == "journal":
        return Journal()
    return Sqlite(tmp_path / "studies.db") if name == "sqlite" else servers[name]


@pytest.fixture
def directory(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Of a run whose name no other test uses: servers are shared."""
    return tmp_path / str(request.node.name)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the journal nor Optuna waits before another try."""
    monkeypatch.setattr("search.study.journal.PAUSES", (0.0,))
    monkeypatch.setattr("optuna.storages._rdb.storage.time", SimpleNamespace(sleep=lambda seconds: None))


everywhere = pytest.mark.parametrize("place", PLACES, indirect=True)
databases = pytest.mark.parametrize("place", DATABASES, indirect=True)


def open_study(directory: Path, url: str | None, **options: Any) -> Study:
    settings = {"parametrisation": PARAMETRISATION, "objectives": ("error", "macs"), "sampler": "tpe", "seed": 0}
    return opened(Study(directory, **{**settings, **options}, storage=url))


def told(study: Study, proposal: Proposal | None) -> None:
    """Tell a made-up result: some fail, some are stopped, and figures are missing or not numbers."""
    assert proposal is not None and proposal.allocation is not None
    score = score_of(proposal.allocation)
    if proposal.number % 4 == 1:
        reason = "RuntimeError: 'Ärger' \N{PILE OF POO} \\ \"%s\"\x00"
        study.tell(Outcome(number=proposal.number, score=None, reason=reason))
    elif proposal.number % 4 == 2:
        stopped = replace(score, error=None, kl=None, steps=3, rungs={1: 0.1 + 0.2, 3: 1 / 3})
        study.tell(Outcome(number=proposal.number, score=stopped, reason="dominated by trial 0"))
    else:
        odd = replace(score, kl=math.nan, error_before=math.inf, rungs={1: 1e-300})
        study.tell(Outcome(number=proposal.number, score=odd))


def run(study: Study, trials: int) -> None:
    while len(study.trials) < trials:
        told(study, asked(study))


def stored(study: Study) -> list[tuple[Any, ...]]:
    """All that the storage says of the trials, but for the times."""
    trials = study.journal.frozen()
    return [(trial.state, trial.values, trial.params, repr(trial.user_attrs), trial.system_attrs) for trial in trials]


def numbers(study: Study) -> list[int]:
    return [trial.proposal.number for trial in study.trials]


# The same everywhere


@everywhere
def test_reopened_trials_are_those_that_were_told(place: Place, directory: Path) -> None:
    study = open_study(directory, place.url, sampler="additive", screening=True)
    study.enqueue("dense", study.parametrisation.budgets.space.identity())
    run(study, 10)
    before, trials = stored(study), study.trials
    assert any("additive:screened" in system for *_, system in before)
    study.close()
    again = open_study(directory, place.url, sampler="additive", screening=True)
    assert repr(again.trials) == repr([replace(t, proposal=replace(t.proposal, attributes={})) for t in trials])
    assert stored(again) == before
    assert {trial.state for trial in again.trials} == {"COMPLETE", "PRUNED", "FAIL"}


@everywhere
def test_resumed_proposes_what_an_uninterrupted_one_would(place: Place, directory: Path, tmp_path: Path) -> None:
    whole = open_study(tmp_path / "whole", None)
    part = open_study(directory, place.url)
    for _ in range(2):
        asked = [(proposed(whole), proposed(part)) for _ in range(6)]
        random.Random(0).shuffle(asked)
        for first, second in asked:
            assert first == second
            told(whole, first)
            told(part, second)
        part.close()
        part = open_study(directory, place.url)
    assert part.ask() == whole.ask()


@everywhere
def test_a_result_that_cannot_be_recorded_ends_the_search_and_nothing_else_is_lost(place: Place, directory: Path) -> None:
    study = open_study(directory, place.url)
    run(study, 3)
    lost = proposed(study)
    place.fail()
    try:
        with pytest.raises(RunError, match=r"trial 3 could not be recorded in .*the same command continues") as caught:
            told(study, lost)
    finally:
        study.close()
        place.come_back()
    assert PASSWORD not in str(caught.value)
    again = open_study(directory, place.url)
    assert numbers(again) == [0, 1, 2]
    assert again.ask() == lost
    told(again, lost)
    run(again, 5)
    again.close()
    assert numbers(open_study(directory, place.url)) == [0, 1, 2, 3, 4]


@everywhere
def test_another_search_is_refused_and_the_same_is_continued(place: Place, directory: Path) -> None:
    study = open_study(directory, place.url, identity="one")
    run(study, 2)
    study.close()
    with pytest.raises(RunError, match=r"is of another search.*choose another"):
        open_study(directory, place.url, identity="two")
    with pytest.raises(RunError, match="has 2 objectives, this search minimises 3"):
        open_study(directory, place.url, identity="one", objectives=("error", "macs", "params"))
    assert len(open_study(directory, place.url, identity="one").trials) == 2


@everywhere
def test_a_study_without_identity_is_continued(place: Place, directory: Path) -> None:
    study = open_study(directory, place.url)
    run(study, 1)
    study.close()
    for _ in range(2):
        again = open_study(directory, place.url, identity="one")
        assert len(again.trials) == 1
        again.close()


# Databases


@databases
def test_the_study_is_readable_with_optuna_alone(place: Place, directory: Path) -> None:
    study = open_study(directory, place.url)
    run(study, 8)
    storage = RDBStorage(str(place.url))
    loaded = optuna.load_study(study_name=directory.name, storage=storage)
    assert len(loaded.trials) == 8
    done = [trial for trial in study.trials if trial.state == "COMPLETE"]
    points = {(trial.score.error, trial.score.costs["macs"]) for trial in done if trial.score and trial.score.error is not None}
    front = {p for p in points if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)}
    assert {tuple(trial.values) for trial in loaded.best_trials} == front
    assert loaded.trials_dataframe().shape[0] == 8
    storage.engine.dispose()


@databases
def test_the_search_goes_on_where_the_run_directory_was_lost(place: Place, directory: Path, tmp_path: Path) -> None:
    study = open_study(directory, place.url, identity="one")
    run(study, 3)
    lost = proposed(study)
    study.close()
    elsewhere = tmp_path / "elsewhere" / directory.name
    again = open_study(elsewhere, place.url, identity="one")
    assert numbers(again) == [0, 1, 2]
    assert again.ask() == lost, "the same number and seed"


@databases
def test_a_study_of_another_program_is_refused(place: Place, directory: Path) -> None:
    storage = RDBStorage(str(place.url))
    other = optuna.create_study(study_name=directory.name, storage=storage, directions=["minimize"] * 2)
    other.add_trial(optuna.trial.create_trial(values=[1.0, 2.0]))
    storage.engine.dispose()
    with pytest.raises(RunError, match="trials of another program"):
        open_study(directory, place.url, identity="one")


@databases
def test_an_insertion_that_was_carried_out_is_not_repeated(
    place: Place, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection breaks when the server has committed, and before it could say so."""
    study = open_study(directory, place.url)
    run(study, 2)
    commit, broken = sqlalchemy.orm.Session.commit, list[Any]()

    def unclear(session: Any) -> None:
        commit(session)
        if len(broken) < 7:  # Optuna tries five times by itself
            broken.append(True)
            raise OperationalError("COMMIT", {}, RuntimeError("server closed the connection"))

    monkeypatch.setattr(sqlalchemy.orm.Session, "commit", unclear)
    told(study, asked(study))
    monkeypatch.undo()
    assert len(broken) == 7
    run(study, 5)
    study.close()
    assert numbers(open_study(directory, place.url)) == [0, 1, 2, 3, 4]


@databases
def test_the_last_process_to_open_a_study_is_the_one_that_writes(place: Place, directory: Path, tmp_path: Path) -> None:
    """Run directories on two machines have locks of their own."""
    first = open_study(directory, place.url, identity="one")
    run(first, 1)
    second = open_study(tmp_path / "elsewhere" / directory.name, place.url, identity="one")
    with pytest.raises(RunError, match=r"was taken over by process \d+ on"):
        run(first, 2)
    run(second, 3)
    second.close()
    assert numbers(open_study(tmp_path / "elsewhere" / directory.name, place.url, identity="one")) == [0, 1, 2]


@pytest.mark.parametrize("place", SERVERS, indirect=True)
def test_a_server_that_was_restarted_goes_unnoticed(place: Place, directory: Path) -> None:
    study = open_study(directory, place.url)
    run(study, 2)
    place.fail()
    place.come_back()
    run(study, 4)
    study.close()
    assert numbers(open_study(directory, place.url)) == [0, 1, 2, 3]


@databases
def test_attributes_may_be_long(place: Place, directory: Path) -> None:
    """MySQL's TEXT ends at 64 KiB; what is screened for a proposal of a large model needs more."""
    study = open_study(directory, place.url)
    proposal = proposed(study)
    score = score_of(proposal.allocation)
    trial = Trial(proposal=proposal, score=score, reason=None, ended="2026-11-27T12:00:00+00:00")
    values = [score.error or 0.0, score.costs["macs"]]
    study.journal.append(trial, values, study.parametrisation.distributions, {"noted": "x" * 200_000})
    study.close()
    assert len(stored(open_study(directory, place.url))[0][-1]["noted"]) == 200_000


@pytest.fixture
def sent() -> Iterator[Counter[str]]:
    """Counts statements to any database, and connections that were taken from a pool."""
    counts: Counter[str] = Counter()
    listeners = [
        (sqlalchemy.Engine, "before_cursor_execute", lambda *given: counts.update(["statements"])),
        (sqlalchemy.pool.Pool, "checkout", lambda *given: counts.update(["checkouts"])),
    ]
    for listener in listeners:
        sqlalchemy.event.listen(*listener)
    yield counts
    for listener in listeners:
        sqlalchemy.event.remove(*listener)


@databases
def test_statements_of_a_trial_do_not_depend_on_what_it_holds(place: Place, directory: Path, sent: Counter[str]) -> None:
    """Nor on how many there are."""
    for branches in (1, 40):
        space = space_of(branches=branches)
        parametrisation = searched(space, [{"macs": 800 * branches}], [0.7])
        study = open_study(
            directory.with_name(f"{directory.name}{branches}"), place.url, parametrisation=parametrisation, sampler="random"
        )
        for _ in range(4):
            number = proposed(study).number
            sent.clear()
            study.tell(Outcome(number=number, score=scored(0.1, 1)))
            assert sent["statements"] <= 7
            assert sent["checkouts"] == 1
        assert len(stored(study)[0][2]) == branches + 1


@databases
def test_statements_of_reading_do_not_depend_on_how_many_trials_there_are(
    place: Place, directory: Path, sent: Counter[str]
) -> None:
    counts = set()
    for trials in (1, 4, 12):
        study = open_study(directory, place.url)
        run(study, trials)
        study.close()
        sent.clear()
        open_study(directory, place.url).close()
        counts.add(sent["statements"])
    assert len(counts) == 1


# What cannot be used


def test_a_run_with_a_journal_file_is_not_continued_in_a_database(place: Place, directory: Path) -> None:
    study = open_study(directory, None)
    study.close()
    with pytest.raises(RunError, match=r"keeps its trials in study\.journal"):
        open_study(directory, place.url)


def test_a_damaged_file_is_to_be_restored(directory: Path, tmp_path: Path) -> None:
    path = tmp_path / "damaged.db"
    path.write_text("this is no database")
    expected = rf"^sqlite:///{path} cannot be opened \(file is not a database\): restore the file from a backup"
    with pytest.raises(RunError, match=expected):
        open_study(directory, f"sqlite:///{path}")


REFUSED = "cannot be opened.*refused.*start its server, or correct --storage"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqlite:////nowhere/studies.db", r"cannot be opened \(unable to open database file\): correct --storage"),
        ("studies.db", "is not the URL of a database"),
        ("redis://:s3cret@localhost", "is not the URL of a database"),
        ("postgresql+psycopg://a:s3cret@host:x/y", "is not the URL of a database"),
        ("postgresql+pg8000://a:s3cret@host/y", r"pg8000 is not installed.*postgresql\+psycopg://"),
        ("mysql://a:s3cret@host/y", r"mysqldb is not installed.*mysql\+pymysql://"),
        ("postgresql+psycopg://a:s3cret@127.0.0.1:1/y", REFUSED),
        ("mysql+pymysql://a:s3cret@127.0.0.1:1/y", REFUSED),
        (
            "postgresql+psycopg://127.0.0.1:1/y?user=a&password=s3cret",
            REFUSED,
        ),
        ("mysql+pymysql://127.0.0.1:1/y?user=a&pw=s3cret", "cannot be opened.*unexpected keyword argument"),
    ],
)
def test_a_storage_that_cannot_be_used_is_one_error(url: str, expected: str, directory: Path) -> None:
    for _ in range(2):  # the run is not left locked
        with pytest.raises(RunError, match=expected) as caught:
            open_study(directory, url)
        assert "s3cret" not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_file_of_which_pages_are_damaged_is_one_error(directory: Path, tmp_path: Path) -> None:
    path = tmp_path / "damaged.db"
    open_study(directory, f"sqlite:///{path}").close()
    content = bytearray(path.read_bytes())
    content[4096 * 3 : 4096 * 20] = b"\xff" * 4096 * 17
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"damaged\.db cannot be .*malformed"):
        open_study(directory, f"sqlite:///{path}")


@pytest.mark.parametrize(
    ("url", "extra"), [("postgresql+psycopg://u:p@h/d", "postgresql"), ("mysql+pymysql://u:p@h/d", "mysql")]
)
def test_a_driver_that_is_not_installed_names_its_extra(
    url: str, extra: str, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, {"postgresql": "psycopg", "mysql": "pymysql"}[extra], None)
    with pytest.raises(RunError, match=rf"pip install 'vit-compression-search\[{extra}\]'"):
        open_study(directory, url)


@pytest.mark.parametrize("place", SERVERS, indirect=True)
def test_a_wrong_password_is_named_and_not_shown(place: Place, directory: Path) -> None:
    assert place.url is not None
    with pytest.raises(RunError, match=r"cannot be opened.*(authentication failed|Access denied)") as caught:
        open_study(directory, place.url.replace(QUOTED, "wr0ng"))
    assert "wr0ng" not in str(caught.value)
    with pytest.raises(RunError, match=r"cannot be opened.*(does not exist|Unknown database)"):
        open_study(directory, place.url.rpartition("/")[0] + "/nowhere")


@pytest.mark.parametrize(
    "url",
    [f"mysql+pymysql://u:{QUOTED}@h/d", f"postgresql://h/d?password={quote(PASSWORD)}", f"postgresql://u:{QUOTED}@h:port/d"],
)
def test_no_password_is_shown(url: str) -> None:
    assert "s3cret" not in masked(url)


def test_closing_twice_does_no_harm(place: Place, directory: Path) -> None:
    study = open_study(directory, place.url)
    study.close()
    study.close()
    assert open_study(directory, place.url).trials == []
