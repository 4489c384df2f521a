"""`prompts`: trials of a few prompts each, and a model that knows which.

Most of a trial's noise is its prompts'. So a trial scores a few prompts of a larger pool, dealt so
that all are used equally often, and the model of `prompt_model` tells the prompts' share from the
vector's. What it proposes has the highest expected improvement of the pool's mean. The last trials
of the budget are spent on the few best vectors again: by halves, on more and more prompts, until
one of them has the whole pool. Only such a one can be the best; an estimate never is.

Where the gauge is known (`gauge`), the first points and the candidates keep close to the identity
along it, and the model's first axis is the gauge.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import erfcx, log_ndtr

from qsched.search.box import Array, Box, History, Proposal, Vector
from qsched.search.gauge import Gauge
from qsched.search.plan import Plan
from qsched.search.prompt_model import Data, Hyperparameters, Posterior, Row, fitted
from qsched.seeds import stable_seed

STARTUP = 8
"""Finished trials, the identity among them, before the model is asked."""

GROWTH = 1.25
"""The model is fitted again when it knows so many times the trials of its last fit."""

MOST = 500
"""Trials that the model knows at the most: half of them the best ones, half the last ones."""

SHRUNK = 0.25
"""The first points' share of the gauge."""

FACTORS = (0.0, 0.3, 0.6, 1.0)
"""The candidates' shares of the gauge."""

REACHES = (0.25, 0.5, 1.0)
"""How far candidates lie from the identity, in shares of the box."""

CANDIDATES = 768
NEAR = 256
"""Random candidates, and those around the best vectors."""

ROUNDS = (0.04, 0.02, 0.01, 0.005)
"""The best candidates are moved a little, ever less; standard deviations in shares of the box."""
KEPT, MOVES = 8, 24


