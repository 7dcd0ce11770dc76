"""Damaged files of a run end in one line that names the file, or in what is left, and never in a traceback."""

import json
import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
import pytest
from local_damage import JUNK, NESTED, damaged_json, damaged_lines, damaged_table, damaged_text
from local_launches import Silent, config_of
from local_pages import data_of
from local_runs import Fails, content
from local_searches import asked, opened, score_of, searched, space_of

import run_search
from objectives.error import Evaluation
from objectives.profile import Profile
from search import launch
from search.browse.server import Shown
from search.deploy.points import wishes
from search.layout import ANOTHER_RUN, AUDIT, RUN_FORMAT, RUNNING, SUMMARY, weights_of
from search.report.html import assemble
from search.report.page_data import content_of
from search.run.activity import running_of
from search.run.audit_file import Agreement, Audit, AuditedPoint, Steps, write_audit
from search.run.losses import check_nothing_lost
from search.run.options import stored_config
from search.run.run import Run
from search.run.weights import read_weights
from search.study.study import Study
from search.terminal.tables import fronts
from search.trial import Outcome
from spaces.errors import CheckpointError, CompressionError, RunError
from spaces.factors import Factors
from spaces.models.create import create_model
from spaces.vit import describe, resize

optuna.logging.set_verbosity(optuna.logging.WARNING)
MUTATIONS = 300
PARAMETRISATION = searched(space_of(branches=2), [{"macs": 1000}], [0.5])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every file that one may have; nothing changes it."""
    run = launch(config_of(tmp_path_factory.mktemp("whole"), trials=6, steps=1, measured_profile=True), Silent())
    figures = dict.fromkeys(("tau", "mean", "spread", "between_seeds", "test", "by_chance"), 0.5)
    agreement = Agreement(count=3, per_seed=(0.5, None), **figures)
    errors: dict[str, Any] = {"long": (0.5, 0.5), "test": (0.5, 0.5), **dict.fromkeys(("short", "mean", "spread"), 0.5)}
    point = AuditedPoint(
        number=1, label=None, kept={"macs": 0.5, "params": 0.5}, front=True, similar=False, test_mean=0.5, test_spread=0.5,
        **errors,
    )  # fmt: skip
    audit = Audit(
        factor=10, steps=Steps(short=1, long=10), seeds=(1, 2), cost="macs", points=(point,), front=agreement,
        similar=agreement, environment={},
    )  # fmt: skip
    write_audit(run.directory, audit)
    trial = {"number": 7, "label": None, "space": "contract", "since": "2026-11-27T12:00:00", "step": 1, "steps": 3}
    running = {"host": "elsewhere", "pid": 4, "trials": [{**trial, "rung": 1, "error": 0.5}]}
    (run.directory / RUNNING).write_text(json.dumps(running))
    return run.directory


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    """A copy of what is read of it."""
    directory = tmp_path / "run"
    unread = shutil.ignore_patterns("report.html", "*.png", "*.svg", "front", "[0-9]*[a-f0-9].safetensors")
    shutil.copytree(whole, directory, ignore=unread)
    return directory


def read(directory: Path) -> None:
    """All that browse, export and the checks of a launch read of a run."""
    run = Run(directory)
    _ = run.front, run.space, run.ended, run.running, run.audit, run.config.objective(directory)
    for wish in wishes(run, ["flops=60%"], [0, 1, 3], front=len(run.summary.front) > 0):
        with suppress(CompressionError):
            wish.pick()
    assembled = assemble([content_of(run, live=True)])
    json.dumps(assembled.to_json(), allow_nan=False)
    list(fronts([directory]))


def refused(path: Path, damage: Callable[[bytes, int], bytes], look: Callable[[], Any], mutations: int = MUTATIONS) -> int:
    """How many of the mutations of a file are refused; all others are read, and nothing else is raised."""
    before, lines = path.read_bytes(), list[str]()
    for seed in range(mutations):
        path.write_bytes(damage(before, seed))
        try:
            look()
        except CompressionError as error:
            lines.append(str(error))
        except Exception as error:
            raise AssertionError(f"{path.name}, mutation {seed}: {type(error).__name__}: {error}") from error
    path.write_bytes(before)
    assert not [line for line in lines if "\n" in line]
    return len(lines)


TABLES = {"pareto.json": damaged_json, "trials.csv": damaged_table, AUDIT: damaged_json}


@pytest.mark.parametrize("name", TABLES)
def test_a_damaged_table_is_refused_in_one_line_or_read(copied: Path, name: str) -> None:
    read(copied)
    assert refused(copied / name, TABLES[name], lambda: read(copied)) > 0
    read(copied)


def test_damaged_options_are_refused_in_one_line_or_read(copied: Path) -> None:
    assert refused(copied / "config.yaml", damaged_text, lambda: stored_config(copied).objective(copied)) > 0


def test_what_runs_is_read_or_nothing(copied: Path) -> None:
    assert (
        refused(
            copied / RUNNING, damaged_json, lambda: json.dumps([asdict(trial) for trial in running_of(copied)], allow_nan=False)
        )
        == 0
    )
    read(copied)


def told(directory: Path, url: str | None = None) -> Study:
    study = opened(Study(directory, PARAMETRISATION, ("error", "macs"), "additive", 0, screening=True, storage=url))
    while len(study.trials) < 8:
        proposal = asked(study)
        assert proposal.allocation is not None
        score = None if proposal.number == 3 else score_of(proposal.allocation)
        study.tell(Outcome(number=proposal.number, score=score))
    return study


def taken_up(directory: Path, sampler: str = "additive", url: str | None = None) -> Study:
    study = Study(directory, PARAMETRISATION, ("error", "macs"), sampler, 0, screening=True, storage=url)
    try:
        asked(study)
    finally:
        study.close()
    return study


def test_a_damaged_journal_is_refused_in_one_line_or_continued(tmp_path: Path) -> None:
    told(tmp_path).close()
    journal = tmp_path / "study.journal"

    def take_up() -> None:
        taken_up(tmp_path)
        shutil.rmtree(tmp_path / "trials")

    assert refused(journal, damaged_lines, take_up) > MUTATIONS / 2


def test_a_damaged_database_is_refused_in_one_line_or_continued(tmp_path: Path) -> None:
    """Its bytes, and values of its rows: sqlite takes any value in any column."""
    path = tmp_path / "studies.db"
    url = f"sqlite:///{path}"
    told(tmp_path / "run", url).close()
    before = path.read_bytes()

    def damage(content: bytes, seed: int) -> bytes:
        return damaged_text(content, seed) if seed % 5 == 0 else damaged_rows(before, path, seed)

    assert refused(path, damage, lambda: taken_up(tmp_path / "run", "random", url), MUTATIONS // 4) > 0
    path.write_bytes(before)
    taken_up(tmp_path / "run", "random", url)


def damaged_rows(content: bytes, path: Path, seed: int) -> bytes:
    """A database one value of which was replaced, or one row removed or doubled."""
    path.write_bytes(content)
    rng = random.Random(seed)
    with closing(sqlite3.connect(path)) as connection, connection:
        tables = [name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")]
        filled = [name for name in sorted(tables) if connection.execute(f"select count(*) from {name}").fetchone()[0]]
        table = rng.choice(filled)
        (row,) = rng.choice(connection.execute(f"select rowid from {table}").fetchall())
        column = rng.choice([entry[1] for entry in connection.execute(f"pragma table_info({table})")])
        value = rng.choice([None, 0, -1, 1e300, "x", "null", "[]", "{}", '"x"', "3", b"\xff", "NaN", "1" * 400])
        with suppress(sqlite3.IntegrityError):
            if seed % 5 == 1:
                connection.execute(f"delete from {table} where rowid = ?", (row,))
            else:
                connection.execute(f"update {table} set {column} = ? where rowid = ?", (value, row))
    return path.read_bytes()


def test_a_trial_that_was_begun_is_repeated_or_proposed_again(tmp_path: Path) -> None:
    study = told(tmp_path)
    begun = asked(study)
    study.close()
    path = study.folder(begun.number) / "allocation.json"
    assert refused(path, damaged_json, lambda: taken_up(tmp_path, "random")) == 0


@pytest.mark.parametrize(
    ("pattern", "damage"),
    [("*.profile.json", damaged_json), ("*.dense.json", damaged_json), ("*[0-9a-f].safetensors", damaged_text)],
)
def test_what_is_computed_once_is_refused_or_read(whole: Path, tmp_path: Path, pattern: str, damage: Any) -> None:
    """Or computed anew, where it is of something else."""
    run = Run(whole)
    model, space = create_model(run.config.model), run.space
    (path,) = (whole / "factors").glob(pattern)
    path = Path(shutil.copy(path, tmp_path))
    mark = path.name.partition(".")[0]

    def look() -> None:
        if "profile" in pattern:
            profile = Profile.load(path, mark, space)
            assert profile is None or profile.errors
        elif "dense" in pattern:
            assert Evaluation.load(path).error <= 1
        else:
            factors = Factors.load(path, model, space, mark)
            factors.build(space.decode(0.5, lambda allocation: sum(allocation.values()) / sum(space.identity().values())))

    look()
    assert refused(path, damage, look) > 0


def test_damaged_weights_are_made_again(whole: Path, tmp_path: Path) -> None:
    run, model = Run(whole), create_model(Run(whole).config.model)
    number = next(point.number for point in run.summary.front if point.label != "dense")
    allocation = run.trial(number).allocation
    resize(model, describe(model, run.config.study.space, run.config.study.multiple), allocation)
    before = weights_of(whole, number).read_bytes()
    path = tmp_path / "weights.safetensors"
    path.write_bytes(before)
    assert read_weights(path, model) is not None
    for seed in range(MUTATIONS):
        path.write_bytes(damaged_text(before, seed))
        if (state := read_weights(path, model)) is not None:
            model.load_state_dict(state)
    assert read_weights(tmp_path / "none", model) is None
    path.write_bytes(before[:-4])
    assert read_weights(path, model) is None


@pytest.mark.parametrize("text", ["", "null", "[]", '"x"', "3", NESTED, f'{{"format": {RUN_FORMAT}, "spaces": 3}}', "\xff"])
@pytest.mark.parametrize("name", ["pareto.json", AUDIT])
def test_a_file_that_is_something_else_is_named(copied: Path, name: str, text: str) -> None:
    (copied / name).write_text(text, encoding="latin-1")
    with pytest.raises(RunError, match=rf"{name} cannot be read \(.*\): remove it"):
        read(copied)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda summary: summary.pop("front"), "front is missing"),
        (lambda summary: summary["dense"].update(macs=0), "dense.macs must be a number above 0, got 0"),
        (
            lambda summary: summary["front"][0].update(number="1"),
            r"front\[0\].number must be a whole number, 0 or more, got '1'",
        ),
        (
            lambda summary: summary["front"][0]["allocation"].popitem(),
            r"front\[0\].allocation has not the sites of space contract",
        ),
        (lambda summary: summary["best"].append(summary["best"][0]), "best must have one entry for each of 1 targets, got 2"),
        (lambda summary: summary["best"][0].update(number=99), "trial 99 of pareto.json is not there"),
    ],
)
def test_the_place_of_what_is_wrong_is_told(copied: Path, change: Callable[[Any], Any], words: str) -> None:
    summary = json.loads((copied / "pareto.json").read_text())
    change(summary)
    (copied / "pareto.json").write_text(json.dumps(summary))
    with pytest.raises(RunError, match=words):
        Run(copied)


def test_the_line_of_a_table_is_told(copied: Path) -> None:
    lines = (copied / "trials.csv").read_text().splitlines()
    (copied / "trials.csv").write_text("\n".join([*lines, lines[2]]))
    with pytest.raises(RunError, match=rf"trials.csv: line {len(lines) + 1}: number must be of one trial alone, got '1'"):
        Run(copied)
    (copied / "trials.csv").write_text("\n".join([lines[0], lines[1].replace("COMPLETE", "DONE"), *lines[2:]]))
    with pytest.raises(RunError, match=r"line 2: state must be one of COMPLETE, PRUNED, FAIL, got 'DONE'"):
        Run(copied)


# Every command


@pytest.mark.parametrize("command", ["export", "audit", "launch", "inspect"])
def test_options_without_a_model_are_one_line(fails: Fails, copied: Path, command: str) -> None:
    text = (copied / "config.yaml").read_text()
    (copied / "config.yaml").write_text("\n".join(line for line in text.splitlines() if not line.startswith("model:")))
    assert f"{copied / 'config.yaml'} names no model" in fails(command, *(["--output"] if command == "launch" else []), copied)


OPTIONS = [
    "",
    "[]",
    "steps: x",
    "steps: .inf",
    f"trials: {10**400}",
    NESTED[:20_000],
    "a: &a [*a]",
    "lr: !!python/object:os.x 1",
]


@pytest.mark.parametrize("text", OPTIONS)
def test_options_that_are_none_are_one_line(fails: Fails, copied: Path, text: str) -> None:
    (copied / "config.yaml").write_text(f"format: {RUN_FORMAT}\nmodel: vit_tiny_patch16_224\n{text}" if ":" in text else text)
    for command in (("launch", "--output", copied), ("export", copied, "--target", "flops=60%"), ("audit", copied)):
        assert str(copied / "config.yaml") in fails(*command)


def renumbered(path: Path, number: int | None) -> None:
    """Give a file of a run another format's number, or none."""
    if path.suffix == ".json":
        rest = {key: value for key, value in json.loads(path.read_text()).items() if key != "format"}
        path.write_text(json.dumps(rest if number is None else {**rest, "format": number}))
    else:
        lines = [line for line in path.read_text().splitlines() if not line.startswith("format:")]
        path.write_text("\n".join(lines if number is None else [*lines, f"format: {number}"]))


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (
            RUN_FORMAT + 1,
            f"was written by a newer version (format {RUN_FORMAT + 1}, this one reads {RUN_FORMAT}): pip install -U",
        ),
        (
            RUN_FORMAT - 1,
            f"was written by an older version (format {RUN_FORMAT - 1}, this one reads {RUN_FORMAT}): {ANOTHER_RUN}",
        ),
        (
            None,
            "has no format number: an older version or another program wrote it",
        ),
    ],
)
def test_a_run_of_another_format_is_one_line(fails: Fails, copied: Path, number: int | None, words: str) -> None:
    """Each file by itself: pareto.json is what readers look at first, config.yaml what a launch does."""
    commands = [
        ("browse", "--text", copied),
        ("export", copied, "--trial", 1),
        ("audit", copied),
        ("launch", "--output", copied),
    ]
    renumbered(copied / SUMMARY, number)
    for command in commands:
        assert f"{copied / SUMMARY} {words}" in fails(*command)
    renumbered(copied / SUMMARY, RUN_FORMAT)
    renumbered(copied / "config.yaml", number)
    for command in (*commands[1:], ("inspect", copied)):
        assert f"{copied / 'config.yaml'} {words}" in fails(*command)


