"""Studies and workers of a database, its schema, and what is said when something is wrong."""

import sqlite3
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa

from qsched.errors import StorageError
from qsched.service import stored_study as studies
from qsched.service.database import Database
from qsched.service.queue import Queue
from qsched.service.schema import SCHEMA_VERSION, Incarnation, Score, Table
from qsched.service.storage import NEW, Storage
from tests.conftest import content
from tests.support import fakes


@pytest.fixture
def storage(url: str) -> Storage:
    storage = Storage(url)
    storage.add_study("one", "{}", {"sampling.steps": 4}, budget=3)
    return storage


@pytest.fixture
def one(storage: Storage) -> Incarnation:
    record = storage.study("one")
    assert record is not None
    return record.study


def test_a_study_is_stored_once(storage: Storage) -> None:
    storage.add_study("one", "another", {"sampling.steps": 9}, budget=9)
    record = storage.study("one")
    assert record is not None
    assert (record.definition, record.fingerprint) == ("{}", {"sampling.steps": 4})
    assert storage.study("two") is None
    assert storage.study_names() == ["one"]


def test_the_outcome_is_kept(storage: Storage, one: Incarnation) -> None:
    assert storage.outcome(one) is None
    storage.conclude(one, {"verdict": "improved"})
    assert storage.outcome(one) == {"verdict": "improved"}


def test_an_accepted_difference_is_recorded_with_both_values(
    storage: Storage, one: Incarnation
) -> None:
    storage.redefine(one, "new", {"sampling.steps": 2}, {"sampling.steps": (4, 2)})
    record = storage.record(one)
    assert (record.definition, record.fingerprint) == ("new", {"sampling.steps": 2})
    assert record.accepted == {"sampling.steps": [4, 2]}


def test_workers_are_known_with_their_speed(storage: Storage, one: Incarnation) -> None:
    hardware = {"device": "cuda A", "torch": "2.10"}
    first = storage.enter(one, "w1", machine="a", host="a", pid=1, hardware=hardware)
    second = storage.enter(one, "w2", machine="b", host="b", pid=2, hardware={"device": "cpu"})
    assert first == second == hardware
    storage.seen("w1", 30, 10.0)
    storage.seen("w2", 0, 0.0, "refused")
    first_one, other = storage.workers(one)
    assert (first_one.id, first_one.host, first_one.pid) == ("w1", "a", 1)
    assert first_one.images_per_second == 3.0
    assert 0 <= first_one.idle < 30
    assert (other.state, other.images_per_second) == ("refused", 0.0)


def test_a_self_test_is_kept_by_fingerprint_and_hardware(storage: Storage) -> None:
    here, there = {"device": "cuda A", "torch": "2.10"}, {"device": "cuda B", "torch": "2.10"}
    assert storage.self_test("one", here) is None
    storage.keep_self_test("one", here, {"caches": []})
    storage.keep_self_test("one", here, {"caches": ["embeddings"]})
    assert storage.self_test("one", dict(reversed(here.items()))) == {"caches": ["embeddings"]}
    assert storage.self_test("one", there) is None
    assert storage.self_test("two", here) is None


def test_leases_of_dead_processes_end_at_once(storage: Storage, one: Incarnation) -> None:
    queue = Queue(storage.database, one)
    for worker in ("dead", "living"):
        storage.enter(one, worker, machine=f"of {worker}", host="h", pid=1, hardware={})
        queue.claim(worker, 60)
    assert storage.bury(one, lambda machine: machine == "of dead") == 1
    assert [row.state for row in storage.workers(one)] == ["lost", "working"]
    queue.counts()
    assert [slot.worker for slot in queue.slots()] == [None, "living", None]


def test_optunas_tables_live_in_the_same_database(storage: Storage) -> None:
    optuna.create_study(storage=storage.database.optuna, study_name="another")
    assert {"qsched_slots", "trials"} <= set(sa.inspect(storage.database.engine).get_table_names())


def test_sqlite_keeps_a_write_ahead_log_and_waits_for_the_disk(tmp_path: Path) -> None:
    storage = Storage(f"sqlite:///{tmp_path}/q.db")
    for engine in (storage.database.engine, storage.database.optuna.engine):
        with engine.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL


def test_another_schema_is_refused(storage: Storage, url: str) -> None:
    with storage.database.engine.begin() as connection:
        connection.execute(sa.text("UPDATE qsched_schema SET version = 99"))
    with pytest.raises(StorageError, match=f"version 99, this qsched reads .* {SCHEMA_VERSION}"):
        Storage(url)


def test_the_released_schema_is_what_this_one_makes(tmp_path: Path) -> None:
    """tests/schemas/ keeps each schema that was released; a new one has to read or refuse it."""
    made = sqlite3.connect(":memory:")
    made.executescript((Path(__file__).parent / "schemas" / f"{SCHEMA_VERSION}.sql").read_text())
    storage = Storage(f"sqlite:///{tmp_path}/q.db")
    released = sa.create_engine("sqlite://", creator=lambda: made)
    for table in sa.inspect(released).get_table_names():
        now, then = (
            {
                column["name"]: (str(column["type"]), column["nullable"])
                for column in sa.inspect(engine).get_columns(table)
            }
            for engine in (storage.database.engine, released)
        )
        assert now == then, table


