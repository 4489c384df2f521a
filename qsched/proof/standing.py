"""Where a study stands, for whoever watches it: its search, its verdict, and the time that is left.

Another look than `service.status` alone: the proof is read too. No torch.
"""

from dataclasses import dataclass
from typing import Any

from qsched.proof import outcome
from qsched.proof.outcome import Proof
from qsched.schedule.coefficients import Coefficients
from qsched.service.status import Status
from qsched.service.stored_study import StoredStudy


@dataclass(frozen=True)
class Standing:
    """A study as it stands.

    `proof`: what its last validation stored, None before the first. `left`: images that are still
    to be made at the most, the held-out ones among them, 0 once there is a verdict for this budget.
    """

    status: Status
    proof: Proof | None
    left: int

    @property
    def coefficients(self) -> Coefficients | None:
        """What may be taken away, with a verdict; before it, the search's best so far."""
        if self.proof is not None:
            return self.proof.coefficients
        return self.status.best.coefficients if self.status.best else None

    @property
    def images_per_second(self) -> float:
        """Of the workers that are at it; where none is, of one, as the trials went so far."""
        alive = sum(worker.images_per_second for worker in self.status.alive)
        one = self.status.images / self.status.seconds if self.status.seconds else 0.0
        return alive or one

    @property
    def seconds_left(self) -> float | None:
        """An estimate by that speed; None where nothing tells it yet."""
        if not self.left:
            return 0.0
        return self.left / self.images_per_second if self.images_per_second else None

    @property
    def over(self) -> bool:
        """Whether nothing is left to do: the budget is spent, and what it led to is proven."""
        return not self.left

    def to_dict(self) -> dict[str, Any]:
        """As `status --json` prints it: the status, and what is known beyond it."""
        proof = self.proof
        return {
            **self.status.to_dict(),
            "verdict": proof and proof.verdict,
            "sentence": proof and proof.sentence,
            "coefficients": self.coefficients and self.coefficients.to_dict(),
            "images_left": self.left,
            "seconds_left": None if self.seconds_left is None else round(self.seconds_left, 1),
        }


def standing_of(study: StoredStudy) -> Standing:
    """A study as it stands now. Raises StudyError for an outcome that can't be read."""
    status, proof = study.status(), outcome.kept(study)
    return Standing(status, proof, _left(study, status, proof))


def _left(study: StoredStudy, status: Status, proof: Proof | None) -> int:
    """The unfinished trials, by what a finished one took, and the image sets of the proof."""
    definition = study.definition
    unfinished = status.waiting + status.running
    usual = status.images / status.done if status.done else len(definition.calibration)
    if proof is not None and not unfinished and proof.budget == status.budget:
        return 0
    sets = 3 + definition.tables.validation.candidates
    return round(unfinished * usual) + sets * len(definition.held_out)