def test_one_run_that_is_damaged_is_shown_beside_the_other(
    copied: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for junk in (
        *JUNK[:8],
        {"format": RUN_FORMAT, "front": []},
        {**json.loads((whole / "pareto.json").read_text()), "dense": {}},
    ):
        (copied / "pareto.json").write_text(json.dumps(junk))
        _, found = Shown([copied, whole]).now()
        assert [run["name"] for run in data_of(found)] == [whole.name]
        assert str(copied) in found.parts["head"] and "pareto.json cannot be read" in found.parts["head"]
    assert run_search.main(["browse", "--text", str(copied), str(whole)]) == 0
    printed = capsys.readouterr().out
    assert (
        "Pareto front" in printed
        and f"{copied} cannot be shown: {copied}/pareto.json cannot be read (dense.macs is missing)" in printed
    )


def test_a_run_that_is_damaged_while_it_is_served_comes_back(copied: Path, whole: Path) -> None:
    shown = Shown([copied, whole])
    assert len(data_of(shown.now()[1])) == 2
    for name in ("pareto.json", "trials.csv", "config.yaml", AUDIT):
        before = (copied / name).read_bytes()
        (copied / name).write_bytes(b"[")
        assert len(data_of(shown.now()[1])) == 1 and name in shown.now()[1].parts["head"]
        (copied / name).write_bytes(before)
        assert len(data_of(shown.now()[1])) == 2


def test_nonsense_that_runs_is_nothing(copied: Path) -> None:
    for junk in (*JUNK, {"host": "elsewhere", "pid": 10**12, "trials": []}, {"host": "elsewhere", "pid": 1, "trials": [None]}):
        (copied / RUNNING).write_text(json.dumps(junk))
        assert running_of(copied) == ()


# Results that were lost


@pytest.mark.parametrize(
    "damage",
    [
        lambda journal: journal.unlink(),
        lambda journal: journal.write_bytes(b""),
        lambda journal: journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:-1])),
        lambda journal: journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:3])),
        lambda journal: journal.write_bytes(journal.read_bytes()[:40]),
    ],
    ids=["missing", "empty", "without its last line", "without most", "torn in its first line"],
)
def test_a_journal_that_has_lost_trials_is_refused_and_nothing_is_written(fails: Fails, copied: Path, damage: Any) -> None:
    damage(copied / "study.journal")
    (copied / RUNNING).unlink()
    before = content(copied)
    line = fails("launch", "--output", copied)
    assert "study.journal lacks" in line and "of the 6 trials" in line
    assert "restore it from a backup, or move trials.csv and pareto.json away" in line
    assert content(copied) == before


