"""What somebody may do who writes to the database: choose what is computed, and no more.

Looking at it is safe whatever it holds. Each test plays one who has written there: with a value
of another kind in each column, with a name of his own code in each place that takes a name, with
text that steers a terminal, with paths. What the dashboard is asked by others is in
`tests/cli/test_access.py`, what workers import in `tests/service/test_launchers.py`.
"""

import json
import random
import re
import shlex
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from qsched import api
from qsched.cli import dashboard, main
from qsched.errors import QschedError
from qsched.proof import outcome
from qsched.report import gallery, page
from qsched.service import stored_study as studies
from qsched.service.evaluator import Evaluator
from qsched.service.storage import Storage
from qsched.service.worker import Worker
from tests.cli.test_dashboard import call
from tests.support import fakes
from tests.support.outcomes import whole

LOOKING = (
    ("status",),
    ("status", "fake"),
    ("status", "fake", "--json"),
    ("report", "fake", "--out", "out"),
    ("export", "fake", "--out", "out", "--force"),
)
STEERING = "\x1b]0;owned\x07\x1b[2J\x9b1A\u202e[bold red]x[/]"
EVIL = "evil:attack"


@dataclass(frozen=True)
class Answer:
    """What a command printed, and the QschedError that ended it, if one did."""

    printed: str
    error: str = ""