def test_tables_of_version_3_get_the_new_columns(url: str, tmp_path: Path) -> None:
    study = fakes.stored(url, tmp_path)
    assert fakes.worker(study).run(max_trials=2)
    before = content(url)
    engine = Database(url).engine
    with engine.begin() as connection:
        for table, columns in NEW.items():
            for column in columns:
                statement = f"ALTER TABLE {table.__tablename__} DROP COLUMN {column}"
                connection.execute(sa.text(statement))
        connection.execute(sa.text("UPDATE qsched_schema SET version = 3"))
        connection.execute(sa.text("UPDATE qsched_workers SET state = 'stopped'"))
    engine.dispose()
    again = fakes.stored(url, tmp_path)
    assert [slot.value for slot in again.slots()] == [slot.value for slot in study.slots()]
    assert {name: len(rows) for name, rows in content(url).items()} == {
        name: len(rows) for name, rows in before.items()
    }
    assert fakes.worker(again).run()
    assert again.status().done == 3


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("not a url", "not a database URL; expected sqlite:///storage/qsched.db or postgresql"),
        ("mysql://me:secret@localhost/x", "mysql: not supported"),
        ("postgresql://me:secret@127.0.0.1:1/x", r"postgresql\+psycopg://me:\*\*\*@127.0.0.1:1/x"),
    ],
)
def test_a_wrong_url_is_one_line_without_its_password(url: str, words: str) -> None:
    with pytest.raises(StorageError, match=words) as raised:
        Storage(Database(url, patience=0.1))
    assert "secret" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_wrong_password_is_said_at_once(password_role: str) -> None:
    right = sa.make_url(password_role)
    assert Storage(password_role).study_names() == []
    wrong = right.set(password="guess-4711").render_as_string(hide_password=False)
    with pytest.raises(StorageError, match="password authentication failed") as raised:
        Storage(Database(wrong, patience=60))
    assert "guess-4711" not in str(raised.value)
    assert str(right.password) not in str(Storage(password_role))


def test_a_database_that_does_not_exist_is_named(postgres: str) -> None:
    url = sa.make_url(postgres).set(database="nowhere").render_as_string(hide_password=False)
    with pytest.raises(StorageError, match='"nowhere" does not exist'):
        Storage(Database(url, patience=60))


def test_a_file_that_is_no_database_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "no.db").write_text("this is not a database, it is a text, and a long one at that")
    with pytest.raises(StorageError, match="not a database") as raised:
        Storage(f"sqlite:///{tmp_path}/no.db")
    assert "\n" not in str(raised.value)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"file/qsched\.db"):
        Storage(f"sqlite:///{tmp_path}/file/qsched.db")


def test_a_read_only_file_is_said_at_once(tmp_path: Path) -> None:
    Storage(f"sqlite:///{tmp_path}/q.db").add_study("one", "{}", {}, budget=1)
    storage = Storage(Database(f"sqlite:///file:{tmp_path}/q.db?mode=ro&uri=true", patience=60))
    assert storage.study_names() == ["one"]
    with pytest.raises(StorageError, match="readonly"):
        storage.add_study("two", "{}", {}, budget=1)


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """SQLite's own page limit stands for the disk: the same error by the same path."""
    storage = Storage(Database(f"sqlite:///{tmp_path}/q.db", patience=60))
    storage.add_study("one", "{}", {}, budget=1)

    @sa.event.listens_for(storage.database.engine, "begin")
    def limit(connection: sa.Connection) -> None:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    with pytest.raises(StorageError, match="full; check the path, its permissions and the free"):
        storage.add_study("two", "x" * 1_000_000, {}, budget=1)
    assert storage.study_names() == ["one"]


def test_the_url_comes_from_the_environment_then_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QSCHED_STORAGE", "sqlite:///elsewhere.db")
    assert Database().path == tmp_path / "elsewhere.db"
    assert Database("sqlite:///given.db").path == tmp_path / "given.db"
    monkeypatch.delenv("QSCHED_STORAGE")
    assert Database().path == tmp_path / "storage" / "qsched.db"
    assert str(Storage()) == str(tmp_path / "storage" / "qsched.db")


# --- databases of qsched 0.1

SCORES = [Score(p, m, p / 7, 0.25) for p in range(6) for m in ("demo-alignment", "demo-quality")]


