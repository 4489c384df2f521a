"""The next search vector of a study: a pure function of its finished trials, seed and slot.

Optuna's samplers run on a copy of the history in memory. So a proposal repeats exactly after an
interrupt, a crash between proposal and record leaves nothing behind, and the shared database sees
one write for each trial.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import create_trial

from qsched.coefficients import Bounds, Parametrisation
from qsched.prompts import stable_seed


@dataclass(frozen=True)
class Finished:
    """A finished trial: its search vector and its value."""

    vector: tuple[float, ...]
    value: float


def distributions(space: Parametrisation, bounds: Bounds) -> dict[str, BaseDistribution]:
    """The search space in Optuna's terms, by parameter name."""
    return {name: FloatDistribution(bounds.low, bounds.high) for name in space.names}


def propose(
    sampler: str,
    space: Parametrisation,
    bounds: Bounds,
    finished: Sequence[Finished],
    *,
    seed: int,
    slot: int,
) -> tuple[float, ...]:
    """The vector that slot `slot` tries. Slot 0 is always the identity.

    The same arguments give the same vector in every process. `finished` is in the order of slots.
    """
    if slot == 0:
        return space.identity
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    search_space = distributions(space, bounds)
    study = optuna.create_study(
        direction="maximize",
        sampler=_sampler(sampler, stable_seed("sampler", seed, slot) % 2**32),
    )
    study.add_trials(
        create_trial(
            value=trial.value, params=named(space, trial.vector), distributions=search_space
        )
        for trial in finished
    )
    params = study.ask(search_space).params
    return tuple(params[name] for name in space.names)


def named(space: Parametrisation, vector: Sequence[float]) -> dict[str, float]:
    """A search vector by parameter name."""
    return dict(zip(space.names, vector, strict=True))


def _sampler(name: str, seed: int) -> BaseSampler:
    if name == "random":
        return RandomSampler(seed=seed)
    return TPESampler(seed=seed, multivariate=True)
