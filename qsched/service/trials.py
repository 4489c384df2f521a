"""The mirror of a study in Optuna, and its trials by slot: what optuna-dashboard sees.

The mirror is the Optuna study of the same name, with a mark that says whose it is. Optuna's tables
lie in the same database: the mirror is made, rebuilt and deleted in the same transactions as the
study itself, and what Optuna's storage writes in transactions of its own is fenced: each begins
with a look at our tables. Optuna numbers studies and trials, and SQLite gives the numbers of what
was deleted to what comes next; a number alone says nothing.

A slot has one trial, made when the slot begins and completed once, whoever finishes it: completing
it again changes nothing. A trial that somebody enqueued in Optuna becomes that of the next slot:
first the slot says so, then the trial runs. A trial that was made by a worker that died before it
could be entered in the slot belongs to nobody; `sweep` marks it as failed.
"""

import json
import mimetypes
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import optuna
import sqlalchemy as sa
from optuna.artifacts import ArtifactMeta, get_all_artifact_meta
from optuna.artifacts._upload import ARTIFACTS_ATTR_PREFIX, DEFAULT_MIME_TYPE
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages._rdb.models import (
    NOT_FOUND_MSG,
    StudyDirectionModel,
    StudyModel,
    StudySystemAttributeModel,
    TrialModel,
    TrialUserAttributeModel,
)
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import event
from sqlalchemy.orm import Session

from qsched.errors import MirrorLost, NotOurs
from qsched.schedule.parametrisations import Bounds, Parametrisation
from qsched.search.samplers import distributions, parameters, vector_of
from qsched.service.database import Database
from qsched.service.queue import lost
from qsched.service.schema import Incarnation, Slot, SlotTable, StudyTable, gone

if TYPE_CHECKING:
    from optuna.artifacts._protocol import ArtifactStore
    from optuna.storages import RDBStorage


Result = TypeVar("Result")

FIXED = "fixed_params"
"""The system attribute in which Optuna's enqueue_trial keeps the parameters."""

ESTIMATE = "estimate"
"""The attribute of a trial that was ended early."""

MARK = "qsched:incarnation"
"""The system attribute of an Optuna study that is ours: the id of the incarnation it mirrors."""

METRICS = "study:metric_names"
"""The system attribute in which Optuna keeps the names of the objectives."""


