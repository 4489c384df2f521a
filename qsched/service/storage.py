"""The studies of one database and their workers, in qsched's own tables.

Optuna keeps the studies' trials in the same database, so that samplers and optuna-dashboard work on
them as on any other study. Here is what Optuna has no place for: definition, fingerprint, outcome,
and who works on what. A study's slots and scores are in `queue`. A name means a study only until
that is deleted: what is done to a study names its incarnation.
"""

import json
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa
from pydantic import TypeAdapter
from sqlalchemy.orm import Session
from sqlalchemy.schema import CreateColumn

from qsched.errors import StorageError, StudyError
from qsched.service.database import Database, now, transaction
from qsched.service.foundation import lay
from qsched.service.queue import add_slots
from qsched.service.schema import (
    SCHEMA_VERSION,
    Incarnation,
    SchemaTable,
    ScoreTable,
    SelfTestTable,
    SlotTable,
    StudyRecord,
    StudyTable,
    Table,
    WorkerRecord,
    WorkerTable,
)
from qsched.service.trials import add_mirror, adopt_mirror, remove_mirror

NAMED = 2
"""The version of the tables of qsched 0.1, in which studies were told by their names."""

WHOLE = 3
"""Their version before trials of some prompts, and the gauge."""

NEW: Mapping[type[Table], tuple[str, ...]] = {
    StudyTable: ("gauge",),
    SlotTable: ("prompts", "origin"),
}
"""The columns that version 4 added."""

RECENT = 60.0
"""Seconds after which a worker of 0.1 that wasn't heard of is gone; it spoke every 20."""


