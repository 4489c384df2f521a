"""Patience with a database that is away, and none with what waiting does not mend."""

import socket
import time
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import InternalError, OperationalError, PendingRollbackError, ProgrammingError

from qsched.errors import StorageError
from qsched.service.database import Database, now
from qsched.service.storage import Storage
from tests.conftest import new_database

LIMIT = "idle_in_transaction_session_timeout"


def text(url: sa.URL) -> str:
    return url.render_as_string(hide_password=False)


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(f"sqlite:///{tmp_path}/q.db", patience=5)


def fault(words: str) -> OperationalError:
    return OperationalError("SELECT secret", {}, Exception(words))


def wrapped(error: Exception) -> StorageInternalError:
    """As Optuna raises it."""
    outer = StorageInternalError("An exception is raised during the commit.")
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize(
    "error",
    [
        fault("server closed the connection unexpectedly"),
        fault("the database system is starting up"),
        fault("database is locked"),
        PendingRollbackError("Can't reconnect until invalid transaction is rolled back."),
        InternalError("SELECT", {}, Exception("current transaction is aborted, commands ignored")),
        wrapped(fault("consuming input failed: server closed the connection unexpectedly")),
        wrapped(PendingRollbackError("Can't reconnect")),
    ],
)
def test_what_passes_is_tried_again(database: Database, error: Exception) -> None:
    left = [error, error]

    def work() -> str:
        if left:
            raise left.pop()
        return "done"

    assert database.patiently(work) == "done"


@pytest.mark.parametrize(
    "error",
    [
        fault('FATAL: password authentication failed for user "me"'),
        fault('database "qsched" does not exist'),
        fault("attempt to write a readonly database"),
        fault("database or disk is full"),
        ProgrammingError("SELECT secret", {}, Exception("no such table: qsched_slots")),
    ],
)
def test_what_does_not_pass_is_said_at_once(database: Database, error: Exception) -> None:
    calls = 0

    def work() -> None:
        nonlocal calls
        calls += 1
        raise error

    with pytest.raises(StorageError) as raised:
        database.patiently(work)
    assert calls == 1
    assert "\n" not in str(raised.value)
    assert "secret" not in str(raised.value)


class FakeClock:
    """Time passes by sleeping alone."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return sum(self.slept)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


def test_patience_ends_with_a_line_and_is_visible_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = FakeClock()
    database = Database(f"sqlite:///{tmp_path}/q.db", patience=60, clock=clock)

    def work() -> None:
        raise fault("connection refused")

    with pytest.raises(StorageError, match="connection refused"):
        database.patiently(work)
    assert sum(clock.slept) == pytest.approx(60)
    assert max(clock.slept) <= 5
    assert "waiting for the database: connection refused" in caplog.messages


def test_an_error_of_ours_is_not_the_databases(database: Database) -> None:
    def work() -> None:
        raise KeyError("ours")

    with pytest.raises(KeyError):
        database.patiently(work)


def test_the_clock_is_the_databases_at_the_statement(url: str) -> None:
    """Also late in a long transaction, where SQL's own now() stands still."""
    database = Database(url)

    def twice(session: sa.orm.Session) -> tuple[float, float]:
        first = session.scalar(sa.select(now()))
        time.sleep(0.2)
        second = session.scalar(sa.select(now()))
        assert first is not None
        assert second is not None
        return first, second

    first, second = database.transaction(twice)
    assert 0.15 < second - first < 5
    assert abs(second - time.time()) < 60


def test_a_transaction_is_whole_or_not_at_all(url: str) -> None:
    database = Database(url)
    database.transaction(lambda session: session.execute(sa.text("CREATE TABLE t (x INTEGER)")))

    def half(session: sa.orm.Session) -> None:
        session.execute(sa.text("INSERT INTO t VALUES (1)"))
        raise KeyError("in the middle")

    with pytest.raises(KeyError):
        database.transaction(half)
    count = database.transaction(lambda s: s.scalar(sa.text("SELECT count(*) FROM t")))
    assert count == 0