class Trials:
    """The trials of a study's mirror, by slot. Raises StorageError.

    What is written for a slot is written under its attempt, in a transaction of Optuna's that
    begins with a look at the slot: else LeaseLost, StudyGone, or MirrorLost where somebody deleted
    the mirror. `images`: how many a trial makes.
    """

    def __init__(
        self,
        database: Database,
        study: Incarnation,
        space: Parametrisation,
        bounds: Bounds,
        *,
        images: int,
    ) -> None:
        self._database = database
        self._incarnation = study
        self._space = space
        self._bounds = bounds
        self._images = images
        self._study: optuna.Study | None = None

    @property
    def study(self) -> optuna.Study:
        """The mirror, an Optuna study; its metric is JAQ, maximised."""
        if self._study is None:
            self._study = self.fenced(
                lambda: optuna.load_study(
                    study_name=self._incarnation.name, storage=self._database.optuna
                )
            )
        return self._study

    def fenced(
        self, work: Callable[[], Result], slot: Slot | None = None, *, free: int | None = None
    ) -> Result:
        """`work()`, which reads or writes the mirror; with a slot, that slot's trial; `free`: a
        trial that may be no slot's."""
        mirror = self._study._study_id if self._study else None
        locks = self._database.writes

        def check(connection: sa.Connection) -> None:
            _check(connection, self._incarnation, mirror, slot, locks=locks)
            if free is not None and _is_held(connection, self._incarnation, free):
                raise _mirror_lost(self._incarnation)

        def attempt() -> Result:
            with _fence(self._database.optuna, check):
                return work()

        try:
            return self._database.patiently(attempt)
        except MirrorLost:
            self._study = None
            raise
        except KeyError as error:
            if error.args != (NOT_FOUND_MSG,):
                raise
            self._study = None  # deleted after the look
            raise _mirror_lost(self._incarnation) from error

    def template(
        self, slot: Slot, vector: Sequence[float], state: TrialState, **more: Any
    ) -> FrozenTrial:
        """A trial of a slot. `more`: as Optuna's create_trial."""
        return create_trial(
            state=state,
            params=parameters(self._space, vector),
            distributions=distributions(self._space, self._bounds),
            user_attrs=self._own(slot) | more.pop("user_attrs", {}),
            **more,
        )

    def _own(self, slot: Slot) -> dict[str, Any]:
        """What a trial carries from its beginning."""
        own = {"slot": slot.number, "attempt": slot.attempt, "worker": slot.worker}
        images = self._images if slot.prompts is None else len(slot.prompts)
        again = {} if slot.origin is None else {"goes on from slot": slot.origin}
        return own | {"images": images} | again

    def make(self, slot: Slot, vector: Sequence[float]) -> int:
        """A running trial for a slot that has none; its id."""
        trial, study = self.template(slot, vector, TrialState.RUNNING), self.study._study_id
        return self.fenced(lambda: self._database.optuna.create_new_trial(study, trial), slot)

    def require(self, session: Session, slot: int, trial: int) -> None:
        """Raises MirrorLost unless the mirror has this trial and it was made for this slot: a
        number alone says nothing, where those of what was deleted are given again."""
        mark = sa.and_(
            StudySystemAttributeModel.study_id == TrialModel.study_id,
            StudySystemAttributeModel.key == MARK,
            StudySystemAttributeModel.value_json == json.dumps(self._incarnation.id),
        )
        own = sa.and_(
            TrialUserAttributeModel.trial_id == TrialModel.trial_id,
            TrialUserAttributeModel.key == "slot",
            TrialUserAttributeModel.value_json == json.dumps(slot),
        )
        query = sa.select(TrialModel.trial_id).join(StudySystemAttributeModel, mark)
        query = query.join(TrialUserAttributeModel, own).where(TrialModel.trial_id == trial)
        if session.execute(query).first() is None:
            raise _mirror_lost(self._incarnation)

    def enqueued(self) -> list[FrozenTrial]:
        """The trials that somebody enqueued in Optuna and that wait, in their order."""
        return self._in(TrialState.WAITING)

    def asked(self, trial: FrozenTrial) -> tuple[float, ...]:
        """The vector of an enqueued trial. Raises StudyError for one that can't be tried."""
        given = trial.system_attrs.get(FIXED, {}) | trial.params
        return vector_of(self._space, self._bounds, given)

    def start(self, slot: Slot) -> None:
        """An enqueued trial that is a slot's by now runs, as one that was made for it; nothing if
        it doesn't wait any more."""
        storage, values = self._database.optuna, parameters(self._space, slot.vector or ())

        def start(trial: int) -> None:
            if storage.get_trial(trial).state != TrialState.WAITING:
                return
            for name, attribute in self._own(slot).items():
                storage.set_trial_user_attr(trial, name, attribute)
            for name, distribution in distributions(self._space, self._bounds).items():
                value = distribution.to_internal_repr(values[name])
                storage.set_trial_param(trial, name, value, distribution)
            storage.set_trial_state_values(trial, TrialState.RUNNING)

        self._write(slot, start)

    def report(self, slot: Slot, step: int, value: float) -> None:
        """An intermediate value: JAQ of the prompts scored so far, at their number."""
        self._write(
            slot,
            lambda trial: self._database.optuna.set_trial_intermediate_value(trial, step, value),
        )

    def attach(self, slot: Slot, path: Path, store: "ArtifactStore") -> None:
        """Stores a file as the trial's artifact, unless it has one of that name. Raises the store's
        own errors."""
        storage = self._database.optuna
        frozen = self._get(slot)
        present = get_all_artifact_meta(frozen, storage=storage)
        if path.name not in {meta.filename for meta in present}:
            key, value = uploaded(path, store)
            self._write(slot, lambda trial: storage.set_trial_system_attr(trial, key, value))

    def complete(self, slot: Slot, value: float, attributes: Mapping[str, Any]) -> None:
        """The trial's value and attributes; nothing if it is complete already."""

        def complete(trial: int) -> None:
            storage = self._database.optuna
            for name, attribute in attributes.items():
                storage.set_trial_user_attr(trial, name, attribute)
            storage.set_trial_state_values(trial, TrialState.COMPLETE, [value])

        self._write(slot, complete)

    def prune(self, slot: Slot, estimate: float, attributes: Mapping[str, Any]) -> None:
        """Ends a trial that hasn't all prompts: its attributes, and what it would have come to as
        `estimate`."""

        def prune(trial: int) -> None:
            storage = self._database.optuna
            for name, attribute in (*attributes.items(), (ESTIMATE, estimate)):
                storage.set_trial_user_attr(trial, name, attribute)
            storage.set_trial_state_values(trial, TrialState.PRUNED)

        self._write(slot, prune)

    def estimate(self, slot: Slot) -> float | None:
        """The estimate of a trial that was ended early; None for any other."""
        frozen = self._get(slot)
        if frozen.state != TrialState.PRUNED:
            return None
        return float(frozen.user_attrs[ESTIMATE])

    def running(self) -> list[FrozenTrial]:
        """The trials that are running, as far as Optuna knows."""
        return self._in(TrialState.RUNNING)

    def all(self) -> list[FrozenTrial]:
        """Every trial, in the order of its making."""
        return self._in()

    def attributes(self) -> dict[str, Any]:
        """What Optuna and its dashboard keep at the mirror itself."""
        study = self.study._study_id
        return self.fenced(lambda: self._database.optuna.get_study_system_attrs(study))

    def sweep(self, running: Sequence[FrozenTrial], unfinished: Sequence[Slot]) -> None:
        """Fails those of `running` that a worker made and that belong to a parked slot, or to none.

        `unfinished`: the study's slots without a value, read after `running`. A trial is left alone
        while the attempt that made it may still enter it in its slot, and one that no worker made
        always.
        """
        owners = {slot.trial: slot for slot in unfinished if slot.trial is not None}
        held = {(slot.number, slot.attempt) for slot in unfinished if slot.state == "running"}
        for trial in running:
            owner = owners.get(trial._trial_id)
            if owner is not None and owner.state == "parked":
                self.abandon(trial._trial_id, owner.reason or "parked")
            elif owner is None and _made_by(trial) not in (None, *held):
                self.abandon(trial._trial_id, "its worker died before the trial had begun")

    def abandon(self, trial: int, reason: str) -> None:
        """Marks a trial as failed, with the reason; nothing if it is finished already. Raises
        MirrorLost if it is that of a slot, but for a parked one."""

        def fail() -> None:
            self._database.optuna.set_trial_user_attr(trial, "reason", reason)
            self._database.optuna.set_trial_state_values(trial, TrialState.FAIL)

        with suppress(UpdateFinishedTrialError):
            self.fenced(fail, free=trial)

    def _in(self, *states: TrialState) -> list[FrozenTrial]:
        """The trials that are in these states, or in any."""
        study, among = self.study._study_id, states or None
        return self.fenced(
            lambda: self._database.optuna.get_all_trials(study, deepcopy=False, states=among)
        )

    def _get(self, slot: Slot) -> FrozenTrial:
        return self.fenced(lambda: self._database.optuna.get_trial(_trial(slot)), slot)

    def _write(self, slot: Slot, write: Callable[[int], None]) -> None:
        with suppress(UpdateFinishedTrialError):  # an earlier attempt got so far, by these scores
            self.fenced(lambda: write(_trial(slot)), slot)


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


