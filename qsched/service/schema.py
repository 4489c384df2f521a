"""qsched's own tables in the shared database, and the frozen values that leave them.

The database is data that others may write, and SQLite keeps any value in any column: what leaves is
checked here, and ValueError is raised where it isn't what it should be; `Database` says it in a
line.
"""

import datetime as dt
from typing import Annotated, Any, Self

import sqlalchemy as sa
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from qsched.errors import StudyGone

SCHEMA_VERSION = 4

FINITE = ConfigDict(allow_inf_nan=False)
Count = Annotated[int, Field(ge=0)]
State = Annotated[str, Field(pattern="^(waiting|running|finished|stopped|parked)$")]

OPEN = sa.text("state IN ('waiting', 'running')")
"""Slots that may be claimed; in words, so that both databases see that their index fits."""


@dataclass(frozen=True)
class Incarnation:
    """A study from its making to its deletion. `id` is random and its own; another study may have
    the same name later."""

    name: str
    id: str


class Table(DeclarativeBase):
    """The base of qsched's tables."""

    type_annotation_map = {  # noqa: RUF012
        dict[str, Any]: sa.JSON(none_as_null=True),
        list[float]: sa.JSON(none_as_null=True),
        list[int]: sa.JSON(none_as_null=True),
        float: sa.Double,
    }


class SchemaTable(Table):
    """One row: the version of these tables."""

    __tablename__ = "qsched_schema"
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


class StudyTable(Table):
    """A study: its definition as JSON, the fingerprint that a resume has to match, its outcome.

    `id` is the incarnation's, which everything of the study hangs on. `hardware` is that of the
    first worker. `accepted` holds the fingerprint's keys that were overridden, with both values.
    `gauge` is what the first worker measured for the sampler `prompts`.
    """

    __tablename__ = "qsched_studies"
    id: Mapped[str] = mapped_column(sa.String(32), primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(64), unique=True)
    definition: Mapped[str] = mapped_column(sa.Text)
    fingerprint: Mapped[dict[str, Any]]
    accepted: Mapped[dict[str, Any]] = mapped_column(default=dict)
    hardware: Mapped[dict[str, Any] | None]
    outcome: Mapped[dict[str, Any] | None]
    gauge: Mapped[dict[str, Any] | None]
    paused: Mapped[bool] = mapped_column(default=False)
    created: Mapped[dt.datetime] = mapped_column(server_default=sa.func.now())

    @classmethod
    def of(cls, session: Session, study: Incarnation, *, locked: bool = False) -> Self:
        """The row of a study. Raises StudyGone. `locked`: until the transaction ends, which also
        puts it off while Optuna's storage writes for the study."""
        row = session.get(cls, study.id, with_for_update=locked)
        if row is None:
            raise gone(study)
        return row

    @classmethod
    def require(cls, session: Session, study: Incarnation, *, locked: bool = False) -> None:
        """Raises StudyGone where there is no such row; whatever its columns hold. `locked`: as
        above."""
        query = sa.select(cls.id).filter_by(id=study.id)
        if session.scalar(query.with_for_update() if locked else query) is None:
            raise gone(study)

    def frozen(self) -> "StudyRecord":
        """The row as a value that outlives its session."""
        return StudyRecord(
            study=Incarnation(self.name, self.id),
            definition=self.definition,
            fingerprint=self.fingerprint,
            accepted=self.accepted,
            paused=self.paused,
        )


