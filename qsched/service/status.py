"""Where a study stands, and its candidates, as values."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import pydantic

from qsched.notebooks import table
from qsched.schedule.coefficients import Coefficients
from qsched.service.schema import WorkerRecord


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

    `done`: trials that are over, those among them that were `stopped` early. `images` and `seconds`
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
            "reasons": {str(slot): reason for slot, reason in self.reasons},
            "workers": [worker.to_dict() for worker in self.workers],
            "fingerprint": self.fingerprint,
            "accepted": self.accepted,
        }