class PromptSampler:
    """Proposes vectors and their prompts for the slots of a study.

    `per_trial` of the `pool` prompts are scored in a trial. The same history gives the same
    proposal in every process, to the bit.
    """

    def __init__(self, box: Box, plan: Plan, gauge: Gauge | None) -> None:
        self._box = box
        self._plan = plan
        self._decks: list[int] = []
        self._fits: dict[int, Hyperparameters] = {}
        known = gauge is not None and len(gauge.direction) == len(box.origin)
        self._gauge = np.array(gauge.direction) if gauge and known else None

    def propose(self, history: History, slot: int) -> Vector:
        """A new vector for a slot above 0."""
        if len(history.finished) < STARTUP:
            return self._design(slot)
        return self._searched(history, slot)

    def again(self, history: History, slot: int, budget: int) -> Proposal | None:
        """The proposal for one of the last slots of `budget`: a vector that was tried, on more
        prompts. None for the others, and where there is none such."""
        last = self._plan.last(budget)
        place = slot - (budget - len(last))
        if not 0 <= place < len(last):
            return None
        return self._again(history, last[place], self._plan.before(last[place], budget))

    def deal(self, slot: int) -> tuple[int, ...] | None:
        """The prompts of a slot above 0; None for all."""
        pool, each = self._plan.pool, self._plan.per_trial
        if each >= pool:
            return None
        while len(self._decks) < slot * each:
            order = np.random.default_rng(
                stable_seed("deck", self._box.seed, len(self._decks)) % 2**32
            ).permutation(pool)
            begun = self._decks[len(self._decks) // each * each :]
            cards = [int(card) for card in order]
            first = [card for card in cards if card not in begun][: -len(begun) % each]
            self._decks += first + [card for card in cards if card not in first]
        return tuple(self._decks[(slot - 1) * each : slot * each])

    def estimate(self, history: History, vector: Vector) -> float:
        """What the pool's mean is expected to be at a vector, less the identity's."""
        return float(self._posterior(history).mean(self._inner(vector)[None])[0])

    # The search

    def _design(self, slot: int) -> Vector:
        unit = self._box.searched(self._box.design(slot))
        return self._box.place(self._along(unit[None], np.array([SHRUNK]))[0])

    def _searched(self, history: History, slot: int) -> Vector:
        """The vector of the highest expected improvement of the pool's mean."""
        evidence = self._evidence(history)
        pending = [
            (vector, history.prompts.get(number) or range(self._plan.pool))
            for number, vector in sorted(history.running.items())
        ]
        data, waiting = evidence.with_pending(pending)
        posterior = Posterior(data, self._hyper(history), pool=self._plan.pool, pending=waiting)
        tried = np.array([self._inner(vector) for vector in evidence.vectors])
        expected = posterior.mean(tried)
        best = max(0.0, float(expected.max()))
        order = np.argsort(-expected, kind="stable")[:4]
        leaders = np.array([self._box.searched(evidence.vectors[at]) for at in order])
        rng = self._box.rng(slot, "candidates")
        units = self._candidates(rng, leaders)

        def worth(units: Array) -> Array:
            """Of candidates (N, d), (N,)."""
            mean, deviation = posterior.moments(self._rotated(units - self._box.origin))
            return log_expected_improvement(mean, deviation, best)

        values = worth(units)
        for spread in ROUNDS:
            first = units[np.argsort(-values, kind="stable")[:KEPT]]
            moved = _reflected(
                np.repeat(first, MOVES, axis=0)
                + rng.normal(0, spread, (KEPT * MOVES, units.shape[1]))
            )
            kept = np.sort(-values, kind="stable")[:KEPT]
            units = np.concatenate([first, moved])
            values = np.concatenate([-kept, worth(moved)])
        return self._box.place(units[int(np.argmax(values))])

    def _candidates(self, rng: np.random.Generator, leaders: Array) -> Array:
        dimension = len(self._box.origin)
        offset = rng.uniform(size=(CANDIDATES, dimension)) - self._box.origin
        reach = rng.choice(REACHES, size=(CANDIDATES, 1))
        wide = self._along(self._box.origin + reach * offset, rng.choice(FACTORS, size=CANDIDATES))
        spread = np.exp(rng.uniform(math.log(0.01), math.log(0.2), size=(NEAR, 1)))
        near = leaders[rng.integers(len(leaders), size=NEAR)]
        near = near + spread * rng.normal(size=(NEAR, dimension))
        return np.concatenate([wide, _reflected(near)])

    def _along(self, units: Array, shares: Array) -> Array:
        """Points of the unit box with a share of what they have of the gauge."""
        if self._gauge is None:
            return units
        offset = units - self._box.origin
        along = offset @ self._gauge
        moved = offset - ((1 - shares) * along)[:, None] * self._gauge
        clipped: Array = np.clip(self._box.origin + moved, 0.0, 1.0)
        return clipped

    # The last trials

    def _again(self, history: History, size: int, before: int) -> Proposal | None:
        """The vector of the highest expectation among those with at least `before` prompts and less
        than `size`, with so many; None where there is none."""
        busy = set(history.running.values())
        families = [
            family
            for family in self._evidence(history, whole=True).families
            if len(family.prompts) < size and family.vector not in busy
        ]
        families = [each for each in families if len(each.prompts) >= before] or families
        if not families:
            return None
        posterior = self._posterior(history)
        expected = posterior.mean(np.array([self._inner(family.vector) for family in families]))
        chosen = families[int(np.argmax(expected))]
        rest = sorted(
            set(range(self._plan.pool)) - set(chosen.prompts),
            key=lambda prompt: stable_seed("order", self._box.seed, chosen.origin, prompt),
        )
        prompts = (*chosen.prompts, *rest)[:size] if size < self._plan.pool else None
        return Proposal(chosen.vector, prompts, origin=chosen.origin)

    # The model

    def _posterior(self, history: History) -> Posterior:
        data = self._evidence(history).data
        return Posterior(data, self._hyper(history), pool=self._plan.pool)

    def _hyper(self, history: History) -> Hyperparameters:
        """The hyperparameters after the last fit that was due; each begins at the one before."""
        found, count = Hyperparameters.prior(len(self._box.origin)), STARTUP
        while count <= len(history.finished):
            if count not in self._fits:
                earlier = History(history.finished[:count], {}, history.scores)
                self._fits[count] = fitted(self._evidence(earlier).data, found)
            found, count = self._fits[count], math.ceil(count * GROWTH)
        return found

    def _evidence(self, history: History, *, whole: bool = False) -> "_Evidence":
        finished = [trial for trial in history.finished if trial[0] and history.scores[trial[0]]]
        if len(finished) > MOST and not whole:
            last = len(finished) - MOST // 2
            best = sorted(range(last), key=lambda at: -finished[at][2])[: MOST // 2]
            finished = [finished[at] for at in sorted(best)] + finished[last:]
        families: dict[Vector, _Family] = {}
        for slot, vector, _ in finished:
            family = families.setdefault(vector, _Family(vector, slot, []))
            family.prompts.extend(
                prompt for prompt in history.scores[slot] if prompt not in family.prompts
            )
        places = {vector: place for place, vector in enumerate(families)}
        identity = history.scores[0]
        rows = [
            (places[vector], prompt, value - identity[prompt])
            for slot, vector, _ in finished
            for prompt, value in history.scores[slot].items()
        ]
        return _Evidence(self, list(families.values()), rows)

    def _inner(self, vector: Vector) -> Array:
        """A vector in the model's axes, the identity at the origin."""
        return self._rotated(self._box.searched(vector) - self._box.origin)

    def _rotated(self, offset: Array) -> Array:
        """With the gauge as the first axis, by a reflection (Householder)."""
        if self._mirror is None:
            return offset
        rotated: Array = offset - 2 * (offset @ self._mirror)[..., None] * self._mirror
        return rotated

    @cached_property
    def _mirror(self) -> Array | None:
        if self._gauge is None:
            return None
        normal = self._gauge.copy()
        normal[0] -= 1.0
        length = float(np.linalg.norm(normal))
        mirror: Array = normal / max(length, 1e-300)
        return mirror if length > 1e-12 else None


@dataclass
class _Family:
    """A vector, the first slot that tried it, and the prompts that it has."""

    vector: Vector
    origin: int
    prompts: list[int]


class _Evidence:
    """What the model is told."""

    def __init__(self, sampler: PromptSampler, families: list[_Family], rows: list[Row]) -> None:
        self._sampler = sampler
        self.families = families
        self.vectors = [family.vector for family in families]
        self.rows = rows

    @cached_property
    def data(self) -> Data:
        return Data(self._points(self.vectors), self.rows)

    def with_pending(
        self, pending: Sequence[tuple[Vector, Sequence[int]]]
    ) -> tuple[Data, list[tuple[int, int]]]:
        """The data with the pending vectors' points, and (place, prompt) of what they score."""
        places = {vector: place for place, vector in enumerate(self.vectors)}
        known = {(place, prompt) for place, prompt, _ in self.rows}
        waiting: list[tuple[int, int]] = []
        for vector, prompts in pending:
            place = places.setdefault(vector, len(places))
            waiting += [(place, p) for p in prompts if (place, p) not in known]
            known.update(waiting)
        return Data(self._points(list(places)), self.rows), waiting

    def _points(self, vectors: Sequence[Vector]) -> Array:
        found = [self._sampler._inner(vector) for vector in vectors]
        return np.array(found) if found else np.empty((0, len(self._sampler._box.origin)))


def log_expected_improvement(mean: Array, deviation: Array, best: float) -> Array:
    """log E[max(h - best, 0)] of normal h, without underflow (Ament et al. 2023, eq. 9)."""
    z = (mean - best) / deviation
    near = z > -1.0
    found = np.empty_like(z)
    density = -0.5 * z**2 - 0.5 * math.log(2 * math.pi)
    found[near] = np.log(np.exp(density[near]) + z[near] * np.exp(log_ndtr(z[near])))
    far = ~near
    ratio = np.abs(z[far]) * erfcx(np.abs(z[far]) / math.sqrt(2)) * math.sqrt(math.pi / 2)
    tail = np.where(z[far] > -1e3, np.log1p(-np.minimum(ratio, 1 - 1e-12)), -2 * np.log(-z[far]))
    found[far] = density[far] + tail
    improvement: Array = found + np.log(deviation)
    return improvement


def _reflected(units: Array) -> Array:
    """Points back in the unit box, mirrored at its sides."""
    found: Array = np.abs(units)
    found = np.where(found > 1, 2 - found, found)
    return np.clip(found, 0.0, 1.0)