class SlotTable(Table):
    """One trial of the budget.

    `attempt` counts the claims; it is the fencing token of the worker that holds the slot. `lease`
    is when that worker's hold expires, by the database's clock. `vector` and `trial` (Optuna's
    trial id) are set together, once, with the `prompts` that it scores, where those are not all,
    and with `origin`, the slot that tried its vector first, where that is another one. `lost`
    counts the claims in a row that expired without a new score.
    """

    __tablename__ = "qsched_slots"
    study: Mapped[str] = mapped_column(sa.ForeignKey(StudyTable.id), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    state: Mapped[str] = mapped_column(sa.String(16), default="waiting")
    attempt: Mapped[int] = mapped_column(default=0)
    failures: Mapped[int] = mapped_column(default=0)
    lost: Mapped[int] = mapped_column(default=0)
    worker: Mapped[str | None] = mapped_column(sa.String(64))
    lease: Mapped[float | None]
    vector: Mapped[list[float] | None]
    trial: Mapped[int | None]
    prompts: Mapped[list[int] | None]
    origin: Mapped[int | None]
    value: Mapped[float | None]
    reason: Mapped[str | None] = mapped_column(sa.Text)
    finished: Mapped[float | None]
    __table_args__ = (
        sa.Index("qsched_slots_state", "study", "state"),
        sa.Index(
            "qsched_slots_open",
            "study",
            "number",
            sqlite_where=OPEN,
            postgresql_where=OPEN,
        ),
        sa.Index("qsched_slots_finished", "study", "finished"),
    )

    def frozen(self) -> "Slot":
        """The row as a value that outlives its session."""
        vector = tuple(self.vector) if self.vector is not None else None
        return Slot(
            number=self.number,
            state=self.state,
            attempt=self.attempt,
            failures=self.failures,
            worker=self.worker,
            vector=vector,
            trial=self.trial,
            prompts=tuple(self.prompts) if self.prompts is not None else None,
            origin=self.origin,
            value=self.value,
            reason=self.reason,
        )


class ScoreTable(Table):
    """One score: written once, never changed.

    The slot fixes the coefficients; `prompt` counts the study's calibration prompts, which fixes
    the caption and the seed.
    """

    __tablename__ = "qsched_scores"
    study: Mapped[str] = mapped_column(sa.String(32), primary_key=True)
    slot: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    prompt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    metric: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    value: Mapped[float]
    seconds: Mapped[float]
    __table_args__ = (
        sa.ForeignKeyConstraint(["study", "slot"], [SlotTable.study, SlotTable.number]),
    )


class WorkerTable(Table):
    """A worker process. `seen` by the database's clock; `images` and `seconds` count its work.

    `machine` tells the process from all others on all machines, as `hosts.Process` writes it; empty
    where that can't be told.
    """

    __tablename__ = "qsched_workers"
    id: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    study: Mapped[str] = mapped_column(sa.ForeignKey(StudyTable.id), index=True)
    machine: Mapped[str] = mapped_column(sa.String(255))
    host: Mapped[str] = mapped_column(sa.String(255))
    pid: Mapped[int]
    hardware: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(sa.String(16), default="working")
    started: Mapped[float]
    seen: Mapped[float]
    images: Mapped[int] = mapped_column(default=0)
    seconds: Mapped[float] = mapped_column(default=0.0)


class SelfTestTable(Table):
    """What a self-test found, for every worker of this fingerprint (a digest of it) and hardware
    (JSON). It belongs to no study and outlives them."""

    __tablename__ = "qsched_self_tests"
    fingerprint: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    hardware: Mapped[str] = mapped_column(sa.Text, primary_key=True)
    result: Mapped[dict[str, Any]]


def gone(study: Incarnation) -> StudyGone:
    """What is raised for a study that is not there any more."""
    return StudyGone(f"study {study.name!r} was deleted")


@dataclass(frozen=True, config=FINITE)
class StudyRecord:
    """A study as it is stored."""

    study: Incarnation
    definition: str
    fingerprint: dict[str, Any]
    accepted: dict[str, Any]
    paused: bool


@dataclass(frozen=True, config=FINITE)
class Tried:
    """A slot that was finished or stopped, as a sampler sees it; `time`: of its end, by the
    database's clock in seconds since 1970."""

    time: float
    number: int
    vector: tuple[float, ...]
    value: float


@dataclass(frozen=True, config=FINITE)
class Slot:
    """A slot as it stood when it was read.

    States: waiting, running, finished, stopped (before it had all prompts; the value is an
    estimate), parked. `prompts`: those that it scores, by index; None for all. `origin`: the slot
    that tried its vector first, whose scores are its own too; None for itself.
    """

    number: Count
    state: State
    attempt: Count
    failures: Count
    worker: str | None
    vector: tuple[float, ...] | None
    trial: int | None
    value: float | None
    reason: str | None
    prompts: tuple[Count, ...] | None = None
    origin: Count | None = None


@dataclass(frozen=True, config=FINITE)
class Running:
    """A slot that is being tried, as a sampler sees it; `prompts`: None for all."""

    number: Count
    vector: tuple[float, ...]
    prompts: tuple[Count, ...] | None


@dataclass(frozen=True, config=FINITE)
class Score:
    """A prompt's score under one metric; `seconds` is the prompt's share of its batch."""

    prompt: Count
    metric: str
    value: float
    seconds: float


@dataclass(frozen=True, config=FINITE)
class WorkerRecord:
    """A worker of a study. `idle`: seconds since it was last heard of."""

    id: str
    host: str
    pid: int
    hardware: dict[str, Any]
    state: str
    idle: float
    images: Count
    seconds: float

    @property
    def images_per_second(self) -> float:
        """Its speed while it generates and scores; 0 before the first image."""
        return self.images / self.seconds if self.seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """As `status --json` prints it."""
        return {
            **self.hardware,
            "id": self.id,
            "host": self.host,
            "pid": self.pid,
            "state": self.state,
            "idle_seconds": round(self.idle, 1),
            "images": self.images,
            "images_per_second": round(self.images_per_second, 3),
        }
