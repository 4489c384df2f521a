"""The searches that `fresh` compares: how each is made with the demo model, and how it is judged.

A search draws a pool of the 64 calibration captions, with noise of its own seed, and sees JAQ in
units of the identity's spread on it. `gp` scores its whole pool in each trial; `prompts` a few
prompts. Each proposes with all results before it at hand, one trial at a time; searches of several
seeds go side by side, so that their small trials share batches of 16: same pixels as alone. The
best at a budget has the whole pool; on the way to a larger one the last trials of a smaller are a
copy's. It is judged on 224 captions, and noise, that no search ever saw, in units of theirs.
"""

import copy
import random
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from bench.search.recording import BOX, ROOT, WIDE, demo
from qsched.captions import read_captions
from qsched.demo.captions import sample
from qsched.prompts import Prompt, with_seeds
from qsched.schedule.coefficients import Coefficients
from qsched.schedule.parametrisations import Bounds, Parametrisation, parametrisation
from qsched.search import gauge
from qsched.search.box import Box, Vector
from qsched.search.gauge import Gauge
from qsched.search.plan import Plan
from qsched.search.samplers import Proposer
from qsched.statistics import Values

BATCH = 16
FRESH = 224
"""Captions that no calibration or held-out file holds."""
NOISE = 77
"""The seed of their noise."""
FAR = 1_000_000
"""A budget whose last trials are not at hand."""

Row = dict[str, Any]
Drawing = tuple[Prompt, Coefficients]
Raw = dict[str, Values]
"""{scorer: (N,)}."""
Scoring = Generator[list[Drawing], Raw, None]
"""Asks for the raw scores of drawings."""


@dataclass(frozen=True)
class Setting:
    """What is searched: the demo under a scheme, at some steps, in a space."""

    scheme: str
    steps: int
    space: str

    @property
    def name(self) -> str:
        return f"{self.scheme}, {self.steps} steps, {self.space}"

    @property
    def box(self) -> Bounds:
        """The official one for the official space."""
        return Bounds(*(BOX if self.space == "ramp" else WIDE))

    @cached_property
    def parametrisation(self) -> Parametrisation:
        return parametrisation(self.space, self.steps)


@dataclass(frozen=True)
class Method:
    """A sampler, the size of its pool, and the budgets of images at which it is read off.

    `gauge`: prompts that the gauge is measured on. `rounds`: of the last trials, each brings a
    vector to this part of the pool: a half (2), all (1).
    """

    sampler: str
    pool: int
    budgets: tuple[int, ...]
    gauge: int = 0
    rounds: tuple[int, ...] = ()


