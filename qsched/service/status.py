"""Where a study stands, its candidates as values, and its trials as a data frame."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import pydantic

from qsched.errors import ConfigError
from qsched.notebooks import table
from qsched.schedule.coefficients import Coefficients
from qsched.service.queue import scores_by_slot
from qsched.service.schema import WorkerRecord

if TYPE_CHECKING:
    from pandas import DataFrame

    from qsched.service.stored_study import StoredStudy


@pydantic.dataclasses.dataclass(frozen=True, config={"allow_inf_nan": False})
class Candidate:
    """A finished trial: its slot, value and coefficients."""

    slot: int
    value: float
    coefficients: Coefficients

    def to_dict(self) -> dict[str, Any]:
        """As `status --json` and `report.json` show it."""
        return {
            "slot": self.slot,
            "value": self.value,
            "coefficients": self.coefficients.to_dict(),
        }

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Self:
        """What `to_dict` wrote, perhaps among other keys."""
        coefficients = Coefficients.from_dict(found["coefficients"])
        return cls(found["slot"], found["value"], coefficients)


@dataclass(frozen=True)
class Status:
    """Where a study stands.

    `done`: trials that are over, those among them that were `stopped` before they had all prompts.
    `expected`: the one of the highest estimate among the last few of them. `images` and `seconds`
    count the trials' work, not the validation's.
    """

    study: str
    budget: int
    done: int
    stopped: int
    running: int
    waiting: int
    parked: int
    paused: bool
    images: int
    seconds: float
    identity: Candidate | None
    best: Candidate | None
    expected: Candidate | None
    reasons: tuple[tuple[int, str], ...]
    workers: tuple[WorkerRecord, ...]
    fingerprint: dict[str, Any]
    accepted: dict[str, Any]

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return not self.waiting and not self.running

    @property
    def alive(self) -> tuple[WorkerRecord, ...]:
        """The workers that were heard of within a minute."""
        return tuple(w for w in self.workers if w.state == "working" and w.idle < 60)

    def _repr_html_(self) -> str:
        rows = [("trials", f"{self.done} of {self.budget}"), ("images", f"{self.images:,}")]
        told = {"running": self.running, "parked": self.parked, "workers": len(self.alive)}
        rows += [(what, str(number)) for what, number in told.items() if number]
        rows += [("identity", f"{self.identity.value:.4f}")] if self.identity else []
        rows += [("best", f"{self.best.value:.4f}, trial {self.best.slot}")] if self.best else []
        return table(f"Study {self.study}", rows)

    def to_dict(self) -> dict[str, Any]:
        """As `status --json` prints it."""
        return {
            "study": self.study,
            "budget": self.budget,
            "done": self.done,
            "stopped": self.stopped,
            "running": self.running,
            "waiting": self.waiting,
            "parked": self.parked,
            "paused": self.paused,
            "images": self.images,
            "seconds": self.seconds,
            "identity": self.identity.to_dict() if self.identity else None,
            "best": self.best.to_dict() if self.best else None,
            "expected": self.expected.to_dict() if self.expected else None,
            "reasons": {str(slot): reason for slot, reason in self.reasons},
            "workers": [worker.to_dict() for worker in self.workers],
            "fingerprint": self.fingerprint,
            "accepted": self.accepted,
        }


def trials_of(study: "StoredStudy") -> "DataFrame":
    """A row a trial of the budget, by its number: state, value, gain over the identity, what was
    searched by name, the scorers' means and the seconds it took; what isn't known yet is missing.

    Raises ConfigError where pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise ConfigError("trials_dataframe needs pandas: pip install pandas") from error
    slots, names = study.slots(), study.definition.parametrisation.names
    scores = study.storage.database.transaction(
        lambda session: scores_by_slot(session, study.incarnation)
    )
    identity = slots[0].value if slots else None
    rows: list[dict[str, Any]] = []
    for slot in slots:
        row: dict[str, Any] = {"trial": slot.number, "state": slot.state, "value": slot.value}
        known = slot.value is not None and identity is not None
        row["gain"] = slot.value - identity if known else None  # type: ignore[operator]
        row |= dict.fromkeys(names) | dict(zip(names, slot.vector or (), strict=False))
        found = scores.get(slot.number)
        rows.append(row | (study.attributes(found) if found else {}))
    return pandas.DataFrame(rows).set_index("trial")