def test_a_connection_that_was_cut_off_in_a_statement_is_replaced(postgres: str) -> None:
    """Ours and Optuna's: nobody has read the answer."""
    database = Database(new_database(postgres))
    Storage(database.url.render_as_string(hide_password=False))
    for engine in (database.engine, database.optuna.engine):
        with engine.connect() as connection:
            driver = connection.connection.driver_connection
            assert driver is not None
        driver.pgconn.send_query(b"SELECT 1")
    assert database.transaction(lambda session: session.scalar(sa.text("SELECT 2"))) == 2
    assert database.patiently(database.optuna.get_all_studies) == []


def test_the_urls_own_settings_are_kept(postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On both engines, in each transaction."""

    def settings(database: Database) -> list[list[object]]:
        names = "application_name", "search_path", "lock_timeout", LIMIT
        with database.engine.begin() as ours, database.optuna.engine.begin() as optunas:
            return [
                [connection.scalar(sa.text(f"SHOW {name}")) for name in names]
                for connection in (ours, optunas)
            ]

    url = sa.make_url(new_database(postgres))
    Storage(text(url))
    assert settings(Database(text(url))) == [["qsched", '"$user", public', "1min", "1min"]] * 2
    own = {"application_name": "team-b", "options": "-clock_timeout=5s -csearch_path=public"}
    database = Database(text(url.update_query_dict(own)))
    assert settings(database) == [["team-b", "public", "5s", "1min"]] * 2
    monkeypatch.setenv("PGOPTIONS", "-csearch_path=public -clock_timeout=7s")
    monkeypatch.setenv("PGAPPNAME", "team-c")
    assert settings(Database(text(url))) == [["team-c", "public", "7s", "1min"]] * 2


def test_a_server_that_does_not_answer_is_waited_for_as_long_as_the_url_says() -> None:
    """Its connections are accepted by nobody."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://u@127.0.0.1:{silent.getsockname()[1]}/x?connect_timeout=2"
        began = time.monotonic()
        with pytest.raises(StorageError, match="timeout"):
            Database(url, patience=0).server()
        assert 1 < time.monotonic() - began < 8


@pytest.mark.parametrize("option", ["nonsense", "autocommit", "prepare_threshold", "plugin"])
def test_an_option_that_is_none_of_the_servers_is_refused(option: str) -> None:
    with pytest.raises(StorageError, match=f"the URL's {option} is no option of PostgreSQL's"):
        _ = Database(f"postgresql://u@127.0.0.1:1/x?{option}=1").engine


def test_a_read_only_database_is_said_at_once(postgres: str) -> None:
    url = sa.make_url(new_database(postgres))
    Storage(text(url))
    reading = text(url.update_query_dict({"options": "-cdefault_transaction_read_only=on"}))
    storage = Storage(Database(reading, patience=60))
    assert storage.study_names() == storage.database.optuna.get_all_studies() == []
    with pytest.raises(StorageError, match="read-only transaction; use the primary server"):
        storage.add_study("one", "{}", {}, budget=1)
    empty = sa.make_url(new_database(postgres)).set(query=sa.make_url(reading).query)
    with pytest.raises(StorageError, match="cannot execute CREATE TABLE in a read-only"):
        Storage(Database(text(empty), patience=60))


def test_what_is_written_is_for_its_owner_alone(tmp_path: Path) -> None:
    """With the log and its index beside it; a file that is there keeps its permissions."""
    url = f"sqlite:///{tmp_path}/q{{}}.db"
    storage = Storage(url)
    storage.add_study("one", "{}", {}, budget=1)
    optuna.create_study(study_name="two", storage=storage.database.optuna)
    modes = {path.suffix: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys((".db", ".db-wal", ".db-shm"), 0o600)
    (tmp_path / "q{}.db").chmod(0o640)
    assert Storage(url).study_names() == ["one"]
    assert (tmp_path / "q{}.db").stat().st_mode & 0o777 == 0o640


def test_nothing_is_made_where_the_url_forbids_it(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="unable to open"):
        Storage(Database(f"sqlite:///file:{tmp_path}/q.db?mode=rw", patience=60))
    assert list(tmp_path.iterdir()) == []
