"""The next search vector of a study: a function of its trials so far, its seed and the slot.

Every sampler works on a copy of the history in memory and keeps nothing that the history doesn't
say. So a proposal repeats exactly after an interrupt, a crash between proposal and record leaves
nothing behind, and the shared database answers one small question where Optuna's own storage
would read every trial. Optimizers with a state (CMA-ES, Nevergrad's) are rebuilt from the finished
trials in the order of their ends.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import product
from typing import Any, Protocol

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler, GPSampler, TPESampler
from optuna.trial import TrialState, create_trial

from qsched.errors import StudyError
from qsched.libraries import quiet
from qsched.schedule.parametrisations import Bounds, Parametrisation
from qsched.search.box import Box, History, Proposal, Trial, Vector
from qsched.search.catalog import PROMPTS, resolved
from qsched.search.gauge import Gauge
from qsched.search.nevergrad_sampler import NevergradSampler, Replay
from qsched.search.plan import Plan
from qsched.search.prompt_sampler import PromptSampler

__all__ = ["NevergradSampler", "Proposer", "distributions", "parameters", "vector_of"]

STARTUP = {"gp": 8, "tpe": 0}
"""Finished trials, the identity among them, before these samplers are asked: until then points
around the identity. `tpe` is Optuna's own, which begins with ten random trials."""

GP_TRIALS = 300
"""The most trials that a Gaussian process is fitted to: half the best ones, half the last ones."""

GP_SPREAD = 0.003
"""How far, in shares of the box, the proposals of slots lie apart that know the same trials."""


class Engine(Protocol):
    """One way to propose: a vector for a slot above 0 from a history that only grows."""

    def propose(self, history: History, slot: int) -> Vector: ...


class Proposer:
    """Proposes vectors for the slots of a study.

        proposer = Proposer("gp", space, bounds, seed=0)
        proposer.add(0, vector, value)
        proposer.vector(1)

    `sampler`: one of `catalog.SAMPLERS`. `budget`: the study's trials, which `grid` sizes
    itself by. `plan` and `gauge`: the trials' prompts, which `prompts` needs, and what was measured
    for it. The same trials, added in the same order, give the same vector in every process; no
    slot gets what another one has tried or is trying, but for the last trials of `prompts`, which
    go on with a vector. Raises ConfigError for a sampler that doesn't exist or doesn't fit the
    space, StudyError where its package is missing.
    """

    def __init__(
        self,
        sampler: str,
        space: Parametrisation,
        bounds: Bounds,
        *,
        seed: int,
        budget: int | None = None,
        plan: Plan | None = None,
        gauge: Gauge | None = None,
    ) -> None:
        self._space = space
        self._box = Box(space, bounds, seed)
        name = resolved(sampler, space.dimension)
        if name == PROMPTS and plan is None:
            raise StudyError("sampler 'prompts' without a plan; expected one; say which prompts")
        self._prompts = PromptSampler(self._box, plan, gauge) if plan else None
        self._engine = self._prompts or _engine(name, self._box, budget)
        self._history = History()
        self._finished: set[int] = set()

    def add(
        self,
        slot: int,
        vector: Sequence[float],
        value: float | None,
        *,
        scores: Mapping[int, float] | None = None,
        prompts: Sequence[int] | None = None,
    ) -> None:
        """A trial that is finished with a value, or running (None); finished ones are ignored.

        For `prompts` with what a finished one scored, {prompt: JAQ}, and what a running one is
        scoring, where that isn't all.
        """
        if slot in self._finished:
            return
        tried = tuple(map(float, vector))
        if value is None:
            self._history.running[slot] = tried
            if prompts is not None:
                self._history.prompts[slot] = tuple(prompts)
            return
        self._history.running.pop(slot, None)
        self._history.prompts.pop(slot, None)
        self._history.finished.append((slot, tried, value))
        self._history.scores[slot] = dict(scores or {})
        self._finished.add(slot)

    def knows(self, slot: int) -> bool:
        """Whether a slot is among the finished trials."""
        return slot in self._finished

    @property
    def finished(self) -> int:
        """How many finished trials it knows."""
        return len(self._finished)

    def propose(self, slot: int, budget: int) -> Proposal:
        """What slot `slot` tries, of a study with `budget` slots. Slot 0 is the identity, slot 1
        the space's guess, if any."""
        if slot == 0:
            return Proposal(self._space.identity)
        prompts = self.deal(slot)
        if slot == 1 and self._space.guess:
            return Proposal(self._space.guess, prompts)
        history = self._without(slot)
        if self._prompts:
            again = self._prompts.again(history, slot, budget)
            if again is not None:
                return again
        taken = {self._space.identity, *history.running.values()}
        taken.update(tried for number, tried, _ in history.finished if number != slot)
        vector = self._engine.propose(history, slot)
        return Proposal(self._box.beside(vector, taken, slot), prompts)

    def vector(self, slot: int) -> Vector:
        """The vector that slot `slot` tries, wherever the budget ends."""
        return self.propose(slot, budget=1).vector

    def deal(self, slot: int) -> tuple[int, ...] | None:
        """The prompts of a slot that tries a new vector; None for all."""
        return self._prompts.deal(slot) if self._prompts else None

    def estimate(self, slot: int, vector: Sequence[float], scores: Mapping[int, float]) -> float:
        """What the whole pool's value is expected to be at the vector of a slot that has these
        scores, {prompt: JAQ}, by the model of `prompts`."""
        assert self._prompts is not None
        history, tried = self._without(slot), tuple(map(float, vector))
        finished = [*history.finished, (slot, tried, 0.0)]
        known = History(finished, history.running, history.scores | {slot: dict(scores)})
        identity = history.scores[0]
        return sum(identity.values()) / len(identity) + self._prompts.estimate(known, tried)

    def _without(self, slot: int) -> History:
        """The history without what a slot is trying itself."""
        others = {
            number: tried for number, tried in self._history.running.items() if number != slot
        }
        return History(self._history.finished, others, self._history.scores, self._history.prompts)