def run(*arguments: str) -> Answer:
    """A command as `main` runs it; what a person would see as a traceback is raised."""
    result = CliRunner().invoke(main.app, list(arguments), catch_exceptions=True)
    if isinstance(result.exception, QschedError):
        return Answer(result.output, str(result.exception))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Answer(result.output)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database of a study with trials, worker, pictures and a verdict."""
    folder = tmp_path_factory.mktemp("finished")
    storage = Storage(f"sqlite:///{folder}/q.db")
    study = studies.create(storage, fakes.study(folder))
    evaluator = Evaluator(fakes.FakeGenerator(), fakes.FakeScorers(), study.definition.calibration)
    assert Worker(study, evaluator, gallery=gallery.Gallery(study)).run()
    outcome.keep(study, whole("not_shown"))
    gallery.publish(study)
    return folder / "q.db"


@pytest.fixture
def database(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in the current folder, and the one that commands look at."""
    copy = tmp_path / "q.db"
    with closing(sqlite3.connect(finished)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QSCHED_STORAGE", f"sqlite:///{copy}")
    return copy


def write(database: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(database, timeout=20)) as connection:
        assert connection.execute(statement, values).rowcount
        connection.commit()


def columns(database: Path) -> Iterator[tuple[str, str]]:
    """Each column of each table that has a row."""
    with closing(sqlite3.connect(database)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        for (table,) in tables.fetchall():
            if table in ("alembic_version", "version_info"):
                continue  # whose database it is: tests/service/test_database.py
            if connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]:
                for column in connection.execute(f"PRAGMA table_info({table})").fetchall():
                    yield table, column[1]


NONSENSE: tuple[Any, ...] = (
    "",
    "nonsense",
    "{",
    "null",
    "[]",
    '{"a": 1}',
    '"text"',
    "[" * 100_000,
    "NaN",
    "9" * 5_000,
    '{"version": "x", "study": "fake", "tables": {"name": 3}, "best": [1e999]}',
    -1,
    2**62,
    1e300,
    float("inf"),
    b"\xff\xfe\x00",
    "../../../escaped",
    STEERING,
)


@pytest.mark.slow
def test_nonsense_in_any_column_is_one_line(
    database: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In each column, drawn by a seed; the pages' drawings, which take long and read only what the
    page reads too, are left out."""
    monkeypatch.setattr(page, "_figures", lambda *_: {})
    draw, broken = random.Random(0), 0
    for table, column in columns(database):
        for value in draw.sample(NONSENSE, 1):
            copy = database.with_name(f"{table}-{column}-{broken}.db")
            monkeypatch.setenv("QSCHED_STORAGE", f"sqlite:///{copy}")
            with (
                closing(sqlite3.connect(finished)) as source,
                closing(sqlite3.connect(copy)) as target,
            ):
                source.backup(target)
                first = f"SELECT min(rowid) FROM {table}"
                try:
                    target.execute(
                        f'UPDATE {table} SET "{column}" = ? WHERE rowid = ({first})', [value]
                    )
                except sqlite3.Error:
                    continue  # not even SQLite takes it there
                target.commit()
            for command in LOOKING[1:]:
                try:
                    answer = run(*command)
                except Exception as error:
                    raise AssertionError(f"{table}.{column} = {value!r:.80}: {command}") from error
                assert "\n" not in answer.error.strip(), (table, column, value, command)
                assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", answer.printed)
                broken += bool(answer.error)
    assert broken > 50  # it was nonsense


@pytest.mark.parametrize("column", ["definition", "fingerprint", "accepted", "outcome"])
def test_documents_of_another_shape_are_one_line(
    url: str, tmp_path: Path, column: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On both databases; PostgreSQL itself sees to it that they are JSON."""
    monkeypatch.setenv("QSCHED_STORAGE", url)
    storage = Storage(url)
    studies.create(storage, fakes.study(tmp_path))
    statement = sa.text(f"UPDATE qsched_studies SET {column} = :value")
    for value in ("[1]", '"text"', "7"):
        with storage.database.engine.begin() as connection:
            connection.execute(statement, {"value": value})
        error = run("report", "fake", "--out", str(tmp_path / "out")).error
        assert "can't be read" in error
        assert "\n" not in error


UNREADABLE = {
    "no definition": "UPDATE qsched_studies SET definition = '{}' WHERE name = 'fake'",
    "of another": "UPDATE qsched_studies SET definition = replace(definition, '\"fake\"', '\"x\"') "
    "WHERE name = 'fake'",
    "no fingerprint": "UPDATE qsched_studies SET fingerprint = '7' WHERE name = 'fake'",
    "no score": "UPDATE qsched_slots SET state = 'finished', finished = 1 WHERE number = 0 "
    "AND study = (SELECT id FROM qsched_studies WHERE name = 'fake')",
}
"""What of a study can't be read, and how it came to be."""


@pytest.mark.parametrize("what", UNREADABLE)
def test_a_study_that_cannot_be_read_is_in_nobodys_way(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """It is a line in the list of all, and can be removed."""
    monkeypatch.setenv("QSCHED_STORAGE", url)
    monkeypatch.setenv("COLUMNS", "300")
    storage = Storage(url)
    for name in ("before", "fake", "later"):
        studies.create(storage, fakes.study(tmp_path / name).changed(name=name))
    with storage.database.engine.begin() as connection:
        assert connection.execute(sa.text(UNREADABLE[what])).rowcount == 1
    printed = run("status").printed
    assert [line.split()[0] for line in printed.splitlines()[1:]] == ["before", "later", "fake:"]
    listed = json.loads(run("status", "--json").printed)
    assert [row["study"] for row in listed] == ["before", "later", "fake"]
    assert "restore it from a backup" in listed[-1]["unreadable"]
    assert "restore it from a backup" in run("status", "fake").error
    assert ("wrong  fake" in run("doctor").printed) == (what != "no score")
    assert "deleted   fake" in run("delete", "fake", "--yes").printed
    assert storage.study_names() == ["before", "later"]
    assert [each.study_name for each in storage.database.optuna.get_all_studies()] == [
        "before",
        "later",
    ]


@pytest.mark.parametrize("name", ["x; touch ran", "$(touch ran)", "a'b", "two words"])
def test_a_printed_command_does_what_it_says(
    database: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a study that somebody named in the database: pasted, it is one argument of qsched."""
    monkeypatch.setenv("COLUMNS", "300")
    write(database, "UPDATE qsched_studies SET name = ?", name)
    printed = run("status").printed
    pasted = shlex.split(printed.partition("or remove it: ")[2])
    assert pasted == ["qsched", "delete", name]
    assert "deleted" in run(*pasted[1:], "--yes").printed


def redefined(database: Path, change: str, value: object) -> None:
    """The stored definition with another value at a path of keys."""
    with closing(sqlite3.connect(database)) as connection:
        (text,) = connection.execute("SELECT definition FROM qsched_studies").fetchone()
    definition = json.loads(text)
    *path, last = change.split(".")
    place = definition
    for key in path:
        place = place[int(key) if isinstance(place, list) else key]
    place[int(last) if isinstance(place, list) else last] = value
    write(database, "UPDATE qsched_studies SET definition = ?", json.dumps(definition))


NAMES_OF_CODE = (
    "tables.model.name",
    "tables.model.source",
    "tables.model.full_precision",
    "tables.quantization.backend",
    "tables.objective.terms.0.scorer",
    "tables.validation.metrics.0",
    "tables.prompts.reader",
    "tables.execution.launcher",
)


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module in the current folder and on the path; the file that it writes when it runs."""
    ran = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(ran)!r}, 'w').close()\ndef attack(*_): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield ran
    sys.modules.pop("evil", None)


@pytest.mark.parametrize("place", NAMES_OF_CODE)
def test_code_that_the_database_names_is_not_run(database: Path, evil: Path, place: str) -> None:
    redefined(database, "folder", str(database.parent))  # where version 0.1 looked first
    redefined(database, place, EVIL)
    write(database, "UPDATE qsched_slots SET state = 'waiting' WHERE number = 5")
    for command in LOOKING:
        run(*command)
    for command in (("work", "fake", "--idle-exit"), ("validate", "fake"), ("retry", "fake")):
        run(*command)
    assert run("delete", "fake", "--yes").error == ""
    assert not evil.exists()


def test_code_runs_with_the_study_file_or_by_its_name(database: Path, evil: Path) -> None:
    redefined(database, "tables.model.source", EVIL)
    storage = Storage(f"sqlite:///{database}")
    remedy = r"with the study file in NAME's place, or with --allow-code evil"
    study = api.load(storage, "fake")
    with study.definition.code(), pytest.raises(QschedError, match=remedy):
        study.definition.fingerprint()
    file = fakes.study_file(database.parent / "files")
    named = api.load(storage, "fake", file=api.load_study(file))
    assert named.definition.allowed == frozenset()  # that file names no such code
    with pytest.raises(QschedError, match=remedy):
        named.definition.fingerprint()
    assert not evil.exists()
    assert api.load(storage, "fake", allow=["evil"]).definition.fingerprint()
    assert evil.exists()


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("tables.model.pipeline", "X(__import__('os').system('id'))"),
        ("tables.sampling.call", {"prompt=print(1), x": 1}),
        ("tables.sampling.none", ["x=exit()"]),
        ("tables.model.scheduler", {"class": "A\nimport os", "x": 1}),
        ("tables.name", "../../escaped"),
        ("tables.name", "other"),
        ("calibration", [["a", -1]]),
        ("calibration", []),
    ],
)
def test_what_becomes_code_or_a_path_is_a_name(database: Path, place: str, value: object) -> None:
    redefined(database, place, value)
    for command in LOOKING[1:]:
        assert "definition" in run(*command).error
    assert not (database.parent / "out").exists()