@pytest.fixture
def released(url: str, tmp_path: Path) -> str:
    """Study `fake` as 0.1 left it, its identity finished and trial 1 begun, and another one that
    nobody worked on; a plain study of Optuna. A worker was heard of two minutes ago."""
    database = Database(url)
    database.server()  # makes the folder
    mirror = optuna.create_study(storage=url, study_name="fake", direction="maximize")
    optuna.create_study(storage=url, study_name="plain").ask()
    trials = [mirror.ask(), mirror.ask()]
    for number, trial in enumerate(trials):
        trial.set_user_attr("slot", number)
        trial.set_user_attr("attempt", 1)
    mirror.tell(0, 1.5)
    study = fakes.study(tmp_path, trials=3)
    row: dict[str, Any] = {
        "definition": study.to_json(),
        "fingerprint": {key: v for key, v in study.fingerprint().items() if key != "format"},
        **{"accepted": {}, "hardware": {}, "outcome": None, "paused": False},
    }
    slot: dict[str, Any] = {
        **{"study": "fake", "number": 2, "state": "waiting", "attempt": 0, "failures": 0},
        **dict.fromkeys(("worker", "lease", "vector", "trial", "value", "reason", "finished")),
        "lost": 0,
    }
    first = {"number": 0, "state": "finished", "vector": [1.0, 1.0], "value": 1.5, "finished": 1e9}
    second = {"number": 1, "vector": [1.1, 0.9], "trial": trials[1]._trial_id}
    rows: dict[str, list[dict[str, Any]]] = {
        "qsched_studies": [
            row | {"name": "fake"},
            row | {"name": "new", "definition": study.changed(name="new").to_json()},
        ],
        "qsched_slots": [
            slot | first | {"attempt": 1, "trial": trials[0]._trial_id},
            slot | second | {"attempt": 1},
            slot,
            slot | {"study": "new", "number": 0},
        ],
        "qsched_scores": [{"study": "fake", "slot": 0, **vars(each)} for each in SCORES],
        "qsched_workers": [
            {
                **{"id": "w", "study": "fake", "machine": "m", "host": "h", "pid": 1},
                **{"hardware": {}, "state": "working", "images": 6, "seconds": 1.5},
                **{"started": 1e9, "seen": time.time() - 120},
            }
        ],
    }
    text = (Path(__file__).parent / "schemas" / "2.sql").read_text()
    if database.dialect == "postgresql":
        text = text.replace(" DOUBLE", " DOUBLE PRECISION").replace(" DATETIME", " TIMESTAMP")
    with database.engine.begin() as connection:
        for statement in filter(str.strip, text.split(";")):
            connection.execute(sa.text(statement))
        metadata = sa.MetaData()
        metadata.reflect(connection)
        for name, values in rows.items():
            connection.execute(sa.insert(metadata.tables[name]), values)
    database.engine.dispose()
    return url


def test_nothing_is_lost_and_the_study_goes_on(
    released: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = content(released)
    storage = Storage(released)
    study = studies.load(storage, "fake")
    assert study.queue.scores(0) == SCORES
    assert [slot.vector for slot in study.slots()] == [(1.0, 1.0), (1.1, 0.9), None]
    assert [row.images for row in storage.workers(study.incarnation)] == [6]
    assert study.incarnation.id != studies.load(storage, "new").incarnation.id
    untouched = ("trials", "trial_user_attributes", "trial_values")
    assert {name: content(released)[name] for name in untouched} == {
        name: before[name] for name in untouched
    }
    assert fakes.worker(study).run()
    assert study.status().done == 3
    assert study.queue.scores(0) == SCORES
    assert [trial.user_attrs["slot"] for trial in study.trials.all()] == [0, 1, 2]
    assert "Optuna were deleted" not in caplog.text
    study.delete()
    left = [each.study_name for each in storage.database.optuna.get_all_studies()]
    assert left == ["plain", "new"]


def test_the_tables_are_those_of_a_new_database(released: str) -> None:
    Storage(released)
    engine = Database(released).engine
    found, fresh = sa.inspect(engine), Table.metadata.tables
    assert {name for name in found.get_table_names() if "qsched" in name} == set(fresh)
    for name, table in fresh.items():
        assert {one["name"] for one in found.get_columns(name)} == set(table.columns.keys())
        assert {one["name"] for one in found.get_indexes(name) if not one["unique"]} == {
            index.name for index in table.indexes
        }
        assert len(found.get_foreign_keys(name)) == len(table.foreign_key_constraints)


def test_not_while_workers_of_that_version_are_at_it(released: str) -> None:
    with Database(released).engine.begin() as connection:
        connection.execute(sa.text("UPDATE qsched_workers SET seen = :now"), {"now": time.time()})
    before = content(released)
    with pytest.raises(StorageError, match="older qsched, of which 1 workers are at it") as raised:
        Storage(released)
    assert "\n" not in str(raised.value)
    assert content(released) == before


def test_what_dies_in_the_middle_changed_nothing(
    released: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(released)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("qsched.service.storage.adopt_mirror", die)
        with pytest.raises(KeyboardInterrupt):
            Storage(released)
    assert content(released) == before
    Storage(released)