def distributions(space: Parametrisation, bounds: Bounds) -> dict[str, BaseDistribution]:
    """The search space in Optuna's terms, by parameter name."""
    return {
        name: FloatDistribution(low, high)
        for name, (low, high) in zip(space.names, space.box(bounds), strict=True)
    }


def parameters(space: Parametrisation, vector: Sequence[float]) -> dict[str, float]:
    """A search vector by parameter name."""
    return dict(zip(space.names, vector, strict=True))


def vector_of(space: Parametrisation, bounds: Bounds, given: Mapping[str, Any]) -> Vector:
    """The search vector that somebody asks for by parameter name; what is pinned may be left out.

    Raises StudyError for other names, for what is no number, and outside the box.
    """
    asked = {**space.pinned, **given}
    if asked.keys() != set(space.names):
        raise StudyError(
            f"parameters {', '.join(map(str, given)) or 'none'}; expected {', '.join(space.names)}"
        )
    for name, (low, high) in zip(space.names, space.box(bounds), strict=True):
        low, high = (space.pinned.get(name, end) for end in (low, high))
        value = asked[name]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not low <= value <= high:
            expected = f"{low:g} to {high:g}" if low < high else f"{low:g}"
            raise StudyError(f"{name} = {value!r}; expected {expected}")
    return tuple(float(asked[name]) for name in space.names)


def _engine(name: str, box: Box, budget: int | None) -> Engine:
    if name in STARTUP:
        return _Model(name, box)
    if name == "cmaes":
        return _Evolution(box)
    if name == "grid":
        return _Grid(box, budget)
    if name.startswith("nevergrad:"):
        return Replay(name.partition(":")[2], box)
    return _Blind(name, box)


class _Blind:
    """Points that no result changes: `random` or `qmc`."""

    def __init__(self, name: str, box: Box) -> None:
        self._name = name
        self._box = box

    def propose(self, history: History, slot: int) -> Vector:
        if self._name == "qmc":
            return self._box.from_unit(self._box.sobol(slot))
        return self._box.from_unit(self._box.rng(slot).uniform(size=self._box.space.dimension))


class _Grid:
    """The official grid: n x n points, ends of the bounds included, by slot; then Sobol points.

    n is the least that fills the budget beside slot 0, the identity, which is left out here.
    """

    def __init__(self, box: Box, budget: int | None) -> None:
        if budget is None:
            raise StudyError("sampler 'grid' without a budget; expected one; give the trials")
        self._box = box
        self.side = max(2, math.ceil(math.sqrt(budget - 1)))

    @cached_property
    def points(self) -> list[Vector]:
        axes = [
            np.linspace(low, high, self.side) for low, high in self._box.space.box(self._box.bounds)
        ]
        grid = [tuple(map(float, point)) for point in product(*axes)]
        return [point for point in grid if point != self._box.space.identity]

    def propose(self, history: History, slot: int) -> Vector:
        if slot <= len(self.points):
            return self.points[slot - 1]
        return self._box.from_unit(self._box.sobol(slot))


