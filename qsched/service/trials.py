"""A slot's trial in Optuna: what samplers' plots and optuna-dashboard see of it.

A slot has one trial, made when the slot begins and completed once, whoever finishes it: completing
it again changes nothing. A trial that somebody enqueued in Optuna becomes that of the next slot:
first the slot says so, then the trial runs. A trial that was made by a worker that died before it
could be entered in the slot belongs to nobody; `sweep` marks it as failed.
"""

import json
import mimetypes
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.artifacts import ArtifactMeta, get_all_artifact_meta
from optuna.artifacts._upload import ARTIFACTS_ATTR_PREFIX, DEFAULT_MIME_TYPE
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState, create_trial

from qsched.libraries import quiet
from qsched.schedule.parametrisations import Bounds, Parametrisation
from qsched.search.samplers import distributions, parameters, vector_of
from qsched.service.database import Database
from qsched.service.schema import Slot

if TYPE_CHECKING:
    from optuna.artifacts._protocol import ArtifactStore


FIXED = "fixed_params"
"""The system attribute in which Optuna's enqueue_trial keeps the parameters."""

ESTIMATE = "estimate"
"""The attribute of a trial that was ended early."""


class Trials:
    """The Optuna study of the same name, its trials by slot. Raises StorageError.

    `images`: how many a trial makes.
    """

    def __init__(
        self,
        database: Database,
        study: str,
        space: Parametrisation,
        bounds: Bounds,
        *,
        images: int,
    ) -> None:
        self._database = database
        self._name = study
        self._space = space
        self._bounds = bounds
        self._images = images

    @cached_property
    def study(self) -> optuna.Study:
        """The mirror, an Optuna study, made where it is missing; its metric is JAQ, maximised."""

        def made() -> optuna.Study:
            with quiet():
                study = optuna.create_study(
                    study_name=self._name,
                    storage=self._database.optuna,
                    direction="maximize",
                    load_if_exists=True,
                )
                if study.metric_names is None:
                    study.set_metric_names(["JAQ"])
            return study

        return self._database.patiently(made)

    def make(self, slot: Slot, vector: Sequence[float], worker: str) -> int:
        """A running trial for a slot, which carries slot and attempt; its id."""
        trial = create_trial(
            state=TrialState.RUNNING,
            params=parameters(self._space, vector),
            distributions=distributions(self._space, self._bounds),
            user_attrs=self._attributes(slot, worker),
        )
        return self._database.patiently(
            lambda: self._database.optuna.create_new_trial(self.study._study_id, trial)
        )

    def enqueued(self) -> list[FrozenTrial]:
        """The trials that somebody enqueued in Optuna and that wait, in their order."""
        return self._database.patiently(
            lambda: self._database.optuna.get_all_trials(
                self.study._study_id, deepcopy=False, states=(TrialState.WAITING,)
            )
        )

    def asked(self, trial: FrozenTrial) -> tuple[float, ...]:
        """The vector of an enqueued trial. Raises StudyError for one that can't be tried."""
        given = trial.system_attrs.get(FIXED, {}) | trial.params
        return vector_of(self._space, self._bounds, given)

    def start(self, trial: int, slot: Slot, vector: Sequence[float], worker: str) -> None:
        """An enqueued trial that is a slot's by now runs, as one that was made for it; nothing if
        it doesn't wait any more."""
        storage = self._database.optuna
        values = parameters(self._space, vector)

        def start() -> None:
            if storage.get_trial(trial).state != TrialState.WAITING:
                return
            for name, attribute in self._attributes(slot, worker).items():
                storage.set_trial_user_attr(trial, name, attribute)
            for name, distribution in distributions(self._space, self._bounds).items():
                value = distribution.to_internal_repr(values[name])
                storage.set_trial_param(trial, name, value, distribution)
            storage.set_trial_state_values(trial, TrialState.RUNNING)

        self._write(start)

    def _attributes(self, slot: Slot, worker: str) -> dict[str, Any]:
        """What a trial carries from its beginning."""
        own = {"slot": slot.number, "attempt": slot.attempt, "worker": worker}
        return own | {"images": self._images}

    def report(self, trial: int, step: int, value: float) -> None:
        """An intermediate value: JAQ of the prompts scored so far, at their number."""
        self._write(lambda: self._database.optuna.set_trial_intermediate_value(trial, step, value))

    def attach(self, trial: int, path: Path, store: "ArtifactStore") -> None:
        """Stores a file as the trial's artifact, unless it has one of that name. Raises the store's
        own errors."""
        storage = self._database.optuna
        frozen = self._database.patiently(lambda: storage.get_trial(trial))
        present = get_all_artifact_meta(frozen, storage=storage)
        if path.name not in {meta.filename for meta in present}:
            key, value = uploaded(path, store)
            self._write(lambda: storage.set_trial_system_attr(trial, key, value))

    def complete(self, trial: int, value: float, attributes: Mapping[str, Any]) -> None:
        """The trial's value and attributes; nothing if it is complete already."""

        def complete() -> None:
            storage = self._database.optuna
            for name, attribute in attributes.items():
                storage.set_trial_user_attr(trial, name, attribute)
            storage.set_trial_state_values(trial, TrialState.COMPLETE, [value])

        self._write(complete)

    def prune(self, trial: int, estimate: float, attributes: Mapping[str, Any]) -> None:
        """Ends a trial early: its attributes, and what it would have come to as `estimate`."""

        def prune() -> None:
            storage = self._database.optuna
            for name, attribute in (*attributes.items(), (ESTIMATE, estimate)):
                storage.set_trial_user_attr(trial, name, attribute)
            storage.set_trial_state_values(trial, TrialState.PRUNED)

        self._write(prune)

    def estimate(self, trial: int) -> float | None:
        """The estimate of a trial that was ended early; None for any other."""
        frozen = self._database.patiently(lambda: self._database.optuna.get_trial(trial))
        if frozen.state != TrialState.PRUNED:
            return None
        return float(frozen.user_attrs[ESTIMATE])

    def abandon(self, trial: int, reason: str) -> None:
        """Marks a trial as failed, with the reason; nothing if it is finished already."""

        def fail() -> None:
            self._database.optuna.set_trial_user_attr(trial, "reason", reason)
            self._database.optuna.set_trial_state_values(trial, TrialState.FAIL)

        self._write(fail)

    def running(self) -> list[FrozenTrial]:
        """The trials that are running, as far as Optuna knows."""
        return self._database.patiently(
            lambda: self._database.optuna.get_all_trials(
                self.study._study_id, deepcopy=False, states=(TrialState.RUNNING,)
            )
        )

    def sweep(self, running: Sequence[FrozenTrial], unfinished: Sequence[Slot]) -> None:
        """Fails those of `running` that belong to a parked slot, or to none.

        `unfinished`: the study's slots without a value, read after `running`. A trial is left alone
        while the attempt that made it may still enter it in its slot.
        """
        owners = {slot.trial: slot for slot in unfinished if slot.trial is not None}
        held = {(slot.number, slot.attempt) for slot in unfinished if slot.state == "running"}
        for trial in running:
            owner = owners.get(trial._trial_id)
            if owner is not None and owner.state == "parked":
                self.abandon(trial._trial_id, owner.reason or "parked")
            elif owner is None and _made_by(trial) not in held:
                self.abandon(trial._trial_id, "its worker died before the trial had begun")

    def delete(self) -> None:
        """Removes the Optuna study and its trials."""
        self._database.patiently(
            lambda: optuna.delete_study(study_name=self._name, storage=self._database.optuna)
        )

    def _write(self, write: Callable[[], None]) -> None:
        with suppress(UpdateFinishedTrialError):  # an earlier attempt got so far, by these scores
            self._database.patiently(write)


def uploaded(path: Path, store: "ArtifactStore") -> tuple[str, str]:
    """Writes a file to a store; key and value of the system attribute that makes it an artifact.

    Optuna's upload_artifact sets the attribute first: where the store fails then, its dashboard has
    a broken picture. Raises the store's own errors.
    """
    identity = str(uuid.uuid4())
    kind, encoding = mimetypes.guess_type(path.name)
    artifact = ArtifactMeta(identity, path.name, kind or DEFAULT_MIME_TYPE, encoding)
    with path.open("rb") as file:
        store.write(identity, file)
    return ARTIFACTS_ATTR_PREFIX + identity, json.dumps(asdict(artifact))


def _made_by(trial: FrozenTrial) -> tuple[Any, Any]:
    """The slot and the attempt that made a trial."""
    return trial.user_attrs.get("slot"), trial.user_attrs.get("attempt")