def test_what_is_left_is_continued_when_the_tables_were_moved_away(copied: Path, whole: Path) -> None:
    """And the trials that were lost are run again as they were."""
    journal = copied / "study.journal"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:4]))
    for name in ("trials.csv", "pareto.json"):
        (copied / name).rename(copied / f"{name}.lost")
    options = config_of(whole.parent, trials=6, steps=1, measured_profile=True, output=str(copied))
    again, before = launch(options, Silent()), Run(whole)
    times = ["seconds", "ended"]
    assert again.trials.drop(columns=times).equals(before.trials.drop(columns=times))


def test_a_database_that_has_lost_trials_is_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    told(tmp_path / "run", url).close()
    (tmp_path / "run" / "trials.csv").write_text("number\n" + "\n".join(map(str, range(8))))
    opened(Study(tmp_path / "run", PARAMETRISATION, ("error", "macs"), "random", 0, storage=url)).check_nothing_lost()
    (tmp_path / "studies.db").unlink()
    lost = opened(Study(tmp_path / "run", PARAMETRISATION, ("error", "macs"), "random", 0, storage=url))
    with pytest.raises(
        RunError, match=r"the study 'run' in sqlite:///.*studies.db lacks 8 of the 8 trials .*restore it from a"
    ):
        lost.check_nothing_lost()


