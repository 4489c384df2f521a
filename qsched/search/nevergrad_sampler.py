"""Nevergrad's optimizers as a sampler of Optuna that keeps no state of its own.

    study = optuna.create_study(sampler=NevergradSampler("CMA", seed=0))

An optimizer of Nevergrad lives by the order in which it is asked and told. So a trial records,
when it is asked, the trials whose results were new to it. The trials' numbers order the asks,
those records the tells between them: replayed, they rebuild the optimizer in any process, however
the clocks of the workers differ.
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna._transform import _SearchSpaceTransform as Transform
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.samplers import BaseSampler, RandomSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from qsched.errors import StudyError
from qsched.search.box import Array, Box, History, Vector
from qsched.search.catalog import check_optimizer
from qsched.seeds import stable_seed

RECORD = "nevergrad"
"""The trials' system attribute: {optimizer, seed, space, told}."""

AGAIN = 16
"""How often the optimizer is asked for another vector when it repeats itself."""

SIGMA = 0.25
"""The standard deviation of a mutation, as a share of the box."""

LARGEST = 1e20
"""Losses are cut off here: Nevergrad takes no infinite ones."""


class Machine:
    """A seeded optimizer of Nevergrad in the box [0, 1]^d, minimising, starting at `centre`.

    The same calls in the same order give the same vectors in every process. Raises ConfigError
    for an optimizer that isn't supported, StudyError where Nevergrad isn't installed.
    """

    def __init__(self, optimizer: str, centre: Sequence[float] | Array, *, seed: int) -> None:
        check_optimizer(optimizer)
        nevergrad = _nevergrad()
        self._dimension = len(centre)
        # In one dimension its CMA asks for another package, and from then on in all: add another.
        self._idle = [0.5] if self._dimension == 1 and "CMA" in optimizer else []
        self._space = nevergrad.p.Array(
            init=[*map(float, centre), *self._idle], lower=0.0, upper=1.0
        ).set_mutation(sigma=SIGMA)
        self._space.random_state.seed(seed % 2**32)
        # One worker: what is proposed must not depend on how many there are.
        self._optimizer = nevergrad.optimizers.registry[optimizer](self._space, num_workers=1)
        self._spare = np.random.default_rng(seed)
        self._asked: dict[int, Any] = {}
        self._known: set[bytes] = set()

    def avoid(self, vector: Sequence[float] | Array) -> None:
        """A vector that somebody else tries: no ask returns it from now on."""
        self._known.add(_identity(vector))

    def ask(self, number: int) -> Array:
        """The vector of ask `number`; never one that was asked or told before."""
        for _ in range(AGAIN):
            candidate = self._optimizer.ask()
            if _identity(self._read(candidate)) not in self._known:
                break
        else:
            candidate = self._made(self._spare.uniform(size=self._dimension))
        vector = self._read(candidate)
        self.avoid(vector)
        self._asked[number] = candidate
        return vector

    def tell(self, number: int, vector: Sequence[float] | Array, loss: float) -> None:
        """The loss of the vector that was tried for ask `number`, once; perhaps another vector
        than was asked, or one that never was."""
        tried = np.clip(np.asarray(vector, dtype=float), 0.0, 1.0)
        candidate = self._asked.pop(number, None)
        if candidate is None:
            self._optimizer.ask()  # its CMA forgets what it is told unless an ask is open
        if candidate is None or not np.allclose(self._read(candidate), tried, rtol=0.0, atol=1e-9):
            candidate = self._made(tried)
            self.avoid(tried)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the sizes of losses and budgets
            self._optimizer.tell(candidate, float(np.clip(loss, -LARGEST, LARGEST)))

    def _made(self, vector: Array) -> Any:
        return self._space.spawn_child(new_value=np.array([*vector, *self._idle]))

    def _read(self, candidate: Any) -> Array:
        return np.array(candidate.value[: self._dimension], dtype=float)