class _Model:
    """`tpe` or `gp`: Optuna's sampler on a study in memory that holds the finished trials.

    The running ones are added for each proposal and fail after it: a failed trial is no evidence.
    """

    def __init__(self, name: str, box: Box) -> None:
        self._name = name
        self._box = box
        self._pinned = box.space.pinned
        every = distributions(box.space, box.bounds)
        self._distributions = {name: every[name] for name in every if name not in self._pinned}
        self._study = self._empty_study()
        self._told: list[Trial] = []

    def propose(self, history: History, slot: int) -> Vector:
        if len(history.finished) < STARTUP[self._name]:
            return self._box.design(slot)
        self._tell(self._evidence([trial for trial in history.finished if self._kept(trial[1])]))
        known = len(self._study.get_trials(deepcopy=False))
        for vector in history.running.values():
            self._add(vector, None)
        self._study.sampler = self._sampler(self._box.slot_seed(slot))
        asked = self._study.ask(self._distributions)
        running = len(history.running) + 1
        for number in range(known, known + running):
            self._study.tell(number, state=TrialState.FAIL)
        chosen = asked.params | self._pinned
        vector = tuple(float(chosen[name]) for name in self._box.space.names)
        if self._name == "gp":  # its optimum is one point, whatever the seed
            return self._box.near(vector, self._box.rng(slot, "gp"), GP_SPREAD)
        return vector

    @staticmethod
    def _empty_study() -> optuna.Study:
        with quiet():
            return optuna.create_study(direction="maximize")

    def _evidence(self, finished: list[Trial]) -> list[Trial]:
        if self._name != "gp" or len(finished) <= GP_TRIALS:
            return finished
        last = len(finished) - GP_TRIALS // 2
        best = sorted(range(last), key=lambda index: -finished[index][2])[: GP_TRIALS // 2]
        return [finished[index] for index in sorted(best)] + finished[last:]

    def _tell(self, evidence: list[Trial]) -> None:
        if evidence[: len(self._told)] != self._told:
            self._study = self._empty_study()
            self._told = []
        for trial in evidence[len(self._told) :]:
            self._add(trial[1], trial[2])
            self._told.append(trial)

    def _kept(self, vector: Vector) -> bool:
        """Whether it has what the space pins: all but the identity."""
        return self._pinned.items() <= parameters(self._box.space, vector).items()

    def _add(self, vector: Vector, value: float | None) -> None:
        values = parameters(self._box.space, vector)
        self._study.add_trial(
            create_trial(
                state=TrialState.RUNNING if value is None else TrialState.COMPLETE,
                value=value,
                params={name: values[name] for name in self._distributions},
                distributions=self._distributions,
            )
        )

    def _sampler(self, seed: int) -> BaseSampler:
        with quiet():
            if self._name == "gp":
                return GPSampler(seed=seed, n_startup_trials=1)
            return TPESampler(seed=seed, multivariate=True, constant_liar=True)


class _Evolution:
    """`cmaes`: each population of finished trials, whoever proposed them, is a generation.

    It begins at the identity, a quarter of the box wide in two dimensions and so far in all; again
    when it has converged (Hansen, arXiv 1604.00772).
    """

    def __init__(self, box: Box) -> None:
        self._box = box
        self._told = 0
        self._cma = self._begin()

    def _begin(self) -> Any:
        from cmaes import CMA

        bounds = np.array([[0.0, 1.0]] * self._box.space.dimension)
        sigma = 0.25 * math.sqrt(2 / self._box.space.dimension)
        return CMA(mean=self._box.identity.copy(), sigma=sigma, bounds=bounds, seed=0)

    def propose(self, history: History, slot: int) -> Vector:
        size = self._cma.population_size
        while len(history.finished) - self._told >= size:
            generation = history.finished[self._told : self._told + size]
            self._cma.tell([(self._box.to_unit(vector), -value) for _, vector, value in generation])
            self._told += size
            if self._cma.should_stop():
                self._cma = self._begin()
        self._cma.reseed_rng(self._box.slot_seed(slot))
        return self._box.from_unit(self._cma.ask())
