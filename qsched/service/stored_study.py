"""A study in the database: created or resumed under its fingerprint, and where it stands."""

import logging
from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any

from optuna.trial import FrozenTrial

from qsched.errors import StudyError
from qsched.schedule.coefficients import Coefficients
from qsched.scoring import jaq
from qsched.search import stopping
from qsched.search.catalog import BLIND
from qsched.search.samplers import Proposer
from qsched.service.queue import Queue
from qsched.service.schema import Score, Slot
from qsched.service.status import Candidate, Status
from qsched.service.storage import Storage
from qsched.service.trials import Trials
from qsched.study.study import Study

OVERLAP = 5.0
"""Seconds that each look at the news goes back: transactions don't commit in their order."""

UNFINISHED = ("waiting", "running", "parked")

logger = logging.getLogger(__name__)


class StoredStudy:
    """A study of a database: its definition, its slots, and its mirror in Optuna."""

    def __init__(self, storage: Storage, definition: Study) -> None:
        self.storage = storage
        self.definition = definition
        self.name = definition.name
        self.queue = Queue(storage.database, definition.name)
        self._objective: jaq.Objective | None = None
        self._rival: dict[int, dict[int, float]] = {}  # the best trial's value by prompt
        self._seen = 0.0  # the end of the last trial that the proposer knows

    @cached_property
    def trials(self) -> Trials:
        """The slots' trials in Optuna."""
        return Trials(
            self.storage.database,
            self.name,
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
        )

    def slots(self) -> list[Slot]:
        """All slots, by number."""
        return self.queue.slots()

    def finished(self) -> list[Slot]:
        """The slots that have a value, by number."""
        return self.queue.slots(("finished",))

    def vector(self, slot: int) -> tuple[float, ...]:
        """What the sampler proposes for a slot, given the trials that are finished or running."""
        if slot and self.definition.tables.search.sampler not in BLIND:
            self._catch_up()
        return self._proposer.vector(slot)

    def adopt(self, slot: Slot, lease: float, worker: str) -> tuple[tuple[float, ...], int] | None:
        """Makes the first trial that was enqueued in Optuna a slot's; vector and trial, None if
        none waits. What can't be tried, or is tried already, is failed, with the reason. Raises
        LeaseLost."""
        for enqueued in self.trials.enqueued():
            trial = enqueued._trial_id
            try:
                vector = self.trials.asked(enqueued)
            except StudyError as error:
                self._refuse(enqueued, str(error))
                continue
            other = self.queue.adopt(slot, lease, vector=vector, trial=trial)
            if other is None:
                self.trials.start(trial, slot, vector, worker)
                return vector, trial
            if other.trial != trial:
                self._refuse(enqueued, f"slot {other.number} has the same parameters")
        return None

    def _refuse(self, enqueued: FrozenTrial, reason: str) -> None:
        logger.warning("enqueued trial %d is refused: %s", enqueued.number, reason)
        self.trials.abandon(enqueued._trial_id, reason)

    def _catch_up(self) -> None:
        """Tells the proposer the trials it doesn't know yet, in the order of their ends."""
        news, running = self.queue.news(self._seen - OVERLAP)
        for tried in news:
            self._proposer.add(tried.number, tried.vector, tried.value)
            self._seen = max(self._seen, tried.time)
        for number, vector in running:
            self._proposer.add(number, vector, None)

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
        if slot == 0 or search.stop_below == 0.0:
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
        values = self.objective().values(self._terms(scores)) - self.penalty(vector)
        return dict(zip(prompts, values.tolist(), strict=True))

    def attributes(self, scores: Sequence[Score]) -> dict[str, Any]:
        """What a trial shows beside its value: each scorer's mean, and the seconds it took."""
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
                raise StudyError(
                    f"study {self.name!r}: a score by {score.metric[:100]!r}; expected "
                    f"{', '.join(terms)}; restore it from a backup"
                )
            terms[score.metric].append(score.value)
        return terms

    def tidy(self) -> dict[str, int]:
        """Repairs what workers left that are gone; then {state: number of slots}.

        Expired slots go back to the queue; Optuna's trials that belong to nobody, or to a parked
        slot, are marked as failed.
        """
        running = self.trials.running()
        counts = self.queue.counts()
        if running:
            self.trials.sweep(running, self.queue.slots(UNFINISHED))
        return counts

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
        """Removes the study, its scores and its trials. Raises StudyError while workers hold it."""
        self.require_rest()
        self.trials.delete()
        self.storage.delete_study(self.name)

    def require_rest(self) -> None:
        """Raises StudyError while workers hold trials."""
        if self.queue.counts()["running"]:
            raise StudyError(
                f"study {self.name!r} is being worked on; pause it, or wait until its leases expire"
            )

    def candidate(self, slot: Slot) -> Candidate:
        """A finished slot's coefficients and value. Raises StudyError for one that has none."""
        if slot.value is None or slot.vector is None:
            raise StudyError(
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
        record = self.storage.study(self.name)
        scorers = len(self.definition.scorers)
        return Status(
            study=self.name,
            budget=sum(counts.values()),
            done=counts["finished"] + counts["stopped"],
            stopped=counts["stopped"],
            running=counts["running"],
            waiting=counts["waiting"],
            parked=counts["parked"],
            paused=record.paused if record else False,
            images=rows // scorers,
            seconds=seconds / scorers,
            identity=self.identity(),
            best=self.best(),
            reasons=tuple(self.queue.reasons()),
            workers=tuple(self.storage.workers(self.name)),
            fingerprint=record.fingerprint if record else {},
            accepted=record.accepted if record else {},
        )


def create(storage: Storage, definition: Study, *, accept: Collection[str] = ()) -> StoredStudy:
    """Creates a study with its slots, or resumes the one of the same name and fingerprint.

    A larger budget adds slots; a smaller one is refused, but for the one that the study was begun
    with: it may have been extended since. `accept`: keys of the fingerprint that may
    differ; the study records both values. Raises StudyError, naming each other key that differs
    with both values.
    """
    study = StoredStudy(storage, definition)
    stored = storage.study(definition.name)
    if stored is None:
        storage.add_study(definition.name, definition.to_json(), definition.fingerprint())
    else:
        _agree(storage, definition, stored.fingerprint, accept)
        have, entered = sum(study.queue.counts().values()), Study.from_json(stored.definition)
        if definition.trials < have and definition.trials != entered.trials:
            raise StudyError(
                f"study {definition.name!r} has {have} trials; a budget of {definition.trials} "
                f"would drop some: set search.trials (or --trials) to {have} or more"
            )
    study.queue.grow(definition.trials)
    return study


def load(
    storage: Storage, name: str, *, file: Study | None = None, allow: Collection[str] = ()
) -> StoredStudy:
    """A study by its name. Of what its definition names as ``module:name`` nothing is run but what
    the `file` at hand names too, and the modules in `allow`. Raises StudyError with the names that
    exist, and for a definition that can't be read.
    """
    stored = storage.study(name)
    if stored is None:
        names = ", ".join(storage.study_names()) or "none"
        raise StudyError(f"study {name!r} is not in {storage}; there: {names}")
    allowed = file.modules if file else ()
    try:
        definition = Study.from_json(
            stored.definition, file=file.file if file else None, allowed=allowed
        )
    except StudyError as error:
        raise StudyError(f"study {name!r} in {storage}: {error}") from error
    if definition.name != name:
        raise StudyError(
            f"study {name!r} in {storage}: its stored definition is one of {definition.name!r}; "
            "restore it from a backup"
        )
    return StoredStudy(storage, definition.allowing(allow))


def _agree(
    storage: Storage, definition: Study, stored: dict[str, Any], accept: Collection[str]
) -> None:
    """Refuses another fingerprint, but for the keys in `accept`, which are recorded."""
    name, current = definition.name, definition.fingerprint()
    differing = definition.differences(stored)
    refused = {key: words for key, words in differing.items() if key not in accept}
    if refused:
        raise StudyError(
            f"study {name!r} exists in {storage} with another fingerprint:\n  "
            + "\n  ".join(refused.values())
            + "\nchange it back, give this one another name with --name, or take responsibility "
            "with --accept KEY"
        )
    if "format" not in stored:
        storage.renew_fingerprint(name, current)
    if differing:
        storage.accept(name, {key: (stored.get(key), current.get(key)) for key in differing})