class NevergradSampler(BaseSampler):
    """Proposes with an optimizer of Nevergrad, for studies with one objective.

    `optimizer`: one of `catalog.NEVERGRAD`. `seed`: of a study that begins; a study that
    has begun keeps the seed that it began with, so any process continues it. A restarted process
    makes the same next proposal to the bit; workers never get the same one. Parameters outside
    the space that all trials share are drawn at random, seeded by the trial.
    """

    def __init__(self, optimizer: str, seed: int | None = None) -> None:
        self._optimizer = check_optimizer(optimizer)
        self._seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """What all finished trials share, without what has a single value."""
        shared = IntersectionSearchSpace().calculate(study)
        return {name: kind for name, kind in shared.items() if not kind.single()}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Replays the study's asks and tells, records this one, and asks."""
        self._raise_error_if_multi_objective(study)
        if not search_space:
            return {}
        space = _key(search_space)
        transform = Transform(search_space, transform_0_1=True)
        trials = [each for each in study.get_trials(deepcopy=False) if each.number != trial.number]
        records = _records(trials, self._optimizer, space)
        seed = next(iter(records.values()))["seed"] if records else self._seed
        centre = [0.5] * len(transform.bounds)
        machine = Machine(
            self._optimizer, centre, seed=stable_seed("nevergrad", seed, self._optimizer)
        )
        results = {
            each.number: each
            for each in trials
            if each.state == TrialState.COMPLETE and _holds(each, search_space)
        }
        sign = -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0
        told: set[int] = set()

        def tell(numbers: Sequence[int]) -> list[int]:
            new = [number for number in numbers if number in results and number not in told]
            for number in new:
                vector = transform.transform(results[number].params)
                machine.tell(number, vector, sign * float(results[number].value or 0.0))
            told.update(new)
            return new

        asking = {each.number for each in trials if each.state == TrialState.RUNNING}
        for number in sorted(asking | records.keys()):
            if number < trial.number:
                tell(records[number]["told"] if number in records else [])
                machine.ask(number)
        # A later trial's result comes after this ask, even if it is there already: told here, it
        # would shift the draws that later trials counted on.
        news = tell([number for number in sorted(results) if number < trial.number])
        for each in trials:
            if _holds(each, search_space):
                machine.avoid(transform.transform(each.params))
        study._storage.set_trial_system_attr(
            trial._trial_id,
            RECORD,
            {"optimizer": self._optimizer, "seed": seed, "space": space, "told": news},
        )
        params = transform.untransform(machine.ask(trial.number))
        return {
            name: value.item() if isinstance(value, np.generic) else value
            for name, value in params.items()
        }

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """A uniform draw, seeded by the trial's number and the parameter's name."""
        self._raise_error_if_multi_objective(study)
        seed = stable_seed("nevergrad", self._seed, trial.number, param_name) % 2**32
        return RandomSampler(seed=seed).sample_independent(
            study, trial, param_name, param_distribution
        )


class Replay:
    """`nevergrad:...`: ask number s belongs to slot s, whatever was tried there in the end.

    A result is told in its turn, after the asks up to its slot. With one worker that is what a
    lasting optimizer would have done; another order, or another process, only replays it.
    """

    def __init__(self, optimizer: str, box: Box) -> None:
        self._optimizer = optimizer
        self._box = box
        self._restart()

    def _restart(self) -> None:
        seed = stable_seed("nevergrad", self._box.seed, self._optimizer)
        self._machine = Machine(self._optimizer, self._box.identity, seed=seed)
        self._asked: list[Vector] = []
        self._done: list[int] = []  # the events so far: slots told, and -1 for each ask

    def propose(self, history: History, slot: int) -> Vector:
        events = _events([finished for finished, _, _ in history.finished], slot)
        if events[: len(self._done)] != self._done:
            self._restart()
        told = sum(event >= 0 for event in self._done)
        for event in events[len(self._done) :]:
            if event < 0:
                unit = self._machine.ask(len(self._asked))
                self._asked.append(self._box.from_unit(unit))
            else:
                number, vector, value = history.finished[told]
                self._machine.tell(number, self._box.to_unit(vector), -value)
                told += 1
        self._done = events
        return self._asked[slot]


def _records(
    trials: Sequence[FrozenTrial], optimizer: str, space: str
) -> dict[int, Mapping[str, Any]]:
    """The records of one optimizer's asks in one space, in the order of the trials' numbers."""
    records = {
        trial.number: trial.system_attrs[RECORD]
        for trial in sorted(trials, key=lambda trial: trial.number)
        if RECORD in trial.system_attrs
    }
    return {
        number: record
        for number, record in records.items()
        if (record["optimizer"], record["space"]) == (optimizer, space)
    }


def _identity(vector: Sequence[float] | Array) -> bytes:
    """Equal for vectors that are equal but for rounding, in a box [0, 1]^d."""
    return np.rint(np.asarray(vector, dtype=float) * 1e9).astype(np.int64).tobytes()


def _key(space: Mapping[str, BaseDistribution]) -> str:
    kinds = {name: distribution_to_json(kind) for name, kind in sorted(space.items())}
    return f"{stable_seed(json.dumps(kinds)):x}"


def _holds(trial: FrozenTrial, space: Mapping[str, BaseDistribution]) -> bool:
    """Whether the trial has a value for each parameter of the space, within its bounds."""
    return all(
        name in trial.params and kind._contains(kind.to_internal_repr(trial.params[name]))
        for name, kind in space.items()
    )


def _nevergrad() -> Any:
    try:
        import nevergrad
    except ImportError:
        raise StudyError(
            "the samplers nevergrad:... need nevergrad, which isn't installed; "
            "pip install 'qsched[nevergrad]', or set search.sampler to 'auto'"
        ) from None
    return nevergrad


def _events(finished: Sequence[int], slot: int) -> list[int]:
    """The asks (-1) and tells (their slots) that lead to the ask of `slot`."""
    events: list[int] = []
    asked = 0
    for told in (*finished, None):
        last = slot if told is None else told
        events += [-1] * (last + 1 - asked)
        asked = max(asked, last + 1)
        if told is not None:
            events.append(told)
    return events
