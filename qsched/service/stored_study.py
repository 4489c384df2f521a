"""A study in the database: created or resumed under its fingerprint, and where it stands."""

import logging
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import sqlalchemy as sa
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.orm import Session

from qsched.errors import MirrorLost, NotOurs, StudyError, Unreadable
from qsched.schedule.coefficients import Coefficients
from qsched.scoring import jaq
from qsched.search import stopping
from qsched.search.box import Box, Proposal
from qsched.search.catalog import BLIND
from qsched.search.gauge import Gauge
from qsched.search.samplers import Proposer
from qsched.service.queue import Queue, scores_by_slot
from qsched.service.schema import (
    Incarnation,
    Score,
    Slot,
    SlotTable,
    StudyRecord,
    StudyTable,
)
from qsched.service.status import Candidate, Status, trials_of
from qsched.service.storage import Storage
from qsched.service.trials import (
    ESTIMATE,
    Trials,
    add_mirror,
    enter_trial,
    find_mirror,
    trials_in,
)
from qsched.study.fingerprint import LOADED
from qsched.study.study import Study

if TYPE_CHECKING:
    from pandas import DataFrame

OVERLAP = 5.0
"""Seconds that each look at the news goes back: transactions don't commit in their order."""

UNFINISHED = ("waiting", "running", "parked")

ENDED = {
    "finished": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "parked": TrialState.FAIL,
}
"""The states of slots whose trial is over, as Optuna has them."""

logger = logging.getLogger(__name__)


