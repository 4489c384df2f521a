"""Studies and workers of a database, its schema, and what is said when something is wrong."""

import sqlite3
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa

from qsched.errors import StorageError
from qsched.service.database import Database
from qsched.service.queue import Queue
from qsched.service.schema import SCHEMA_VERSION
from qsched.service.storage import Storage


@pytest.fixture
def storage(url: str) -> Storage:
    storage = Storage(url)
    storage.add_study("one", "{}", {"sampling.steps": 4})
    return storage


def test_a_study_is_stored_once(storage: Storage) -> None:
    storage.add_study("one", "another", {"sampling.steps": 9})
    record = storage.study("one")
    assert record is not None
    assert (record.definition, record.fingerprint) == ("{}", {"sampling.steps": 4})
    assert storage.study("two") is None
    assert storage.study_names() == ["one"]


def test_the_outcome_is_kept(storage: Storage) -> None:
    assert storage.outcome("one") is None
    storage.conclude("one", {"verdict": "improved"})
    assert storage.outcome("one") == {"verdict": "improved"}


def test_an_accepted_difference_is_recorded_with_both_values(storage: Storage) -> None:
    storage.accept("one", {"sampling.steps": (4, 2)})
    record = storage.study("one")
    assert record is not None
    assert record.fingerprint == {"sampling.steps": 2}
    assert record.accepted == {"sampling.steps": [4, 2]}


def test_workers_are_known_with_their_speed(storage: Storage) -> None:
    hardware = {"device": "cuda A", "torch": "2.10"}
    first = storage.enter("one", "w1", machine="a", host="a", pid=1, hardware=hardware)
    second = storage.enter("one", "w2", machine="b", host="b", pid=2, hardware={"device": "cpu"})
    assert first == second == hardware
    storage.seen("w1", 30, 10.0)
    storage.seen("w2", 0, 0.0, "refused")
    one, two = storage.workers("one")
    assert (one.id, one.host, one.pid, one.images_per_second) == ("w1", "a", 1, 3.0)
    assert 0 <= one.idle < 30
    assert (two.state, two.images_per_second) == ("refused", 0.0)


def test_leases_of_dead_processes_end_at_once(storage: Storage) -> None:
    queue = Queue(storage.database, "one")
    queue.grow(2)
    for worker in ("dead", "living"):
        storage.enter("one", worker, machine=f"of {worker}", host="h", pid=1, hardware={})
        queue.claim(worker, 60, identity_first=False)
    assert storage.bury("one", lambda machine: machine == "of dead") == 1
    assert [row.state for row in storage.workers("one")] == ["lost", "working"]
    queue.counts()
    assert [slot.worker for slot in queue.slots()] == [None, "living"]


def test_optunas_tables_live_in_the_same_database(storage: Storage) -> None:
    optuna.create_study(storage=storage.database.optuna, study_name="one")
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
    Storage(f"sqlite:///{tmp_path}/q.db").add_study("one", "{}", {})
    storage = Storage(Database(f"sqlite:///file:{tmp_path}/q.db?mode=ro&uri=true", patience=60))
    assert storage.study_names() == ["one"]
    with pytest.raises(StorageError, match="readonly"):
        storage.add_study("two", "{}", {})


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """SQLite's own page limit stands for the disk: the same error by the same path."""
    storage = Storage(Database(f"sqlite:///{tmp_path}/q.db", patience=60))
    storage.add_study("one", "{}", {})

    @sa.event.listens_for(storage.database.engine, "begin")
    def limit(connection: sa.Connection) -> None:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    with pytest.raises(StorageError, match="full; check the path, its permissions and the free"):
        storage.add_study("two", "x" * 1_000_000, {})
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
