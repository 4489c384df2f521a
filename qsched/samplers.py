"""The next search vector of a study: a function of its trials so far, its seed and the slot.

Optuna's samplers run on a copy of the history in memory. So a proposal repeats exactly after an
interrupt, a crash between proposal and record leaves nothing behind, and the shared database
answers one small question where Optuna's own storage would read every trial.
"""

from collections.abc import Sequence

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import TrialState, create_trial

from qsched.coefficients import Bounds, Parametrisation
from qsched.prompts import stable_seed


class Proposer:
    """Proposes vectors for the slots of a study.

        proposer = Proposer("tpe", space, bounds, seed=0)
        proposer.add(0, vector, value)
        proposer.vector(1)

    The same trials, added in the same order, give the same vector in every process.
    """

    def __init__(self, sampler: str, space: Parametrisation, bounds: Bounds, *, seed: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._sampler = sampler
        self._space = space
        self._distributions = distributions(space, bounds)
        self._seed = seed
        self._history = optuna.create_study(direction="maximize")
        self._numbers: dict[int, int] = {}
        self._finished: set[int] = set()

    def add(self, slot: int, vector: Sequence[float], value: float | None) -> None:
        """A trial that is finished with a value, or running (None); known ones are ignored."""
        if slot in self._finished or (value is None and slot in self._numbers):
            return
        if slot in self._numbers:
            self._history.tell(self._numbers[slot], value)
        else:
            self._history.add_trial(
                create_trial(
                    state=TrialState.RUNNING if value is None else TrialState.COMPLETE,
                    value=value,
                    params=named(self._space, vector),
                    distributions=self._distributions,
                )
            )
            self._numbers[slot] = len(self._history.get_trials(deepcopy=False)) - 1
        if value is not None:
            self._finished.add(slot)

    @property
    def finished(self) -> int:
        """How many finished trials it knows."""
        return len(self._finished)

    def vector(self, slot: int) -> tuple[float, ...]:
        """What slot `slot` tries. Slot 0 is always the identity."""
        if slot == 0:
            return self._space.identity
        seed = stable_seed("sampler", self._seed, slot) % 2**32
        self._history.sampler = _sampler(self._sampler, seed)
        trial = self._history.ask(self._distributions)
        self._history.tell(trial, state=TrialState.FAIL)  # a failed trial is no evidence
        return tuple(float(trial.params[name]) for name in self._space.names)


def distributions(space: Parametrisation, bounds: Bounds) -> dict[str, BaseDistribution]:
    """The search space in Optuna's terms, by parameter name."""
    return {name: FloatDistribution(bounds.low, bounds.high) for name in space.names}


def named(space: Parametrisation, vector: Sequence[float]) -> dict[str, float]:
    """A search vector by parameter name."""
    return dict(zip(space.names, vector, strict=True))


def _sampler(name: str, seed: int) -> BaseSampler:
    if name == "random":
        return RandomSampler(seed=seed)
    return TPESampler(seed=seed, multivariate=True, constant_liar=True)