class StoredStudy:
    """A study of a database: its definition, its slots, and its mirror in Optuna.

    It stays that study, `incarnation`: once it is deleted everything raises StudyGone, even if
    another study has its name by then.
    """

    def __init__(self, storage: Storage, definition: Study, incarnation: Incarnation) -> None:
        self.storage = storage
        self.definition = definition
        self.incarnation = incarnation
        self.name = incarnation.name
        self.queue = Queue(storage.database, incarnation)
        self._objective: jaq.Objective | None = None
        self._rival: dict[int, dict[int, float]] = {}  # the best trial's value by prompt
        self._seen = 0.0  # the end of the last trial that the proposer knows
        self._gauge: Gauge | None = None

    def __repr__(self) -> str:
        return f"<StoredStudy {self.name!r} in {self.storage}>"

    def _repr_html_(self) -> str:
        return self.status()._repr_html_()

    def trials_dataframe(self) -> "DataFrame":
        """A row a trial of the budget: state, value, gain over the identity, what was searched by
        name, the scorers' means, seconds. Raises ConfigError where pandas is not installed."""
        return trials_of(self)

    @cached_property
    def trials(self) -> Trials:
        """The slots' trials in Optuna."""
        return Trials(
            self.storage.database,
            self.incarnation,
            self.definition.parametrisation,
            self.definition.bounds,
            images=len(self.definition.calibration),
        )

    @cached_property
    def _proposer(self) -> Proposer:
        search = self.definition.tables.search
        return Proposer(
            search.sampler,
            self.definition.parametrisation,
            self.definition.bounds,
            seed=search.seed,
            budget=search.trials,
            plan=self.definition.plan,
            gauge=self.gauge,
        )

    def require_agreement(self, accept: Collection[str] = ()) -> None:
        """Raises StudyError, naming each key with both values, where this machine has other
        weights, library versions or plug-ins than the study goes on under; keys in `accept` may
        differ, and the study records both values. Raises StudyGone."""
        record, here = self.storage.record(self.incarnation), self.definition.here()
        agreed = _agreed(self, here, record, accept, read=False)
        if agreed.accepted:
            stored = replace(Study.from_json(record.definition), weights=here.weights)
            self.storage.redefine(self.incarnation, stored.to_json(), *agreed)

    def require_weights(
        self, weights: Mapping[str, Mapping[str, str]], accept: Collection[str] = ()
    ) -> None:
        """Raises StudyError, naming each scorer with both, where one was loaded from other files
        than by whoever loaded it first for this study; the first one's are entered here.

        `weights`: {scorer: {file: SHA-256}}. Keys in `accept`, such as loaded.clipscore, may
        differ, and the study records both values. Raises StudyGone.
        """
        here = {f"{LOADED}{name}": dict(files) for name, files in weights.items()}
        stored = self.storage.complete(self.incarnation, here) if here else {}
        differing = {key: files for key, files in here.items() if stored[key] != files}
        refused = [
            f"{key}: the study has {stored[key]}, here it is {files}"
            for key, files in differing.items()
            if key not in accept
        ]
        if refused:
            raise StudyError(
                f"study {self.name!r}: its scorers were loaded from other files: "
                f"{'; '.join(refused)}; fetch them anew, or take responsibility with --accept KEY"
            )
        if differing:
            accepted = {key: (stored[key], files) for key, files in differing.items()}
            record = self.storage.record(self.incarnation)
            fingerprint = record.fingerprint | differing
            self.storage.redefine(self.incarnation, record.definition, fingerprint, accepted)

    def slots(self) -> list[Slot]:
        """All slots, by number."""
        return self.queue.slots()

    def finished(self) -> list[Slot]:
        """The slots that have a value, by number."""
        return self.queue.slots(("finished",))

    def propose(self, slot: int) -> Proposal:
        """What the sampler proposes for a slot, given the trials that are finished or running."""
        if slot == 0:
            return Proposal(self.definition.parametrisation.identity)
        budget = 1
        if self.definition.tables.search.sampler not in BLIND:
            self._catch_up()
        if self.definition.plan:
            budget = sum(self.queue.counts().values())
        return self._proposer.propose(slot, budget)

    def barriers(self, budget: int) -> tuple[int, ...]:
        """The slots that begin when all before them are over."""
        if self.definition.plan:
            return self.definition.plan.barriers(budget)
        return (1,) if self.definition.objective.standardised else ()

    @property
    def gauge(self) -> Gauge | None:
        """What was measured for the sampler `prompts`; None before, and for any other."""
        if self._gauge is None and self.definition.plan:
            stored = self.storage.gauge(self.incarnation)
            try:
                self._gauge = Gauge.from_dict(stored) if stored else None
            except ValueError as error:
                raise StudyError(
                    f"study {self.name!r}: its gauge can't be read: {error}; restore it from a "
                    "backup"
                ) from error
        return self._gauge

    @property
    def box(self) -> Box:
        """What is searched."""
        definition = self.definition
        seed = definition.tables.search.seed
        return Box(definition.parametrisation, definition.bounds, seed)

    def keep_gauge(self, gauge: Gauge) -> Gauge:
        """Stores what this worker measured, unless another one did; the gauge that counts."""
        self._gauge = Gauge.from_dict(self.storage.keep_gauge(self.incarnation, gauge.to_dict()))
        return self._gauge

    def estimate(self, slot: Slot, scores: Sequence[Score]) -> float:
        """What the whole pool's value is expected to be at a slot's vector, by some prompts'
        scores."""
        self._catch_up()
        vector = slot.vector or ()
        return self._proposer.estimate(slot.number, vector, self._by_prompt(scores, vector))

    def expected(self, slot: int) -> float | None:
        """What the model of the sampler `prompts` expects of a finished slot's value, by all that
        was scored: less of its prompts' luck than the value has. None for any other sampler."""
        if not self.definition.plan or not slot:
            return None
        return self.estimate(self.queue.slot(slot), self.queue.scores(slot))

    def adopt(self, slot: Slot, lease: float) -> Slot | None:
        """Makes the first trial that was enqueued in Optuna a slot's; the slot with it, None if
        none waits. What can't be tried, or is tried already, is failed, with the reason. Raises
        LeaseLost."""
        prompts = self._proposer.deal(slot.number)
        for enqueued in self.trials.enqueued():
            trial = enqueued._trial_id
            try:
                vector = self.trials.asked(enqueued)
            except StudyError as error:
                self._refuse(enqueued, str(error))
                continue
            other = self.queue.adopt(slot, lease, vector=vector, trial=trial, prompts=prompts)
            if other is None:
                adopted = replace(slot, vector=vector, trial=trial, prompts=prompts)
                self.trials.start(adopted)
                return adopted
            if other.trial != trial:
                self._refuse(enqueued, f"slot {other.number} has the same parameters")
        return None

    def _refuse(self, enqueued: FrozenTrial, reason: str) -> None:
        logger.warning("enqueued trial %d is refused: %s", enqueued.number, reason)
        self.trials.abandon(enqueued._trial_id, reason)

    def _catch_up(self) -> None:
        """Tells the proposer the trials it doesn't know yet, in the order of their ends."""
        news, running = self.queue.news(self._seen - OVERLAP)
        new = [tried for tried in news if not self._proposer.knows(tried.number)]
        scores: dict[int, list[Score]] = {}
        if new and self.definition.plan:
            scores = self.queue.own_scores([tried.number for tried in new])
        for tried in new:
            by_prompt = self._by_prompt(scores.get(tried.number, ()), tried.vector)
            self._proposer.add(tried.number, tried.vector, tried.value, scores=by_prompt)
            self._seen = max(self._seen, tried.time)
        for slot in running:
            self._proposer.add(slot.number, slot.vector, None, prompts=slot.prompts)

    def coefficients(self, vector: Sequence[float]) -> Coefficients:
        """The coefficients of a search vector."""
        return self.definition.parametrisation.coefficients(vector)

    def objective(self) -> jaq.Objective:
        """JAQ in the units of slot 0's scores. Raises StudyError while slot 0 isn't scored."""
        if self._objective is None:
            self._objective = self._calibrated(self.queue.scores(0))
        return self._objective

    def _calibrated(self, identity: Sequence[Score]) -> jaq.Objective:
        objective = self.definition.objective
        if not objective.standardised:
            return objective
        terms = self._terms(identity)
        if any(len(values) < len(self.definition.calibration) for values in terms.values()):
            raise StudyError(f"{self.name}: slot 0, the identity, isn't scored yet; run it first")
        return objective.calibrated(terms)

    def value(
        self, scores: Sequence[Score], vector: Sequence[float], *, identity: bool = False
    ) -> float:
        """JAQ of scored prompts, less what the prior takes for their vector.

        `identity`: they are slot 0's own, which set the units.
        """
        objective = self._calibrated(scores) if identity else self.objective()
        return objective.value(self._terms(scores)) - self.penalty(vector)

    def penalty(self, vector: Sequence[float]) -> float:
        """What the prior takes: `search.prior` at an edge of the box, nothing at the identity.

        The mean over what is searched of ((v - v0) / (edge - v0))**2, a Gaussian prior's logarithm;
        v0 is the identity's.
        """
        prior, space = self.definition.tables.search.prior, self.definition.parametrisation
        if prior == 0.0:
            return 0.0
        box = space.box(self.definition.bounds)
        sides = zip(space.names, vector, space.identity, box, strict=True)
        shares = [
            ((v - v0) / ((high if v > v0 else low) - v0)) ** 2 if v != v0 else 0.0
            for name, v, v0, (low, high) in sides
            if name not in space.pinned
        ]
        return prior * sum(shares) / len(shares)

    def order(self, slot: int) -> tuple[int, ...] | None:
        """The order in which a slot scores its prompts; None where none is stopped early."""
        search = self.definition.tables.search
        if slot == 0 or search.stop_below == 0.0 or self.definition.plan:
            return None
        return stopping.order(search.seed, slot, len(self.definition.calibration))

    def hopeless(self, slot: int, scores: Sequence[Score], vector: Sequence[float]) -> float | None:
        """The estimated value of a trial that should stop now; None for one that should go on."""
        doubt = self.definition.tables.search.stop_below
        best = self.queue.best() if slot and doubt else None
        if best is None:
            return None
        if best.number not in self._rival:
            rival = self._by_prompt(self.queue.scores(best.number), best.vector or ())
            self._rival = {best.number: rival}
        values = self._by_prompt(scores, vector)
        return stopping.estimate(values, self._rival[best.number], doubt)

    def _by_prompt(self, scores: Sequence[Score], vector: Sequence[float]) -> dict[int, float]:
        """{prompt: JAQ less the prior's share}."""
        prompts = sorted({score.prompt for score in scores})
        if not prompts:
            return {}
        values = self.objective().values(self._terms(scores)) - self.penalty(vector)
        return dict(zip(prompts, values.tolist(), strict=True))

    def attributes(self, scores: Sequence[Score]) -> dict[str, Any]:
        """What a trial shows beside its value: each scorer's mean, and the seconds it took."""
        if not scores:
            return {}
        means = {name: sum(values) / len(values) for name, values in self._terms(scores).items()}
        images = {score.prompt: score.seconds for score in scores}
        return {**means, "seconds": round(sum(images.values()), 3)}

    def term_scores(self, slot: int) -> dict[str, list[float]]:
        """{scorer: values in the order of the calibration prompts} of a slot's scored prompts."""
        return self._terms(self.queue.scores(slot))

    def _terms(self, scores: Sequence[Score]) -> dict[str, list[float]]:
        terms: dict[str, list[float]] = {scorer: [] for scorer in self.definition.scorers}
        for score in sorted(scores, key=lambda score: score.prompt):
            if score.metric not in terms:
                raise Unreadable(
                    f"study {self.name!r}: a score by {score.metric[:100]!r}; expected "
                    f"{', '.join(terms)}; restore it from a backup"
                )
            terms[score.metric].append(score.value)
        return terms

    def tidy(self) -> dict[str, int]:
        """Repairs what workers left that are gone; then {state: number of slots}.

        Expired slots go back to the queue; Optuna's trials that belong to nobody, or to a parked
        slot, are marked as failed, and those of slots that have ended are ended. A mirror that
        somebody deleted is made anew; where its name was taken in the meantime that is said, and
        nothing is touched. Nor is it where the database may not be written.
        """
        if not self.storage.database.writes:
            return self.queue.counts()
        try:
            return self._tidied()
        except MirrorLost:  # before, or just now
            with suppress(MirrorLost):  # again: the next one mends it
                try:
                    self.restore()
                    return self._tidied()
                except NotOurs as error:
                    logger.warning("%s", error)
            return self.queue.counts()

    def _tidied(self) -> dict[str, int]:
        running = self.trials.running()
        counts = self.queue.counts()
        if running:
            for slot in self.queue.ended([trial._trial_id for trial in running]):
                self._end(slot)
            self.trials.sweep(running, self.queue.slots(UNFINISHED))
        return counts

    def _end(self, slot: Slot) -> None:
        """Ends the trial of a slot that has ended: its mirror was made anew between the two."""
        scores = self.queue.scores(slot.number)
        attributes = self.attributes(scores)
        if slot.state == "stopped":
            attributes |= {"prompts": len({score.prompt for score in scores})}
            self.trials.prune(slot, slot.value or 0.0, attributes)
        else:
            self.trials.complete(slot, slot.value or 0.0, attributes)

    def restore(self) -> None:
        """Makes the mirror anew where somebody deleted it in Optuna, by what is stored: the trials
        with their vectors, states, values, scorers' means and seconds. Raises NotOurs, StudyGone.
        """
        optuna = self.storage.database.optuna

        def restored(session: Session) -> bool:
            StudyTable.of(session, self.incarnation, locked=True)
            there = find_mirror(session, self.incarnation)
            mirror = there or add_mirror(session, self.incarnation)
            present = trials_in(session, mirror)
            begun = sa.select(SlotTable).where(SlotTable.trial.is_not(None))
            query = begun.filter_by(study=self.incarnation.id).order_by(SlotTable.number)
            missing = [row for row in session.scalars(query).all() if row.trial not in present]
            scores = scores_by_slot(session, self.incarnation) if missing else {}
            origins = _origins(session, self.incarnation) if missing else {}
            for row in missing:
                family = [
                    number
                    for number, origin in origins.items()
                    if number <= row.number and row.origin in (number, origin)
                ]
                mine = family if row.origin is not None else [row.number]
                found = [score for number in mine for score in scores.get(number, [])]
                trial = self._trial(row, sorted(found, key=lambda s: (s.prompt, s.metric)))
                row.trial = enter_trial(session, optuna, mirror, trial)
            return there is None or bool(missing)

        if self.storage.database.transaction(restored):
            logger.warning(
                "study %r: its trials in Optuna were deleted; they are made anew by what is stored",
                self.name,
            )

    def _trial(self, row: SlotTable, scores: Sequence[Score]) -> FrozenTrial:
        """A slot's trial, as far as it is known."""
        slot, attributes = row.frozen(), self.attributes(scores)
        prompts = len({score.prompt for score in scores})
        more: dict[str, Any] = {}
        if slot.state == "finished":
            steps = {prompts: slot.value} if slot.number else {}
            more = {"value": slot.value, "intermediate_values": steps}
        elif slot.state == "stopped":
            attributes |= {ESTIMATE: slot.value, "prompts": prompts}
        elif slot.state == "parked":
            attributes |= {"reason": slot.reason}
        state = ENDED.get(slot.state, TrialState.RUNNING)
        made = self.trials.template(slot, slot.vector or (), state, user_attrs=attributes, **more)
        if row.finished is not None:
            made.datetime_complete = datetime.fromtimestamp(row.finished)
            taken = timedelta(seconds=attributes.get("seconds", 0.0))
            made.datetime_start = made.datetime_complete - taken
        return made

    def extend(self, trials: str) -> int:
        """Gives the study a larger budget, "200" or "+50"; returns it. Raises StudyError."""
        have = sum(self.queue.counts().values())
        more = trials.startswith("+")
        if not trials.removeprefix("+").isdecimal():
            raise StudyError(f"--trials {trials!r}; expected a number such as {have + 50}, or +50")
        budget = int(trials) + (have if more else 0)
        if budget < have:
            raise StudyError(f"--trials {trials}: study {self.name!r} has {have} trials already")
        self.queue.grow(budget)
        return budget

    def retry(self) -> int:
        """Gives parked slots another chance, as new trials of the same vectors; how many."""
        self.tidy()
        return self.queue.retry()

    def delete(self) -> None:
        """Removes the study, its scores and its trials. Raises StudyError while workers hold it,
        StudyGone the second time."""
        self.queue.require_rest()
        self.storage.delete_study(self.incarnation)

    def candidate(self, slot: Slot) -> Candidate:
        """A finished slot's coefficients and value. Raises Unreadable for one that has none."""
        if slot.value is None or slot.vector is None:
            raise Unreadable(
                f"study {self.name!r}: trial {slot.number} is finished and has no value or vector; "
                "restore it from a backup"
            )
        return Candidate(slot.number, slot.value, self.coefficients(slot.vector))

    def best(self) -> Candidate | None:
        """The finished trial of the highest value, the earlier one among equals."""
        slot = self.queue.best()
        return self.candidate(slot) if slot else None

    def identity(self) -> Candidate | None:
        """Trial 0, the unmodified schedule; None while it isn't finished."""
        slot = self.queue.slot(0)
        return self.candidate(slot) if slot.state == "finished" else None

    def status(self) -> Status:
        """Where the study stands, after what expired was returned to the queue."""
        counts = self.queue.counts()
        rows, seconds = self.queue.effort()
        record = self.storage.record(self.incarnation)
        scorers = len(self.definition.scorers)
        measuring = self.gauge.images if self.gauge else 0
        expected = self.queue.expected() if counts["stopped"] else None
        return Status(
            study=self.name,
            budget=sum(counts.values()),
            done=counts["finished"] + counts["stopped"],
            stopped=counts["stopped"],
            running=counts["running"],
            waiting=counts["waiting"],
            parked=counts["parked"],
            paused=record.paused,
            images=rows // scorers + measuring,
            seconds=seconds / scorers,
            identity=self.identity(),
            best=self.best(),
            expected=self.candidate(expected) if expected else None,
            reasons=tuple(self.queue.reasons()),
            workers=tuple(self.storage.workers(self.incarnation)),
            fingerprint=record.fingerprint,
            accepted=record.accepted,
        )


