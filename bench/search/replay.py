"""A recorded landscape that can be searched in microseconds, and the search of one study on it.

Four-bit rounding makes the landscape rough: a step of 1e-6 changes every prompt's score by about
as much as a step of 1e-2 does (`roughness`). What lies between recorded points can't be
interpolated, so a `Landscape` is a smooth trend, fitted per prompt, and on top of it a residual of
a recorded point close by, drawn for each vector and prompt from a digest of both: the same vector
has the same scores again, another one has others, as the model itself does it.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from itertools import combinations_with_replacement, takewhile
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree
from scipy.spatial.distance import cdist

from bench.search.recording import Recording
from qsched.scoring.jaq import Objective
from qsched.search.samplers import Proposer
from qsched.statistics import chance_to_lead

Array = NDArray[np.float64]
NEIGHBOURS = 25
MILESTONES = (25, 50, 100)


def prompt_values(recording: Recording, objective: Objective) -> Array:
    """(P, prompts): JAQ of each recorded point, in units of the recording's identity."""
    scores = dict(zip(recording.scorers, np.moveaxis(recording.scores, 1, 0), strict=True))
    return _in_units(recording, objective).values(scores)


def identity_values(recording: Recording, objective: Objective) -> Array:
    """(prompts,): JAQ of the identity, zero in the mean."""
    identity = dict(zip(recording.scorers, recording.identity, strict=True))
    return _in_units(recording, objective).values(identity)


def _in_units(recording: Recording, objective: Objective) -> Objective:
    return objective.calibrated(dict(zip(recording.scorers, recording.identity, strict=True)))


class Fit(Protocol):
    """A way to fit a trend."""

    def __call__(self, vectors: Array, values: Array) -> "Trend":
        """From (P, D) vectors and (P, N) values: (D,) or (P, D) -> (N,) or (P, N)."""


Trend = Callable[[Array], Array]


@dataclass(frozen=True)
class Polynomial:
    """A polynomial of a total degree, by least squares on Legendre's in the box of the points."""

    degree: int

    def __call__(self, vectors: Array, values: Array) -> Trend:
        low, high = vectors.min(axis=0), vectors.max(axis=0)
        columns = np.arange(vectors.shape[1])
        powers = [
            np.bincount(np.array(term, dtype=int), minlength=len(columns))
            for total in range(self.degree + 1)
            for term in combinations_with_replacement(range(len(columns)), total)
        ]

        def features(at: Array) -> Array:
            unit = 2 * (np.asarray(at, dtype=float) - low) / (high - low) - 1
            basis = np.polynomial.legendre.legvander(unit, self.degree)  # (..., D, degree + 1)
            return np.stack([basis[..., columns, power].prod(axis=-1) for power in powers], axis=-1)

        weights = np.linalg.lstsq(features(vectors), values, rcond=None)[0]
        return lambda at: features(at) @ weights


@dataclass(frozen=True)
class Kriging:
    """The mean of a Gaussian process: a Matern 5/2 kernel of one `length`, and white `noise` in
    units of the kernel's variance."""

    length: float
    noise: float

    def __call__(self, vectors: Array, values: Array) -> Trend:
        mean = values.mean(axis=0)
        gram = self._kernel(vectors, vectors) + self.noise * np.eye(len(vectors))
        weights = np.linalg.solve(gram, values - mean)

        def trend(at: Array) -> Array:
            at = np.asarray(at, dtype=float)
            found: Array = mean + self._kernel(np.atleast_2d(at), vectors) @ weights
            return found if at.ndim > 1 else found[0]

        return trend

    def _kernel(self, a: Array, b: Array) -> Array:
        far: Array = np.sqrt(5) * cdist(a, b) / self.length
        near: Array = (1 + far + far**2 / 3) * np.exp(-far)
        return near


def held_out(vectors: Array, values: Array, fit: Fit, folds: int = 10) -> Array:
    """(P, N): each point as the trend of the other folds has it."""
    fold = np.random.default_rng(0).integers(folds, size=len(vectors))
    guess = np.empty_like(values)
    for each in range(folds):
        out = fold == each
        guess[out] = fit(vectors[~out], values[~out])(vectors[out])
    return guess


class Surface(Protocol):
    """What is searched."""

    def values(self, vector: Sequence[float]) -> Array:
        """(prompts,): JAQ per prompt, always the same for the same vector."""

    def trend(self, vector: Sequence[float]) -> float:
        """The mean JAQ without roughness, where it is known; else not a number."""