@dataclass(frozen=True)
class Rounds(Plan):
    """A plan with last trials of its own."""

    rounds: tuple[int, ...]

    def last(self, budget: int) -> tuple[int, ...]:
        sizes = tuple(self.pool // part for part in self.rounds)
        return sizes[-max(1, (budget - 1) // 4) :] if budget > 1 else ()


METHODS = {
    "auto of 0.1": Method("gp", 32, (800,)),
    "prompts": Method("prompts", 64, (400, 800), gauge=2, rounds=(2, 2, 1)),
    "prompts, first variant": Method(
        "prompts", 64, (400, 800), gauge=4, rounds=(4, 4, 4, 4, 2, 2, 1)
    ),
}
PER_TRIAL = 4


class Model:
    """The demo under a setting's scheme and steps, with its scorers, on one thread."""

    def __init__(self, setting: Setting, prompts: Sequence[Prompt]) -> None:
        import torch

        from qsched.pipelines.generator import ImageGenerator
        from qsched.pipelines.loading import load_model
        from qsched.scoring.scorers import load_scorers

        torch.set_num_threads(1)
        study = demo()
        tables = study.tables
        scheme = tables.quantization.model_copy(update={"scheme": setting.scheme})
        sampling = tables.sampling.model_copy(update={"steps": setting.steps})
        pipeline = load_model(tables.model, scheme, execution=tables.execution).pipeline
        self.objective = study.objective
        self._scorers = load_scorers(study.scorers)
        self._generator = ImageGenerator(
            pipeline, sampling, part=tables.model.part, batch_size=BATCH
        )
        self._generator.prepare(prompts)

    def scores(self, drawings: Sequence[Drawing]) -> Raw:
        """The raw scores of images, each under coefficients of its own."""
        prompts = [prompt for prompt, _ in drawings]
        images = self._generator.generate(prompts, [each for _, each in drawings])
        scored = self._scorers.score(images, prompts)
        return {name: np.asarray(values, dtype=float) for name, values in scored.items()}

    def gauge(self, box: Box, prompts: Sequence[Prompt]) -> Gauge:
        """As a worker measures it, but for the digits of single precision."""
        probes = [box.space.coefficients(vector) for vector in gauge.probes(box)]
        latents = self._generator.final_latents(
            [prompt for _ in probes for prompt in prompts],
            [each for each in probes for _ in prompts],
        )
        amplitudes = np.array([float(each.std().log()) for each in latents])
        return gauge.measured(box, amplitudes.reshape(len(probes), len(prompts)))


class Searched:
    """One search: its pool, what it proposes, and what it knows of each vector.

    `identity`: JAQ of the unmodified schedule on the pool, (pool,).
    """

    def __init__(self, model: Model, setting: Setting, method: Method, seed: int) -> None:
        space = setting.parametrisation
        self.space = space
        self.prompts = pool(seed, method.pool)
        origin = space.coefficients(space.identity)
        units = model.scores([(prompt, origin) for prompt in self.prompts])
        self.objective = model.objective.calibrated(units)
        self.identity = self.objective.values(units)
        self.plan = Rounds(method.pool, PER_TRIAL, method.rounds) if method.rounds else None
        self.gauge: Gauge | None = None
        if self.plan:
            self.gauge = model.gauge(Box(space, setting.box, seed), self.prompts[: method.gauge])
        self.proposer = Proposer(
            method.sampler, space, setting.box, seed=seed, plan=self.plan, gauge=self.gauge
        )
        self.known: dict[Vector, dict[int, float]] = {}
        self.expected: dict[Vector, float] = {}
        self.seconds = 0.0
        self.proposals = 0
        own = dict(enumerate(map(float, self.identity)))
        self.proposer.add(0, space.identity, float(self.identity.mean()), scores=own)

    def trials(self, slots: Sequence[int], budget: int) -> Scoring:
        """Proposes, scores and learns, slot by slot, of a study with `budget` slots."""
        for slot in slots:
            began = time.perf_counter()
            proposal = self.proposer.propose(slot, budget)
            self.seconds += time.perf_counter() - began
            self.proposals += 1
            vector = proposal.vector
            known = self.known.setdefault(vector, {})
            wanted = range(len(self.prompts)) if proposal.prompts is None else proposal.prompts
            lacking = [prompt for prompt in wanted if prompt not in known]
            coefficients = self.space.coefficients(vector)
            raw = yield [(self.prompts[prompt], coefficients) for prompt in lacking]
            values = map(float, self.objective.values(raw))
            self._learn(slot, vector, dict(zip(lacking, values, strict=True)))

    def _learn(self, slot: int, vector: Vector, scores: dict[int, float]) -> None:
        self.known[vector].update(scores)
        value = float(np.mean(list(scores.values())))
        if self.plan:
            value = self.proposer.estimate(slot, vector, scores)
            self.expected[vector] = value - float(self.identity.mean())
        self.proposer.add(slot, vector, value, scores=scores)

    def best(self) -> Row:
        """The best vector that has the whole pool: its JAQ there, over the identity's, and what
        the model of `prompts` expects it to be."""
        own = float(self.identity.mean())
        order = range(len(self.prompts))
        whole = {
            vector: float(np.mean([known[prompt] for prompt in order])) - own
            for vector, known in self.known.items()
            if len(known) == len(self.prompts)
        }
        vector = max(whole, key=lambda each: whole[each])
        found: Row = {"best": list(vector), "searched": whole[vector]}
        return found | ({"posterior": self.expected[vector]} if self.plan else {})


def search(
    model: Model, setting: Setting, method: Method, seed: int
) -> Generator[list[Drawing], Raw, Row]:
    """A search to the end of its largest budget; returns what it found at each."""
    searched = Searched(model, setting, method, seed)
    plan, measured = searched.plan, searched.gauge
    cost = 2 * setting.parametrisation.dimension * method.gauge
    points: dict[str, Row] = {}
    slot = 1
    for budget in sorted(method.budgets):
        trials = plan.trials(budget - cost) if plan else budget // method.pool
        first = trials - len(plan.last(trials)) if plan else trials
        yield from searched.trials(range(slot, first), FAR)
        ending = copy.deepcopy(searched)
        yield from ending.trials(range(first, trials), trials)
        images = plan.images(trials) + cost if plan else trials * method.pool
        points[str(budget)] = ending.best() | {"trials": trials, "images": images}
        slot = first
    told = measured.to_dict() if measured else {}
    return {
        "points": points,
        "seconds a proposal": searched.seconds / searched.proposals,
        "gauge": {key: told[key] for key in told if key in ("direction", "slope", "agreement")},
    }


def together(model: Model, searches: Sequence[Generator[list[Drawing], Raw, Row]]) -> list[Row]:
    """What searches found that go side by side: what they ask for at a time shares batches."""
    found: dict[int, Row] = {}
    asked = {place: next(each) for place, each in enumerate(searches)}
    while asked:
        raw = model.scores([drawing for drawings in asked.values() for drawing in drawings])
        start = 0
        for place, drawings in list(asked.items()):
            own = slice(start, start + len(drawings))
            start += len(drawings)
            try:
                part = {name: values[own] for name, values in raw.items()}
                asked[place] = searches[place].send(part)
            except StopIteration as end:
                found[place] = end.value
                del asked[place]
    return [found[place] for place in range(len(searches))]


def judge(model: Model, space: Parametrisation, points: Sequence[Row]) -> None:
    """Adds to each point JAQ over the identity's on fresh prompts, and its standard error."""
    prompts = fresh_prompts()

    def scores(vector: Sequence[float]) -> Raw:
        return model.scores([(prompt, space.coefficients(list(vector))) for prompt in prompts])

    units = scores(space.identity)
    objective = model.objective.calibrated(units)
    own = objective.values(units)
    for point in points:
        gain = objective.values(scores(point["best"])) - own
        point["fresh"] = float(gain.mean())
        point["error"] = float(gain.std(ddof=1) / np.sqrt(len(gain)))


def run(setting: Setting, name: str, seeds: Sequence[int]) -> Iterator[tuple[int, Row]]:
    """(seed, what was found and judged) of searches side by side."""
    method = METHODS[name]
    every = [prompt for seed in seeds for prompt in pool(seed, method.pool)]
    model = Model(setting, [*every, *fresh_prompts()])
    rows = together(model, [search(model, setting, method, seed) for seed in seeds])
    judge(model, setting.parametrisation, [p for row in rows for p in row["points"].values()])
    yield from zip(seeds, rows, strict=True)


def pool(seed: int, size: int) -> list[Prompt]:
    """`size` of the calibration captions, in an order and with noise of the seed's own."""
    captions = read_captions(ROOT / "studies" / "prompts" / "demo-calibration.txt")
    order = np.random.default_rng(1000 + seed).permutation(len(captions))[:size]
    return list(with_seeds([captions[at] for at in order], seed=seed, split="calibration"))


def fresh_prompts() -> list[Prompt]:
    """The prompts that judge: all different, and in neither of the demo's files."""
    folder = ROOT / "studies" / "prompts"
    known = {
        caption
        for split in ("calibration", "heldout")
        for caption in read_captions(folder / f"demo-{split}.txt")
    }
    rng = random.Random(12345)
    found: dict[str, None] = {}
    while len(found) < FRESH:
        caption = str(sample(rng))
        if caption not in known:
            found[caption] = None
    return list(with_seeds(list(found), seed=NOISE, split="fresh"))
