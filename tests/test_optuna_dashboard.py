"""optuna-dashboard is given a copy: the study that a search writes is read, and nothing else."""

import json
import signal
import sys
import tempfile
from pathlib import Path

import optuna
import pytest
import yaml
from local_browse import served
from local_launches import Silent, config_of

from search import launch
from search.browse.optuna_dashboard import check_installed, snapshot
from search.layout import JOURNAL, RUN_FORMAT
from search.run.run import Run
from spaces.errors import ConfigError, RunError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return launch(config_of(tmp_path_factory.mktemp("dashboard"), trials=4), Silent())


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_a_snapshot_holds_the_trials_and_touches_nothing(run: Run, tmp_path: Path, temporary: Path) -> None:
    """Not even where the search is in the middle of a line."""
    journal = tmp_path / "run" / JOURNAL
    journal.parent.mkdir()
    journal.write_bytes((run.directory / JOURNAL).read_bytes() + b'{"op_code": 4, "wor')
    before = journal.read_bytes()
    study = optuna.load_study(study_name="run", storage=snapshot([journal.parent]))
    assert [trial.user_attrs["number"] for trial in study.trials] == list(run.trials["number"])
    assert [trial.values[0] for trial in study.trials] == list(run.trials["error"])
    assert journal.read_bytes() == before
    assert [path.name for path in journal.parent.iterdir()] == [JOURNAL]
    assert list(temporary.iterdir()) == []


def test_a_database_keeps_its_writer(tmp_path: Path) -> None:
    directory, url = tmp_path / "kept", f"sqlite:///{tmp_path}/studies.db"
    directory.mkdir()
    (directory / "config.yaml").write_text(yaml.safe_dump({"format": RUN_FORMAT, "model": "m", "storage": url}))
    study = optuna.create_study(study_name="kept", storage=url)
    study.set_user_attr("writer", "another process")
    study.add_trial(optuna.trial.create_trial(value=0.25))
    copy = optuna.load_study(study_name="kept", storage=snapshot([directory]))
    copy.set_user_attr("writer", "the dashboard")
    assert [trial.value for trial in copy.trials] == [0.25]
    assert optuna.load_study(study_name="kept", storage=url).user_attrs == {"writer": "another process"}


def test_a_password_that_is_not_kept_is_asked_for(tmp_path: Path) -> None:
    options = {"format": RUN_FORMAT, "model": "m", "storage": "postgresql+psycopg://me:***@host/db"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(options))
    with pytest.raises(RunError, match=r"does not keep the password .* give --storage"):
        snapshot([tmp_path])


def test_a_missing_study_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"study\.journal is missing"):
        snapshot([tmp_path])
    with pytest.raises(RunError, match="cannot be read"):
        snapshot([tmp_path], f"sqlite:///{tmp_path}/nothing.db")


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    check_installed()
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    with pytest.raises(ConfigError, match=r"pip install 'vit-compression-search\[dashboard\]'"):
        check_installed()


def test_the_dashboard_shows_a_copy_to_this_machine_alone(run: Run) -> None:
    before = (run.directory / JOURNAL).read_bytes()
    with served(run.directory, "--dashboard") as server:
        assert "snapshot" in server.said and server.url.startswith("http://127.0.0.1:")
        server.wait()
        answer, body = server.get("/api/studies")
        (study,) = json.loads(body)["study_summaries"]
        assert (answer.status, study["study_name"]) == (200, run.directory.name)
        assert server.get("/api/studies", Host="evil.example")[0].status == 400
        assert server.get("/api/studies", Host=f"localhost:{server.port}")[0].status == 200
        server.get(f"/api/studies/{study['study_id']}", method="DELETE", **{"Content-Type": "application/json"})
        assert json.loads(server.get("/api/studies")[1])["study_summaries"] == []
        assert (run.directory / JOURNAL).read_bytes() == before
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(30) in (0, 130)