def test_a_table_that_cannot_be_read_says_nothing_of_what_was_lost(tmp_path: Path) -> None:
    (tmp_path / "trials.csv").write_bytes(b"\xff\xff\n\x00")
    (tmp_path / "pareto.json").write_text("[]")
    check_nothing_lost(tmp_path, [], "the journal", "restore it")
    (tmp_path / "trials.csv").write_text("number\n0\n4\n")
    with pytest.raises(RunError, match=r"the journal lacks 1 of the 2 trials .*, trial 4 for one: restore it, or move"):
        check_nothing_lost(tmp_path, [0], "the journal", "restore it")
    check_nothing_lost(tmp_path, [0, 4, 5], "the journal", "restore it")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda lines: [*lines, lines[3]], r"line 10 cannot be read \(trial 2 is in line 4 already\)"),
        (lambda lines: [*lines[:4], "null", *lines[4:]], r"line 5 cannot be read \(it must be an object, got None\)"),
        (
            lambda lines: [*lines[:4], '{"op_code": 99}', *lines[4:]],
            r"line 5 cannot be read \(op_code must be one of 0, 2, 4, got 99\)",
        ),
        (lambda lines: lines[1:], r"line 1 cannot be read \(it does not begin the study"),
        (
            lambda lines: [lines[0], lines[1].replace('"macs":', '"macs":"x","was":'), *lines[2:]],
            r"line 2 .*score.costs.macs must be",
        ),
        (
            lambda lines: [lines[0], lines[1].replace('"number":0', '"number":null'), *lines[2:]],
            r"line 2 .*user_attrs.number must be",
        ),
        (lambda lines: [*lines[:2], "", *lines[2:]], r"line 3 cannot be read \(Expecting value"),
        (lambda lines: [*lines[:2], NESTED, *lines[2:]], r"line 3 cannot be read \(lists or objects are nested too deeply"),
    ],
    ids=["doubled", "null", "unknown", "beginning", "type", "number", "blank", "nested"],
)
def test_the_line_of_a_journal_is_told(tmp_path: Path, change: Callable[[list[str]], list[str]], words: str) -> None:
    told(tmp_path).close()
    journal = tmp_path / "study.journal"
    journal.write_text("\n".join(change(journal.read_text().splitlines())) + "\n")
    before = content(tmp_path)
    with pytest.raises(RunError, match=rf"study\.journal, {words}"):
        taken_up(tmp_path)
    assert content(tmp_path) == before


def test_a_profile_of_other_sites_is_refused(whole: Path, tmp_path: Path) -> None:
    (path,) = (whole / "factors").glob("*.profile.json")
    text = path.read_text().replace("blocks.0.attn.qk", "blocks.9.attn.qk")
    (tmp_path / path.name).write_text(text)
    with pytest.raises(CheckpointError, match="has not the sites and the sizes of the model"):
        Profile.load(tmp_path / path.name, path.name.partition(".")[0], Run(whole).space)


def test_a_run_says_which_of_its_files_is_missing(copied: Path) -> None:
    (copied / "config.yaml").unlink()
    with pytest.raises(RunError, match=r"config\.yaml is missing: restore it"):
        stored_config(copied)
