"""Patience with a database that is away, and none with what waiting does not mend."""

import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import OperationalError, PendingRollbackError, ProgrammingError

from qsched.errors import StorageError
from qsched.service.database import Database, now


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
