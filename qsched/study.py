"""A study in the database: created or resumed under its fingerprint, and where it stands."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.trial import TrialState, create_trial

from qsched import config, jaq
from qsched.coefficients import Coefficients
from qsched.config import Study
from qsched.errors import StudyError
from qsched.samplers import Finished, distributions, named, propose
from qsched.schema import Slot
from qsched.storage import Storage


@dataclass(frozen=True)
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
            "coefficients": {
                "model": list(self.coefficients.model),
                "sample": list(self.coefficients.sample),
            },
        }


@dataclass(frozen=True)
class Status:
    """Where a study stands. `images` and `seconds` count the trials' work, not the validation's."""

    study: str
    budget: int
    done: int
    running: int
    waiting: int
    parked: int
    images: int
    seconds: float
    identity: Candidate | None
    best: Candidate | None
    reasons: tuple[tuple[int, str], ...]
    fingerprint: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """As `status --json` prints it."""
        return {
            "study": self.study,
            "budget": self.budget,
            "done": self.done,
            "running": self.running,
            "waiting": self.waiting,
            "parked": self.parked,
            "images": self.images,
            "seconds": self.seconds,
            "identity": self.identity.to_dict() if self.identity else None,
            "best": self.best.to_dict() if self.best else None,
            "reasons": {str(slot): reason for slot, reason in self.reasons},
            "fingerprint": self.fingerprint,
        }


class StoredStudy:
    """A study of a database: its definition, its slots and its Optuna twin of the same name."""

    def __init__(self, storage: Storage, definition: Study) -> None:
        self.storage = storage
        self.definition = definition
        self.name = definition.name

    def slots(self) -> list[Slot]:
        """All slots, by number."""
        return self.storage.slots(self.name)

    def finished(self) -> list[Slot]:
        """The slots that have a value, by number."""
        return [slot for slot in self.slots() if slot.state == "finished"]

    def next_vector(self, slot: int) -> tuple[float, ...]:
        """What the sampler proposes for a slot, given the trials that are finished."""
        search = self.definition.tables.search
        history = [Finished(done.vector or (), done.value or 0.0) for done in self.finished()]
        return propose(
            search.sampler,
            self.definition.parametrisation,
            self.definition.bounds,
            history,
            seed=search.seed,
            slot=slot,
        )

    def objective(self) -> jaq.Objective:
        """JAQ in the units of slot 0's scores. Raises StudyError while slot 0 isn't finished."""
        objective = self.definition.objective
        if not objective.standardised:
            return objective
        identity = self.term_scores(0)
        if any(len(values) < len(self.definition.calibration) for values in identity.values()):
            raise StudyError(f"{self.name}: slot 0, the identity, isn't scored yet; run it first")
        return objective.calibrated(identity)

    def term_scores(self, slot: int) -> dict[str, list[float]]:
        """{scorer: values in the order of the calibration prompts} of a slot's scored prompts."""
        terms: dict[str, list[float]] = {scorer: [] for scorer in self.definition.scorers}
        for score in self.storage.scores(self.name, slot):
            terms[score.metric].append(score.value)
        return terms

    def publish(self, slot: int, vector: Sequence[float], value: float) -> None:
        """Adds the finished trial to the Optuna study, once: a repeated call changes nothing."""
        study = self.optuna()
        if any(trial.user_attrs.get("slot") == slot for trial in study.get_trials(deepcopy=False)):
            return
        space = self.definition.parametrisation
        terms = self.term_scores(slot)
        study.add_trial(
            create_trial(
                state=TrialState.COMPLETE,
                value=value,
                params=named(space, vector),
                distributions=distributions(space, self.definition.bounds),
                user_attrs={
                    "slot": slot,
                    "images": len(self.definition.calibration),
                    **{name: sum(values) / len(values) for name, values in terms.items()},
                },
            )
        )

    def optuna(self) -> optuna.Study:
        """The Optuna study: what samplers' plots and optuna-dashboard read."""
        study = optuna.create_study(
            study_name=self.name,
            storage=self.storage.optuna,
            direction="maximize",
            load_if_exists=True,
        )
        if study.metric_names is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                study.set_metric_names(["JAQ"])
        return study

    def candidate(self, slot: Slot) -> Candidate:
        """A finished slot's coefficients and value."""
        vector = slot.vector or ()
        return Candidate(
            slot.number,
            slot.value if slot.value is not None else float("nan"),
            self.definition.parametrisation.coefficients(vector),
        )

    def best(self) -> Candidate | None:
        """The finished trial of the highest value, the earlier one among equals."""
        done = self.finished()
        if not done:
            return None
        return self.candidate(max(done, key=lambda slot: (slot.value or 0.0, -slot.number)))

    def status(self) -> Status:
        """Where the study stands."""
        slots = self.slots()
        counts = {
            state: sum(slot.state == state for slot in slots)
            for state in ("finished", "running", "waiting", "parked")
        }
        images, seconds = self.storage.effort(self.name)
        identity = next((slot for slot in slots[:1] if slot.state == "finished"), None)
        stored = self.storage.study(self.name)
        return Status(
            study=self.name,
            budget=len(slots),
            done=counts["finished"],
            running=counts["running"],
            waiting=counts["waiting"],
            parked=counts["parked"],
            images=images,
            seconds=seconds,
            identity=self.candidate(identity) if identity else None,
            best=self.best(),
            reasons=tuple((slot.number, slot.reason) for slot in slots if slot.reason),
            fingerprint=stored[1] if stored else {},
        )


def create(storage: Storage, definition: Study) -> StoredStudy:
    """Creates a study with its slots, or resumes the one of the same name and fingerprint.

    A larger budget adds slots; a smaller one is refused. Raises StudyError, naming each key that
    differs with both values, if the stored study has another fingerprint.
    """
    fingerprint = definition.fingerprint()
    stored = storage.study(definition.name)
    if stored is None:
        storage.add_study(definition.name, definition.to_json(), fingerprint)
    else:
        differing = config.differences(stored[1], fingerprint)
        if differing:
            raise StudyError(
                f"study {definition.name!r} exists in {storage} with another fingerprint:\n  "
                + "\n  ".join(differing)
                + "\nchange it back, or give this one another name with --name"
            )
        have = len(storage.slots(definition.name))
        if definition.trials < have:
            raise StudyError(
                f"study {definition.name!r} has {have} trials; a budget of {definition.trials} "
                f"would drop some: set search.trials (or --trials) to {have} or more"
            )
    storage.grow(definition.name, definition.trials)
    return StoredStudy(storage, definition)


def load(storage: Storage, name: str) -> StoredStudy:
    """A study by its name. Raises StudyError with the names that exist."""
    stored = storage.study(name)
    if stored is None:
        names = ", ".join(storage.study_names()) or "none"
        raise StudyError(f"study {name!r} is not in {storage}; there: {names}")
    return StoredStudy(storage, Study.from_json(stored[0]))