def find_mirror(session: Session, study: Incarnation) -> Any:
    """The mirror, a StudyModel; None where there is none. Raises NotOurs where its name is
    taken."""
    mark = sa.and_(
        StudySystemAttributeModel.study_id == StudyModel.study_id,
        StudySystemAttributeModel.key == MARK,
    )
    # In one statement: it may be deleted at any moment, its mark with it.
    row = session.execute(
        sa.select(StudyModel, StudySystemAttributeModel.value_json)
        .outerjoin(StudySystemAttributeModel, mark)
        .where(StudyModel.study_name == study.name)
    ).first()
    if row is None:
        return None
    found, marked = row
    if marked != json.dumps(study.id):
        raise NotOurs(
            f"study {study.name!r}: Optuna has a study of this name in this database that qsched "
            "did not make, and it is left alone; take another name with --name, or another "
            "database with --storage"
        )
    return found


def add_mirror(session: Session, study: Incarnation) -> Any:
    """The mirror, made where there is none: one metric, JAQ, maximised. Raises NotOurs."""
    found = find_mirror(session, study)
    if found is not None:
        return found
    made = StudyModel(
        study_name=study.name,
        directions=[StudyDirectionModel(direction=StudyDirection.MAXIMIZE, objective=0)],
        system_attributes=[_attribute(METRICS, ["JAQ"]), _attribute(MARK, study.id)],
    )
    session.add(made)
    session.flush()
    return made