class Landscape:
    """A surrogate of recorded points: a trend and the residuals of the points near by.

    `rough`: the points whose residuals are drawn. `known`: vectors whose recorded values are given
    back as they are.
    """

    def __init__(
        self,
        vectors: Array,
        values: Array,
        fit: Fit,
        *,
        rough: slice = slice(None),
        known: Mapping[tuple[float, ...], Array] | None = None,
    ) -> None:
        self._known = dict(known or {})
        self._trend = fit(vectors, values)
        self._residuals = (values - held_out(vectors, values, fit))[rough]
        self._tree = KDTree(vectors[rough])
        self._salt = 0

    def drawn(self, salt: int) -> "Landscape":
        """The same trend with another draw of the roughness."""
        other = copy(self)
        other._salt = salt
        return other

    def values(self, vector: Sequence[float]) -> Array:
        if tuple(vector) in self._known:
            return self._known[tuple(vector)]
        at = np.asarray(vector, dtype=float)
        digest = hashlib.blake2b(at.tobytes(), digest_size=8, salt=self._salt.to_bytes(8)).digest()
        near = self._tree.query(at, k=NEIGHBOURS)[1]
        prompts = self._residuals.shape[1]
        drawn = np.random.default_rng(int.from_bytes(digest)).choice(near, size=prompts)
        rough: Array = self._residuals[drawn, np.arange(prompts)]
        return self._trend(at) + rough

    def trend(self, vector: Sequence[float]) -> float:
        return float(self._trend(np.asarray(vector, dtype=float)).mean())


@dataclass(frozen=True)
class Best:
    """A new best of a search: when (`images` made, `ended` trials), its JAQ, and its trend."""

    images: int
    ended: int
    value: float
    trend: float


@dataclass
class Search:
    """What a search found. `images_at`: {trials that had ended: the images until then}."""

    bests: list[Best] = field(default_factory=list)
    images_at: dict[int, int] = field(default_factory=dict)
    images: int = 0
    trials: int = 0
    ended: int = 0
    stopped: int = 0

    def best(self, *, images: float = np.inf, ended: float = np.inf) -> Best:
        """The best when so many images had been made, or so many trials had ended."""
        known = [best for best in self.bests if best.images <= images and best.ended <= ended]
        return known[-1] if known else Best(0, 0, -np.inf, -np.inf)

    def images_to(self, value: float) -> float:
        """The images it took to a best of `value`; infinite if it wasn't reached."""
        return min((best.images for best in self.bests if best.value >= value), default=np.inf)

    def images_to_trend(self, trend: float) -> float:
        """The images since when the best had such a `trend`; infinite if it hasn't in the end."""
        good = list(takewhile(lambda best: best.trend >= trend, reversed(self.bests)))
        return good[-1].images if good else np.inf

    def end(self) -> None:
        """Counts a trial that ended, in full or early."""
        self.ended += 1
        if self.ended in MILESTONES:
            self.images_at[self.ended] = self.images


@dataclass
class _Running:
    slot: int
    vector: tuple[float, ...]
    values: Array  # all prompts', in the trial's own order
    order: NDArray[np.intp]
    seen: int = 0


def search(
    surface: Surface,
    proposer: Proposer,
    *,
    images: int,
    workers: int = 1,
    stop: float = 0.0,
    batch: int = 4,
    least: int = 4,
    seed: int = 0,
) -> Search:
    """Searches until `images` are generated, with so many trials at a time.

    Trials go on by `batch` prompts in an order of their own; which of the running ones is next is
    chance. With `stop`, a trial that has seen `least` prompts ends where its chance to lead the
    best finished one falls below it; the sampler is told what the shared prompts suggest (the
    best's mean and the mean difference), and it is never the best. Slot 0 is the identity.
    """
    random = np.random.default_rng(seed)
    found = Search()
    running: list[_Running] = []
    best: Array | None = None

    while found.images < images:
        while len(running) < workers:
            slot = found.trials
            vector = proposer.vector(slot)
            values = surface.values(vector)
            proposer.add(slot, vector, None)
            running.append(_Running(slot, vector, values, random.permutation(len(values))))
            found.trials += 1
        trial = running[random.integers(len(running))]
        prompts = len(trial.values)
        step = min(batch, prompts - trial.seen)
        trial.seen += step
        found.images += step
        if trial.seen == prompts:
            running.remove(trial)
            found.end()
            value = float(trial.values.mean())
            proposer.add(trial.slot, trial.vector, value)
            if best is None or value > best.mean():
                best = trial.values
                smooth = surface.trend(trial.vector)
                found.bests.append(Best(found.images, found.ended, value, smooth))
        elif stop and best is not None and trial.seen >= least:
            shared = trial.order[: trial.seen]
            differences = trial.values[shared] - best[shared]
            if chance_to_lead(differences, prompts) < stop:
                running.remove(trial)
                found.end()
                found.stopped += 1
                estimate = float(best.mean() + differences.mean())
                proposer.add(trial.slot, trial.vector, estimate)
    return found