@pytest.mark.parametrize(
    "config",
    [
        "3",
        "{",
        '{"_class_name": "PreconditionedX:\\n    pass\\nimport evil"}',
        '{"_class_name": "PreconditionedDiffusionPipeline"}',
        '{"_class_name": "PreconditionedLCMScheduler", "_stock_module": "evil"}',
        '{"_class_name": "PreconditionedLCMScheduler", "_stock_module": "os; import evil"}',
        "{}",
    ],
)
def test_an_export_is_of_a_scheduler_of_diffusers(
    database: Path, config: str, finished: Path
) -> None:
    stored = replace(whole("not_shown"), scheduler=config).to_dict()
    write(database, "UPDATE qsched_studies SET outcome = ?", json.dumps(stored))
    assert "the stored scheduler" in run("export", "fake", "--out", "out").error
    assert not Path("out").exists()


def test_text_from_the_database_does_not_steer_the_terminal(database: Path) -> None:
    write(database, "UPDATE qsched_slots SET reason = ?, state = 'parked'", STEERING)
    write(
        database, "UPDATE qsched_workers SET host = ?, hardware = ?, state = 'working', seen = ?",
        STEERING, json.dumps({"device": STEERING}), 4e9,
    )  # fmt: skip
    for command in LOOKING[:3]:
        printed = run(*command).printed
        assert "owned" in printed
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", printed)
        assert "[bold red]" in printed or "--json" in command
    assert json.loads(run("status", "fake", "--json").printed)["reasons"]["0"]


def test_nothing_is_written_or_removed_outside_the_store(database: Path) -> None:
    """Ids of artifacts are paths in the store, and a definition may name another place."""
    precious = database.parent / "precious.txt"
    precious.write_text("mine")
    storage = Storage(f"sqlite:///{database}")
    study = api.load(storage, "fake")
    optuna, number = storage.database.optuna, study.trials.study._study_id
    for name in ("../precious.txt", str(precious), "", None, 3):
        meta = {"artifact_id": name, "filename": "held-out.png", "mimetype": "x", "encoding": None}
        optuna.set_study_system_attr(number, f"artifacts:{name}", json.dumps(meta))
    optuna.set_study_system_attr(number, "artifacts:odd", json.dumps(["odd"]))
    optuna.set_study_system_attr(number, "artifacts:odder", 7)
    elsewhere = database.parent / "elsewhere"
    redefined(database, "tables.gallery.store", str(elsewhere))
    for command in (*LOOKING, ("delete", "fake", "--yes")):
        assert run(*command).error == ""
    assert precious.read_text() == "mine"
    assert not elsewhere.exists()


def test_the_dashboard_says_what_it_cannot_read(
    database: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(database, "UPDATE trial_params SET distribution_json = '{'")
    app = dashboard.application(Storage(f"sqlite:///{database}"))
    status, body = call(app, "GET", "/api/studies/1")
    assert status.startswith("500")
    assert b"reason" in body
    (message,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert message.startswith("Exception: Expecting property name")
    assert "\n" not in message