class Storage:
    """The studies of one database.

    `database`: a Database, or its URL; None is the default. Raises StorageError, also for tables
    of another version than this qsched's.
    """

    def __init__(self, database: Database | str | None = None) -> None:
        self.database = database if isinstance(database, Database) else Database(database)
        self._prepare()

    def __str__(self) -> str:
        return str(self.database)

    # Studies

    @transaction
    def add_study(
        self,
        session: Session,
        name: str,
        definition: str,
        fingerprint: Mapping[str, Any],
        *,
        budget: int,
    ) -> StudyRecord:
        """Stores a new study with its slots and its mirror in Optuna, all or nothing; one of the
        name that is there already stays as it is, and is returned. Raises NotOurs."""
        row = session.scalar(sa.select(StudyTable).filter_by(name=name))
        if row is None:
            study = Incarnation(name, uuid.uuid4().hex)
            add_mirror(session, study)
            row = StudyTable(
                id=study.id, name=name, definition=definition, fingerprint=dict(fingerprint)
            )
            session.add(row)
            session.flush()
            add_slots(session, row, budget)
        return row.frozen()

    @transaction
    def study(self, session: Session, name: str) -> StudyRecord | None:
        """A study as it is stored; None if there is no such study."""
        row = session.scalar(sa.select(StudyTable).filter_by(name=name))
        return row.frozen() if row else None

    def incarnation(self, name: str) -> Incarnation:
        """The study that has a name now. Raises StudyError with the names that there are."""
        found = self._incarnation(name)
        if found is None:
            names = ", ".join(self.study_names()) or "none"
            raise StudyError(f"study {name!r} is not in {self}; there: {names}")
        return found

    @transaction
    def _incarnation(self, session: Session, name: str) -> Incarnation | None:
        number = session.scalar(sa.select(StudyTable.id).filter_by(name=name))
        return Incarnation(name, number) if number is not None else None

    @transaction
    def record(self, session: Session, study: Incarnation) -> StudyRecord:
        """A study as it is stored. Raises StudyGone."""
        return StudyTable.of(session, study).frozen()

    @transaction
    def study_names(self, session: Session) -> list[str]:
        """All studies, by name."""
        names = session.scalars(sa.select(StudyTable.name).order_by(StudyTable.name))
        return TypeAdapter(list[str]).validate_python(list(names))

    @transaction
    def redefine(
        self,
        session: Session,
        study: Incarnation,
        definition: str,
        fingerprint: Mapping[str, Any],
        accepted: Mapping[str, tuple[Any, Any]],
    ) -> None:
        """Replaces a study's definition and fingerprint. `accepted`: the keys of it that were
        overridden, {key: (stored, new)}; both values are recorded. Raises StudyGone."""
        row = StudyTable.of(session, study, locked=True)
        row.definition, row.fingerprint = definition, dict(fingerprint)
        row.accepted = row.accepted | {key: list(pair) for key, pair in accepted.items()}

    @transaction
    def complete(
        self, session: Session, study: Incarnation, keys: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Enters those keys that a study's fingerprint doesn't have yet; all of it. Raises
        StudyGone."""
        row = StudyTable.of(session, study, locked=True)
        if keys.keys() - row.fingerprint.keys():
            row.fingerprint = {**keys, **row.fingerprint}
        return dict(row.fingerprint)

    @transaction
    def pause(self, session: Session, study: Incarnation, paused: bool) -> None:
        """Workers claim nothing from a paused study; what they hold they finish."""
        StudyTable.of(session, study).paused = paused

    @transaction
    def conclude(self, session: Session, study: Incarnation, outcome: Mapping[str, Any]) -> None:
        """Stores the outcome of a validation; a later one replaces it. Raises StudyGone."""
        StudyTable.of(session, study, locked=True).outcome = dict(outcome)

    @transaction
    def outcome(self, session: Session, study: Incarnation) -> dict[str, Any] | None:
        """What `conclude` stored last; None before the first validation. Raises StudyGone."""
        return StudyTable.of(session, study).outcome

    @transaction
    def gauge(self, session: Session, study: Incarnation) -> dict[str, Any] | None:
        """What was measured for the sampler `prompts`; None before. Raises StudyGone."""
        return StudyTable.of(session, study).gauge

    @transaction
    def keep_gauge(
        self, session: Session, study: Incarnation, gauge: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Stores a gauge, unless there is one already; the one that counts. Raises StudyGone."""
        row = StudyTable.of(session, study, locked=True)
        row.gauge = row.gauge or dict(gauge)
        return dict(row.gauge)

    @transaction
    def delete_study(self, session: Session, study: Incarnation) -> None:
        """Removes a study with its slots, scores, workers and mirror, also where what is stored of
        it can't be read. Raises StudyGone."""
        StudyTable.require(session, study, locked=True)
        for table in (ScoreTable, SlotTable, WorkerTable):
            session.execute(sa.delete(table).filter_by(study=study.id))
        session.execute(sa.delete(StudyTable).filter_by(id=study.id))
        remove_mirror(session, study)

    # Self-tests

    @transaction
    def self_test(
        self, session: Session, fingerprint: str, hardware: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        """What a self-test found under a fingerprint, by its digest, on this hardware; None if
        nobody has tested it."""
        row = session.get(SelfTestTable, (fingerprint, _key(hardware)))
        return dict(row.result) if row else None

    @transaction
    def keep_self_test(
        self,
        session: Session,
        fingerprint: str,
        hardware: Mapping[str, Any],
        result: Mapping[str, Any],
    ) -> None:
        """Stores what a self-test found, in the place of what is there."""
        row = {"fingerprint": fingerprint, "hardware": _key(hardware), "result": dict(result)}
        session.merge(SelfTestTable(**row))

    # Workers

    @transaction
    def enter(
        self,
        session: Session,
        study: Incarnation,
        worker: str,
        *,
        machine: str,
        host: str,
        pid: int,
        hardware: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Enters a worker; returns the hardware of the study's first one. Raises StudyGone."""
        row = StudyTable.of(session, study, locked=True)
        if row.hardware is None:
            row.hardware = dict(hardware)
        if session.get(WorkerTable, worker) is None:
            time = session.scalar(sa.select(now()))
            session.add(
                WorkerTable(
                    id=worker,
                    study=study.id,
                    machine=machine,
                    host=host,
                    pid=pid,
                    hardware=dict(hardware),
                    started=time,
                    seen=time,
                )
            )
        return dict(row.hardware)

    @transaction
    def seen(
        self, session: Session, worker: str, images: int, seconds: float, state: str = "working"
    ) -> None:
        """A worker was here, and what it has done so far."""
        values = {"seen": now(), "images": images, "seconds": seconds, "state": state}
        session.execute(sa.update(WorkerTable).filter_by(id=worker).values(**values))

    @transaction
    def workers(self, session: Session, study: Incarnation) -> list[WorkerRecord]:
        """All workers that a study ever had, the first one first."""
        query = (
            sa.select(WorkerTable, now() - WorkerTable.seen)
            .where(WorkerTable.study == study.id)
            .order_by(WorkerTable.started, WorkerTable.id)
        )
        return [
            WorkerRecord(
                id=row.id,
                host=row.host,
                pid=row.pid,
                hardware=row.hardware,
                state=row.state,
                idle=max(0.0, idle),
                images=row.images,
                seconds=row.seconds,
            )
            for row, idle in session.execute(query)
        ]

    @transaction
    def bury(self, session: Session, study: Incarnation, gone: Callable[[str], bool]) -> int:
        """Ends the leases of workers whose process is known to be gone; how many workers.

        Nobody has to wait for leases whose end is known. `gone`: of a worker's `machine`.
        """
        query = sa.select(WorkerTable).filter_by(study=study.id, state="working")
        dead = [row for row in session.scalars(query) if gone(row.machine)]
        for row in dead:
            row.state = "lost"
            session.execute(
                sa.update(SlotTable)
                .filter_by(study=study.id, worker=row.id, state="running")
                .values(lease=0.0)
            )
        return len(dead)

    def _prepare(self) -> None:
        """Makes the tables where there are none; upgrades older ones, refuses any others."""

        def prepare(session: Session) -> int:
            self.database.alone(session)
            version = lay(session.connection(), str(self))
            if version == NAMED:
                return self._upgrade(session)
            return self._widen(session) if version == WHOLE else version

        version = self.database.transaction(prepare)
        if version != SCHEMA_VERSION:
            raise StorageError(
                f"storage {self}: its tables have version {version}, this qsched reads version "
                f"{SCHEMA_VERSION}; use the qsched that wrote them, or another database"
            )

    def _upgrade(self, session: Session) -> int:
        """Turns the tables of version 2, where a study's key was its name, into today's, whose
        version it returns; nothing is lost. Raises StorageError while workers of that version are
        at it."""
        self._require_no_workers(session)
        tables: tuple[type[Table], ...] = (StudyTable, SlotTable, ScoreTable, WorkerTable)
        names = [table.__tablename__ for table in tables]
        for name in names:
            session.execute(sa.text(f"CREATE TABLE {name}_2 AS SELECT * FROM {name}"))
        for name in reversed(names):
            session.execute(sa.text(f"DROP TABLE {name}"))
        new = [
            table
            for name, table in Table.metadata.tables.items()
            if name != SchemaTable.__tablename__
        ]
        Table.metadata.create_all(session.connection(), new, checkfirst=False)
        for study in session.scalars(sa.text("SELECT name FROM qsched_studies_2")).all():
            values = {"new": uuid.uuid4().hex, "study": study}
            _copy(session, StudyTable, "id", ":new", "WHERE o.name = :study", values)
        for table in tables[1:]:
            named = "JOIN qsched_studies AS s ON s.name = o.study"
            _copy(session, table, "study", "s.id", named)
        for name in names:
            session.execute(sa.text(f"DROP TABLE {name}_2"))
        session.execute(sa.update(SchemaTable).values(version=SCHEMA_VERSION))
        version = lay(session.connection(), str(self))  # 0.1 left Optuna's tables for later
        for row in session.scalars(sa.select(StudyTable)).all():
            adopt_mirror(session, row.frozen().study)
        return version

    def _widen(self, session: Session) -> int:
        """Adds the columns that version 3 had not; today's version. Raises StorageError as
        `_upgrade`."""
        self._require_no_workers(session)
        for table, columns in NEW.items():
            for column in columns:
                of_today: Any = table.__table__.columns[column]
                made = CreateColumn(of_today).compile(session.connection())
                session.execute(sa.text(f"ALTER TABLE {table.__tablename__} ADD COLUMN {made}"))
        session.execute(sa.update(SchemaTable).values(version=SCHEMA_VERSION))
        return SCHEMA_VERSION

    def _require_no_workers(self, session: Session) -> None:
        """Raises StorageError while workers of an older version are at it."""
        working = sa.select(sa.func.count()).select_from(sa.table(WorkerTable.__tablename__))
        working = working.where(sa.column("state") == "working", sa.column("seen") > now() - RECENT)
        if count := session.scalar(working):
            raise StorageError(
                f"storage {self}: its tables are of an older qsched, of which {count} workers are "
                f"at it; stop them, or wait {RECENT:.0f} s if they were killed"
            )


def _copy(
    session: Session,
    table: type[Table],
    key: str,
    incarnation: str,
    of: str,
    values: Mapping[str, str] | None = None,
) -> None:
    """Copies a table's rows as they were before `_upgrade`; `key` is the column of the incarnation,
    which SQL finds by `of`."""
    name = table.__tablename__
    new = (key, *NEW.get(table, ()))
    columns = [column.name for column in table.__table__.columns if column.name not in new]
    old = ", ".join(f"o.{column}" for column in columns)
    session.execute(
        sa.text(
            f"INSERT INTO {name} ({key}, {', '.join(columns)}) "
            f"SELECT {incarnation}, {old} FROM {name}_2 AS o {of}"
        ),
        values or {},
    )


def _key(hardware: Mapping[str, Any]) -> str:
    return json.dumps(dict(hardware), sort_keys=True)