def _origins(session: Session, study: Incarnation) -> dict[int, int | None]:
    """{number: origin} of all slots."""
    rows = session.execute(
        sa.select(SlotTable.number, SlotTable.origin).where(SlotTable.study == study.id)
    )
    return {row.number: row.origin for row in rows}


def create(
    storage: Storage,
    definition: Study,
    *,
    accept: Collection[str] = (),
    on_change: Callable[[Mapping[str, tuple[Any, Any]]], None] = lambda changed: None,
) -> StoredStudy:
    """Creates a study with its slots, or resumes the one of the same name and fingerprint.

    A larger budget adds slots; a smaller one is refused, but for the one that the study was begun
    with: it may have been extended since. `accept`: keys of the fingerprint that may differ; the
    study records both values. What no value depends on, `[execution]` and `[gallery]`, is taken as
    it is now, for workers that start from here on; `on_change` is told {key: (before, now)} of it.
    Raises StudyError, naming each other key that differs with both values, and NotOurs if a study
    of plain Optuna has the name.
    """
    record = storage.study(definition.name) or storage.add_study(
        definition.name,
        definition.to_json(),
        definition.fingerprint(),
        budget=definition.trials,
    )
    study = StoredStudy(storage, definition, record.study)
    agreed = _agreed(study, definition, record, accept)
    have, before = sum(study.queue.counts().values()), Study.from_json(record.definition)
    if definition.trials < have and definition.trials != before.trials:
        raise StudyError(
            f"study {definition.name!r} has {have} trials; a budget of {definition.trials} "
            f"would drop some: set search.trials (or --trials) to {have} or more"
        )
    redefined = definition.with_budget(before.trials)  # the sampler's, which it keeps
    if redefined != before or agreed.fingerprint != record.fingerprint:
        storage.redefine(record.study, redefined.to_json(), agreed.fingerprint, agreed.accepted)
    if changed := definition.changed_settings(before):
        on_change(changed)
    study.queue.grow(definition.trials)
    return study


