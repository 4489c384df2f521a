"""One database URL: Optuna's storage and qsched's own tables beside it.

Optuna keeps the study's trials, so that samplers and optuna-dashboard work on them as on any other
study. qsched's tables keep what Optuna has no place for: the study's definition and fingerprint,
its slots (budget N is N slots), and every score, prompt by prompt, in the transaction that records
its batch. SQLite runs in WAL mode and takes its write lock at the start of a transaction.
"""

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError, DatabaseError, OperationalError
from sqlalchemy.orm import Session, sessionmaker

from qsched.errors import StorageError
from qsched.schema import (
    SCHEMA_VERSION,
    SchemaTable,
    Score,
    ScoreTable,
    Slot,
    SlotTable,
    StudyTable,
    Table,
)

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

DEFAULT_URL = "sqlite:///storage/qsched.db"
ENVIRONMENT = "QSCHED_STORAGE"


class Storage:
    """The studies of one database. Every method is one transaction.

    `url`: a SQLAlchemy URL; None takes the environment's QSCHED_STORAGE, then storage/qsched.db in
    the current folder (made where it is missing). Raises StorageError, never with a password in it.
    """

    def __init__(self, url: str | None = None) -> None:
        given = url or os.environ.get(ENVIRONMENT) or DEFAULT_URL
        try:
            self._url = sa.make_url(given)
        except ArgumentError as error:
            raise StorageError(
                f"storage: not a database URL; expected one like {DEFAULT_URL}"
            ) from error
        if self._url.get_backend_name() != "sqlite":
            raise StorageError(
                f"storage {self}: only sqlite:/// is supported by this version; "
                "PostgreSQL comes with the distributed service"
            )
        self._engine = _sqlite_engine(self._url)
        self._prepare()

    def __str__(self) -> str:
        return self._url.render_as_string(hide_password=True)

    @property
    def path(self) -> Path:
        """The absolute path of the database file."""
        return Path(self._url.database or "").resolve()

    @cached_property
    def optuna(self) -> "RDBStorage":
        """Optuna's storage in the same database."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with self._faults():
            return optuna.storages.RDBStorage(
                self._url.render_as_string(hide_password=False),
                engine_kwargs={"connect_args": {"timeout": 60}},
            )

    # Studies

    def add_study(self, name: str, definition: str, fingerprint: Mapping[str, Any]) -> None:
        """Stores a new study without slots."""
        with self._transaction() as session:
            session.add(StudyTable(name=name, definition=definition, fingerprint=dict(fingerprint)))

    def study(self, name: str) -> tuple[str, dict[str, Any]] | None:
        """A study's definition and fingerprint; None if there is no such study."""
        with self._transaction() as session:
            row = session.get(StudyTable, name)
            return (row.definition, dict(row.fingerprint)) if row else None

    def study_names(self) -> list[str]:
        """All studies, by name."""
        with self._transaction() as session:
            return list(session.scalars(sa.select(StudyTable.name).order_by(StudyTable.name)))

    def conclude(self, name: str, outcome: Mapping[str, Any]) -> None:
        """Stores the outcome of a validation; a later one replaces it."""
        with self._transaction() as session:
            session.get_one(StudyTable, name).outcome = dict(outcome)

    def outcome(self, name: str) -> dict[str, Any] | None:
        """What `conclude` stored last; None before the first validation."""
        with self._transaction() as session:
            return session.get_one(StudyTable, name).outcome

    # Slots

    def grow(self, study: str, budget: int) -> None:
        """Adds waiting slots until there are `budget`; never removes one."""
        with self._transaction() as session:
            have = session.scalar(
                sa.select(sa.func.count()).select_from(SlotTable).filter_by(study=study)
            )
            session.add_all(
                SlotTable(study=study, number=number) for number in range(have or 0, budget)
            )

    def slots(self, study: str) -> list[Slot]:
        """All slots of a study in the order of their numbers."""
        query = sa.select(SlotTable).filter_by(study=study).order_by(SlotTable.number)
        with self._transaction() as session:
            return [row.frozen() for row in session.scalars(query)]

    def claim(self, study: str, owner: str) -> Slot | None:
        """Takes the first waiting slot for `owner`; None if none is waiting."""
        query = (
            sa.select(SlotTable)
            .filter_by(study=study, state="waiting")
            .order_by(SlotTable.number)
            .limit(1)
        )
        with self._transaction() as session:
            row = session.scalar(query)
            if row is None:
                return None
            row.state, row.owner = "running", owner
            return row.frozen()

    def begin(self, study: str, slot: int, vector: Sequence[float]) -> None:
        """Fixes the slot's search vector; what it holds already is never overwritten."""
        with self._transaction() as session:
            row = session.get_one(SlotTable, (study, slot))
            if row.vector is None:
                row.vector = list(vector)

    def finish(self, study: str, slot: int, value: float) -> None:
        """The slot is done and has a value."""
        with self._transaction() as session:
            row = session.get_one(SlotTable, (study, slot))
            row.state, row.owner, row.value, row.reason = "finished", None, value, None

    def release(self, study: str, slot: int) -> None:
        """Gives a running slot back; its vector and scores stay."""
        with self._transaction() as session:
            row = session.get_one(SlotTable, (study, slot))
            row.state, row.owner = "waiting", None

    def fail(self, study: str, slot: int, reason: str, *, limit: int) -> bool:
        """Counts a failure; after `limit` of them the slot is parked with `reason` (True)."""
        with self._transaction() as session:
            row = session.get_one(SlotTable, (study, slot))
            row.failures += 1
            row.reason, row.owner = reason, None
            row.state = "parked" if row.failures >= limit else "waiting"
            return row.state == "parked"

    def reclaim(self, study: str) -> str | None:
        """Returns the running slots of processes that are gone; the owner of one that still lives.

        Owners on other machines count as alive.
        """
        with self._transaction() as session:
            for row in session.scalars(
                sa.select(SlotTable).filter_by(study=study, state="running")
            ):
                if row.owner and _alive(row.owner):
                    return row.owner
                row.state, row.owner = "waiting", None
        return None

    # Scores

    def record(self, study: str, slot: int, scores: Sequence[Score]) -> None:
        """Commits a batch of scores, all or none."""
        with self._transaction() as session:
            session.add_all(
                ScoreTable(
                    study=study,
                    slot=slot,
                    prompt=score.prompt,
                    metric=score.metric,
                    value=score.value,
                    seconds=score.seconds,
                )
                for score in scores
            )

    def scores(self, study: str, slot: int) -> list[Score]:
        """What a slot has scored, by prompt."""
        query = (
            sa.select(ScoreTable)
            .filter_by(study=study, slot=slot)
            .order_by(ScoreTable.prompt, ScoreTable.metric)
        )
        with self._transaction() as session:
            return [
                Score(row.prompt, row.metric, row.value, row.seconds)
                for row in session.scalars(query)
            ]

    def effort(self, study: str) -> tuple[int, float]:
        """Images scored by a study's trials, and the seconds they took."""
        each = (
            sa.select(sa.func.max(ScoreTable.seconds).label("seconds"))
            .filter_by(study=study)
            .group_by(ScoreTable.slot, ScoreTable.prompt)
            .subquery()
        )
        with self._transaction() as session:
            images, seconds = session.execute(
                sa.select(sa.func.count(), sa.func.sum(each.c.seconds))
            ).one()
            return images, float(seconds or 0.0)

    def _prepare(self) -> None:
        """Makes the tables where there are none; refuses those of another version."""
        with self._faults():
            Table.metadata.create_all(self._engine)
        with self._transaction() as session:
            versions = list(session.scalars(sa.select(SchemaTable.version)))
            if not versions:
                session.add(SchemaTable(version=SCHEMA_VERSION))
            elif versions != [SCHEMA_VERSION]:
                raise StorageError(
                    f"storage {self}: tables of version {versions[0]}, this qsched reads "
                    f"{SCHEMA_VERSION}; use the qsched that wrote them, or another database"
                )

    @contextmanager
    def _transaction(self) -> Iterator[Session]:
        sessions = sessionmaker(self._engine, expire_on_commit=False)
        with self._faults(), sessions.begin() as session:
            yield session

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """A database's complaint as one line, without the statement and without a password."""
        try:
            yield
        except (OperationalError, DatabaseError) as error:
            reason = str(error.orig).splitlines()[0] if error.orig else type(error).__name__
            raise StorageError(
                f"storage {self}: {reason}; check the path, its permissions and the free disk"
            ) from error


def this_process() -> str:
    """How a worker signs a slot: host:pid."""
    return f"{socket.gethostname()}:{os.getpid()}"


def _alive(owner: str) -> bool:
    host, _, pid = owner.rpartition(":")
    if host != socket.gethostname():
        return True
    if int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sqlite_engine(url: sa.URL) -> sa.Engine:
    if url.database and url.database != ":memory:":
        try:
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"storage {url.database}: {error.strerror}") from error
    engine = sa.create_engine(url, connect_args={"timeout": 60})

    @event.listens_for(engine, "connect")
    def _wal(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # transactions begin where `_immediate` says
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def _immediate(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine
