"""No password of a database is shown, in whatever form its URL was given; everything else of it is."""

import json
import sys
from pathlib import Path

import pytest
import yaml
from local_launches import Silent, config_of
from local_runs import Fails

import run_search
from search import launch
from search.config import SearchConfig
from search.masking import is_masked, masked, masked_command, secrets_of, without_secrets
from search.study.database import open_study, reason
from spaces.errors import RunError

URLS = {
    "postgresql://u:s3cret@h/d": "postgresql://u:***@h/d",
    "postgresql+psycopg://u:s3cret@h:5432/d?sslmode=require": "postgresql+psycopg://u:***@h:5432/d?sslmode=require",
    "redis://:s3cret@localhost": "redis://:***@localhost",
    "postgresql://u:s3@cret@h/d": "postgresql://u:***@h/d",
    "postgresql://u:s3/cr:et@h/d": "postgresql://u:***@h/d",
    "postgresql://u:s3?cr=et@h/d": "postgresql://u:***@h/d",
    "postgresql://u:s3@x?cr=et@h/d": "postgresql://u:***@h/d",
    "postgresql://u@server:s3cret@h/d": "postgresql://u@server:***@h/d",
    "postgresql://u:s3%40cret@h/d": "postgresql://u:***@h/d",
    "postgresql://u:s3 cret@h/d": "postgresql://u:***@h/d",
    "postgresql://h/d?user=a&password=s3cret": "postgresql://h/d?user=a&password=***",
    "postgresql://h/d?passwd=s3cret&user=a": "postgresql://h/d?passwd=***&user=a",
    "postgresql://h/d?sslpassword=s3cret": "postgresql://h/d?sslpassword=***",
    "postgresql://h/d?p%61ssword=s3cret": "postgresql://h/d?p%61ssword=***",
    "mysql://h/d?PWD=s3cret;charset=utf8": "mysql://h/d?PWD=***;charset=utf8",
    "mysql://h/d?access_token=s3cret&api_key=s3cret&client_secret=s3cret":
        "mysql://h/d?access_token=***&api_key=***&client_secret=***",
    "mssql+pyodbc:///?odbc_connect=UID%3Du%3BPWD%3Ds3cret": "mssql+pyodbc:///?odbc_connect=***",
    "u:s3cret@h/d": "u:***@h/d",
    "//u:s3cret@h/d": "//u:***@h/d",
    "postgresql://h/d;password=s3cret": "postgresql://h/d;password=***",
    "mysql://h/d?pw=s3cret": "mysql://h/d?pw=***",
    "sqlite:////data/key=3/a.db": "sqlite:////data/key=3/a.db",
    "postgresql://h:5432/d?user=me@there": "postgresql://h:5432/d?user=me@there",
    "postgresql://h/d": "postgresql://h/d",
    "sqlite:////data/a:b@c.db": "sqlite:////data/a:b@c.db",
    "studies.db": "studies.db",
}  # fmt: skip


@pytest.mark.parametrize("url", URLS)
def test_a_url_is_shown_without_what_is_secret_in_it(url: str) -> None:
    assert masked(url) == URLS[url] == masked(masked(url))
    assert is_masked(masked(url)) == (masked(url) != url)
    assert not is_masked(url)


@pytest.mark.parametrize(
    ("words", "secret"), [("host=h password=s3cret user=u", "s3cret"), ("h PWD = 's3 cret' u", "'s3 cret'")]
)
def test_words_in_place_of_a_url_are_shown_without_a_password(words: str, secret: str) -> None:
    assert masked(words) == words.replace(secret, "***") == masked(masked(words))
    assert secret in secrets_of(words) and is_masked(masked(words)) and not is_masked(words)
    assert masked_command(["--storage", words]) == ["--storage", masked(words)]


@pytest.mark.parametrize("form", ["--storage {}", "--storage={}", "--stor {}", "launch {}", "--config=x={}"])
def test_a_command_is_kept_without_it(form: str) -> None:
    for url in (url for url in URLS if URLS[url] != url):
        words = [word.format(url) for word in form.split(" ")]
        shown = masked_command(["run_search.py", *words, "--trials", "3"])
        assert "s3" not in " ".join(shown) and "***" in shown[len(words)]
        assert shown[-2:] == ["--trials", "3"]
    assert masked_command(["launch", "--output", "a@b:c"]) == ["launch", "--output", "a@b:c"]


def test_what_a_driver_repeats_of_a_url_is_hidden() -> None:
    url = "postgresql://u:s3%40cret@h/d?password=other"
    for text in ("for s3@cret: no", "for s3%40cret: no", f"in {url}: no", "bad 'other': no", "try postgresql://a:s3@cret@b/c"):
        hidden = without_secrets(text, url)
        assert "cret" not in hidden and "other" not in hidden
    assert without_secrets("another word of mothers", url) == "another word of mothers"
    assert reason(ValueError("no s3@cret"), url) == "no ***"
    assert "s3@cret" in secrets_of(url)


def test_a_password_with_an_at_sign_is_told_how_to_be_written(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="write %40") as caught:
        open_study(tmp_path / "run", 2, "postgresql+psycopg://u:s3@cret@127.0.0.1:1/d")
    assert "cret" not in str(caught.value)


@pytest.mark.parametrize("url", ["postgresql://u:s3cret@127.0.0.1:1/d", "mysql+pymysql://127.0.0.1:1/d?user=a&passwd=s3cret"])
def test_the_stored_options_lack_it_and_a_continuation_asks_for_it(tmp_path: Path, fails: Fails, url: str) -> None:
    config = SearchConfig.from_flat({"model": "vit_tiny_patch16_224", "storage": url, "output": str(tmp_path)})
    config.dump(tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text()
    assert "s3cret" not in text and yaml.safe_load(text)["storage"] == masked(url)
    line = fails("launch", "--output", tmp_path)
    assert "does not keep the password" in line and "give --storage with it again" in line


@pytest.mark.parametrize("words", [("--storages", "URL"), ("--storage", "URL", "--trails", "URL"), ("--trials", "URL")])
def test_wrong_arguments_do_not_show_it(fails: Fails, words: tuple[str, ...]) -> None:
    url = "postgresql://u:s3cret@h/d?password=s3cret"
    assert "s3cret" not in fails("launch", *(url if word == "URL" else word for word in words))


def test_nothing_that_a_run_writes_holds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """sqlite takes no password; pysqlite is given an option that it does not know, and the driver is not asked."""
    url = f"sqlite:///{tmp_path / 'studies.db'}?password=s3cret"
    monkeypatch.setattr("sqlalchemy.dialects.sqlite.pysqlite.SQLiteDialect_pysqlite.create_connect_args", _ignored)
    monkeypatch.setattr(sys, "argv", ["run_search.py", "launch", f"--storage={url}"])
    run = launch(config_of(tmp_path, trials=2, steps=1, storage=url), Silent())
    written = [path for path in run.directory.rglob("*") if path.is_file() and b"s3cret" in path.read_bytes()]
    assert written == []
    assert json.loads((run.directory / "env.json").read_text())["command"].endswith("password=***'")
    assert run_search.main(["browse", str(run.directory), "--text"]) == 0


def _ignored(dialect: object, url: object) -> tuple[list[str], dict[str, object]]:
    return [str(url.database)], {"check_same_thread": False}  # type: ignore[attr-defined]