def load(
    storage: Storage, name: str, *, file: Study | None = None, allow: Collection[str] = ()
) -> StoredStudy:
    """A study by its name. Of what its definition names as ``module:name`` nothing is run but what
    the `file` at hand names too, and the modules in `allow`. Raises StudyError with the names that
    exist, and Unreadable for a definition that can't be read.
    """
    record = storage.record(storage.incarnation(name))
    allowed = file.modules if file else ()
    try:
        definition = Study.from_json(
            record.definition, file=file.file if file else None, allowed=allowed
        )
        if definition.name != name:
            raise Unreadable(
                f"its stored definition is one of {definition.name!r}; restore it from a backup"
            )
    except Unreadable as error:
        raise Unreadable(
            f"study {name!r} in {storage}: {error}, or remove it: qsched delete {shlex.quote(name)}"
        ) from error
    return StoredStudy(storage, definition.allowing(allow), record.study)


class _Agreed(NamedTuple):
    """A fingerprint that a study goes on under, and the keys of it that were `accepted`."""

    fingerprint: dict[str, Any]
    accepted: dict[str, tuple[Any, Any]]


def _agreed(
    study: StoredStudy,
    current: Study,
    record: StudyRecord,
    accept: Collection[str],
    *,
    read: bool = True,
) -> _Agreed:
    """The one gate: refuses another fingerprint than the stored one, but for keys in `accept`.

    `current`: the study as it is here and now. `read`: its prompts were read here. Raises
    StudyError, naming each key with both values.
    """
    stored, now = record.fingerprint, current.fingerprint(read=read)
    differing = current.differences(stored, read=read)
    refused = [words for key, words in differing.items() if key not in accept]
    if refused:
        instead = "give this one another name with --name, " if read else ""
        raise StudyError(
            f"study {study.name!r} exists in {study.storage} with another fingerprint:\n  "
            + "\n  ".join(refused)
            + f"\nchange it back, {instead}or take responsibility with --accept KEY"
        )
    accepted = {key: (stored.get(key), now.get(key)) for key in differing}
    renewed = read and "format" not in stored
    fingerprint = now if renewed else stored | {key: now.get(key) for key in differing}
    return _Agreed(fingerprint, accepted)
