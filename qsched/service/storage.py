"""The studies of one database and their workers, in qsched's own tables.

Optuna keeps the studies' trials in the same database, so that samplers and optuna-dashboard work on
them as on any other study. Here is what Optuna has no place for: definition, fingerprint, outcome,
and who works on what. A study's slots and scores are in `queue`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa
from pydantic import TypeAdapter
from sqlalchemy.orm import Session

from qsched.errors import StorageError
from qsched.service.database import Database, now, transaction
from qsched.service.foundation import lay
from qsched.service.schema import (
    SCHEMA_VERSION,
    ScoreTable,
    SlotTable,
    StudyRecord,
    StudyTable,
    WorkerRecord,
    WorkerTable,
)


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
        self, session: Session, name: str, definition: str, fingerprint: Mapping[str, Any]
    ) -> None:
        """Stores a new study without slots; one that is there already stays as it is."""
        if session.get(StudyTable, name) is None:
            session.add(StudyTable(name=name, definition=definition, fingerprint=dict(fingerprint)))

    @transaction
    def study(self, session: Session, name: str) -> StudyRecord | None:
        """A study as it is stored; None if there is no such study."""
        row = session.get(StudyTable, name)
        if row is None:
            return None
        return StudyRecord(row.definition, row.fingerprint, row.accepted, row.paused)

    @transaction
    def study_names(self, session: Session) -> list[str]:
        """All studies, by name."""
        names = session.scalars(sa.select(StudyTable.name).order_by(StudyTable.name))
        return TypeAdapter(list[str]).validate_python(list(names))

    @transaction
    def accept(self, session: Session, name: str, accepted: Mapping[str, tuple[Any, Any]]) -> None:
        """Overrides keys of the fingerprint, {key: (stored, new)}, and records both values."""
        row = session.get_one(StudyTable, name)
        row.fingerprint = row.fingerprint | {key: pair[1] for key, pair in accepted.items()}
        row.accepted = row.accepted | {key: list(pair) for key, pair in accepted.items()}

    @transaction
    def renew_fingerprint(
        self, session: Session, name: str, fingerprint: Mapping[str, Any]
    ) -> None:
        """A fingerprint of an older format takes the form of today's."""
        session.get_one(StudyTable, name).fingerprint = dict(fingerprint)

    @transaction
    def pause(self, session: Session, name: str, paused: bool) -> None:
        """Workers claim nothing from a paused study; what they hold they finish."""
        session.get_one(StudyTable, name).paused = paused

    @transaction
    def conclude(self, session: Session, name: str, outcome: Mapping[str, Any]) -> None:
        """Stores the outcome of a validation; a later one replaces it."""
        session.get_one(StudyTable, name).outcome = dict(outcome)

    @transaction
    def outcome(self, session: Session, name: str) -> dict[str, Any] | None:
        """What `conclude` stored last; None before the first validation."""
        return session.get_one(StudyTable, name).outcome

    @transaction
    def delete_study(self, session: Session, name: str) -> None:
        """Removes a study with its slots, scores and workers; its mirror in Optuna stays."""
        for table in (ScoreTable, SlotTable, WorkerTable):
            session.execute(sa.delete(table).filter_by(study=name))
        session.execute(sa.delete(StudyTable).filter_by(name=name))

    # Workers

    @transaction
    def enter(
        self,
        session: Session,
        study: str,
        worker: str,
        *,
        machine: str,
        host: str,
        pid: int,
        hardware: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Enters a worker; returns the hardware of the study's first one."""
        row = session.get_one(StudyTable, study, with_for_update=True)
        if row.hardware is None:
            row.hardware = dict(hardware)
        if session.get(WorkerTable, worker) is None:
            time = session.scalar(sa.select(now()))
            session.add(
                WorkerTable(
                    id=worker,
                    study=study,
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
    def workers(self, session: Session, study: str) -> list[WorkerRecord]:
        """All workers that a study ever had, the first one first."""
        query = (
            sa.select(WorkerTable, now() - WorkerTable.seen)
            .where(WorkerTable.study == study)
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
    def bury(self, session: Session, study: str, gone: Callable[[str], bool]) -> int:
        """Ends the leases of workers whose process is known to be gone; how many workers.

        Nobody has to wait for leases whose end is known. `gone`: of a worker's `machine`.
        """
        query = sa.select(WorkerTable).filter_by(study=study, state="working")
        dead = [row for row in session.scalars(query) if gone(row.machine)]
        for row in dead:
            row.state = "lost"
            session.execute(
                sa.update(SlotTable)
                .filter_by(study=study, worker=row.id, state="running")
                .values(lease=0.0)
            )
        return len(dead)

    def _prepare(self) -> None:
        """Makes the tables where there are none; refuses those of another version."""

        def prepare(session: Session) -> int:
            self.database.alone(session)
            return lay(session.connection(), str(self))

        version = self.database.transaction(prepare)
        if version != SCHEMA_VERSION:
            raise StorageError(
                f"storage {self}: its tables have version {version}, this qsched reads version "
                f"{SCHEMA_VERSION}; use the qsched that wrote them, or another database"
            )