def adopt_mirror(session: Session, study: Incarnation) -> None:
    """Marks the mirror that a version without marks made: it holds trials of the study's slots, or
    none at all. That version may also have left the mirror for later."""
    found = StudyModel.find_by_name(study.name, session)
    if found is None:
        add_mirror(session, study)
        return
    present = trials_in(session, found)
    ours = session.scalars(sa.select(SlotTable.trial).filter_by(study=study.id))
    if not present or not present.isdisjoint(ours):
        found.system_attributes.append(_attribute(MARK, study.id))


def trials_in(session: Session, mirror: Any) -> set[int]:
    """The ids of the trials that an Optuna study holds."""
    query = sa.select(TrialModel.trial_id).where(TrialModel.study_id == mirror.study_id)
    return set(session.scalars(query))


def enter_trial(session: Session, storage: "RDBStorage", mirror: Any, trial: FrozenTrial) -> int:
    """Enters a whole trial in a mirror; the id that Optuna knows it by."""
    made = storage._get_prepared_new_trial(mirror.study_id, trial, session)
    session.flush()
    return int(made.trial_id)


def remove_mirror(session: Session, study: Incarnation) -> None:
    """Deletes the mirror with its trials; a study that has its name but is not ours stays."""
    try:
        found = find_mirror(session, study)
    except NotOurs:
        return
    if found is not None:
        session.delete(found)
        session.flush()


@contextmanager
def _fence(storage: "RDBStorage", check: Callable[[sa.Connection], None]) -> Iterator[None]:
    """Each transaction that Optuna's storage begins in this thread meanwhile begins with `check`,
    which raises what is to undo it."""
    session = storage.scoped_session()

    def begun(session: Session, transaction: object, connection: sa.Connection) -> None:
        check(connection)

    event.listen(session, "after_begin", begun)
    try:
        yield
    finally:
        event.remove(session, "after_begin", begun)


def _check(
    connection: sa.Connection,
    study: Incarnation,
    mirror: int | None,
    slot: Slot | None,
    *,
    locks: bool,
) -> None:
    """Whether Optuna may write: the study is there until the transaction ends, its mirror is
    Optuna's study `mirror` (None: whichever), and `slot` is as it was read: this attempt's, in this
    state, with this trial.

    `locks`: without, the study may be deleted before the transaction ends, and nothing is written.
    Raises StudyGone, MirrorLost, LeaseLost.
    """
    held = sa.and_(
        SlotTable.study == StudyTable.id, SlotTable.number == (slot.number if slot else None)
    )
    marked = sa.and_(
        StudySystemAttributeModel.study_id == StudyModel.study_id,
        StudySystemAttributeModel.key == MARK,
        StudySystemAttributeModel.value_json == json.dumps(study.id),
    )
    query = (
        sa.select(
            StudySystemAttributeModel.study_id, SlotTable.state, SlotTable.attempt, SlotTable.trial
        )
        .select_from(StudyTable)
        .outerjoin(StudyModel, StudyModel.study_name == StudyTable.name)
        .outerjoin(StudySystemAttributeModel, marked)
        .outerjoin(SlotTable, held)
        .where(StudyTable.id == study.id)
    )
    if locks:
        query = query.with_for_update(read=True, key_share=True, of=StudyTable)
    row = connection.execute(query).first()
    if row is None:
        raise gone(study)
    number, state, attempt, trial = row
    if slot is not None and (state, attempt) != (slot.state, slot.attempt):
        raise lost(study, slot)
    if number is None or mirror not in (None, number) or (slot is not None and trial != slot.trial):
        raise _mirror_lost(study)


def _is_held(connection: sa.Connection, study: Incarnation, trial: int) -> bool:
    """Whether a trial is that of a slot that is not parked."""
    held = sa.select(SlotTable.number).where(SlotTable.state != "parked")
    return connection.execute(held.filter_by(study=study.id, trial=trial)).first() is not None


def _mirror_lost(study: Incarnation) -> MirrorLost:
    """What is raised for a study whose mirror somebody deleted."""
    return MirrorLost(f"study {study.name!r}: its trials in Optuna were deleted")


def _attribute(key: str, value: Any) -> Any:
    return StudySystemAttributeModel(key=key, value_json=json.dumps(value))


def _trial(slot: Slot) -> int:
    """Optuna's trial of a slot that has begun."""
    assert slot.trial is not None
    return slot.trial


def _made_by(trial: FrozenTrial) -> tuple[Any, Any] | None:
    """The slot and the attempt that made a trial; None if nobody of ours did."""
    slot, attempt = (trial.user_attrs.get(key) for key in ("slot", "attempt"))
    return None if slot is None else (slot, attempt)
