"""qsched's own tables in the shared database, and the frozen values that leave them."""

import datetime as dt
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

SCHEMA_VERSION = 1


class Table(DeclarativeBase):
    """The base of qsched's tables."""

    type_annotation_map = {dict[str, Any]: sa.JSON}  # noqa: RUF012


class SchemaTable(Table):
    """One row: the version of these tables."""

    __tablename__ = "qsched_schema"
    version: Mapped[int] = mapped_column(primary_key=True)


class StudyTable(Table):
    """A study: its definition as JSON, the fingerprint that a resume has to match, its outcome."""

    __tablename__ = "qsched_studies"
    name: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    definition: Mapped[str] = mapped_column(sa.Text)
    fingerprint: Mapped[dict[str, Any]]
    outcome: Mapped[dict[str, Any] | None]
    created: Mapped[dt.datetime] = mapped_column(server_default=sa.func.now())


class SlotTable(Table):
    """One trial of the budget. `vector` is set once, in the transaction that starts the slot."""

    __tablename__ = "qsched_slots"
    study: Mapped[str] = mapped_column(sa.ForeignKey(StudyTable.name), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    state: Mapped[str] = mapped_column(sa.String(16), default="waiting")
    failures: Mapped[int] = mapped_column(default=0)
    owner: Mapped[str | None] = mapped_column(sa.String(255))
    vector: Mapped[list[float] | None] = mapped_column(sa.JSON)
    value: Mapped[float | None]
    reason: Mapped[str | None] = mapped_column(sa.Text)

    def frozen(self) -> "Slot":
        """The row as a value that outlives its session."""
        vector = tuple(self.vector) if self.vector is not None else None
        return Slot(
            self.number, self.state, self.failures, self.owner, vector, self.value, self.reason
        )


class ScoreTable(Table):
    """One score: written once, never changed. `prompt` counts the study's calibration prompts."""

    __tablename__ = "qsched_scores"
    study: Mapped[str] = mapped_column(primary_key=True)
    slot: Mapped[int] = mapped_column(primary_key=True)
    prompt: Mapped[int] = mapped_column(primary_key=True)
    metric: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    value: Mapped[float]
    seconds: Mapped[float]
    __table_args__ = (
        sa.ForeignKeyConstraint(["study", "slot"], [SlotTable.study, SlotTable.number]),
    )


@dataclass(frozen=True)
class Slot:
    """A slot as it stood when it was read. States: waiting, running, finished, parked."""

    number: int
    state: str
    failures: int
    owner: str | None
    vector: tuple[float, ...] | None
    value: float | None
    reason: str | None


@dataclass(frozen=True)
class Score:
    """A prompt's score under one metric; `seconds` is the prompt's share of its batch."""

    prompt: int
    metric: str
    value: float
    seconds: float
