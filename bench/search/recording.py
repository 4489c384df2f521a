"""Records the demo's landscape densely: every prompt's raw scores at thousands of coefficients.

    python -m bench.search.recording [ramp-grid] [ramp-between] [ramp-close] [per-step]

What it records lies in data/, one compressed file for each plan, and is what `bench.search`
replays. A recording is saved every minute and when interrupted; the same command goes on with
the next point of the plan. The order is such that a part of a recording is useful too.

- `ramp-grid`: the official search, 50 x 50 ramps over [0.8, 1.2], shuffled;
- `ramp-between`: 100 ramps drawn from the same box, to judge what is interpolated in the grid;
- `ramp-close`: 24 ramps of that box, each with neighbours at distances of 1e-6 to 1e-2;
- `per-step`: 3,000 pairs per step over [0.6, 1.4]^8; in turns a Sobol point, and one close to
  the identity, from a normal distribution of deviation 0.1, clipped to the box.

The model is studies/demo.toml's, on the first 16 of its calibration prompts. Each process computes
on one thread, which is faster than sharing both cores, and makes a score the same everywhere.
"""

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qsched.schedule.parametrisations import parametrisation
from qsched.study.study import Study, load_study

ROOT = Path(__file__).parents[2]
DATA = Path(__file__).parent / "data"
PROMPTS = 16
SIDE = 50
BOX = (0.8, 1.2)
WIDE = (0.6, 1.4)
DISTANCES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
SAVE_EVERY = 60.0

Array = NDArray[np.float64]


def grid(side: int = SIDE) -> Array:
    """(side**2, 2): the official grid, c_x fastest."""
    axis = np.linspace(*BOX, side)
    return np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)


def shuffled_grid() -> Array:
    return np.random.default_rng(0).permutation(grid())


def between() -> Array:
    return np.random.default_rng(1).uniform(*BOX, size=(100, 2))


def close() -> Array:
    """(24 * 6, 2): each ramp, then one in a random direction at each of the DISTANCES."""
    random = np.random.default_rng(4)
    groups = []
    for base in random.uniform(BOX[0] + 0.01, BOX[1] - 0.01, size=(24, 2)):
        angles = random.uniform(0, 2 * np.pi, size=len(DISTANCES))
        steps = np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.array(DISTANCES)[:, None]
        groups.append(np.concatenate([base[None], base + steps]))
    return np.concatenate(groups)


def per_step() -> Array:
    from scipy.stats import qmc

    sobol = WIDE[0] + (WIDE[1] - WIDE[0]) * qmc.Sobol(8, seed=2).random(2048)[:1500]
    near = np.random.default_rng(3).normal(1.0, 0.1, size=(1500, 8)).clip(*WIDE)
    return np.stack([sobol, near], axis=1).reshape(-1, 8)


@dataclass(frozen=True)
class Plan:
    """What is recorded: search vectors of a parametrisation, in their order."""

    parametrisation: str
    vectors: Callable[[], Array]


PLANS = {
    "ramp-grid": Plan("ramp", shuffled_grid),
    "ramp-between": Plan("ramp", between),
    "ramp-close": Plan("ramp", close),
    "per-step": Plan("per-step", per_step),
}


@dataclass(frozen=True)
class Recording:
    """Scores of search vectors: `vectors` (P, D), `scores` (P, scorers, prompts) float32,
    `identity` (scorers, prompts), and the `scorers`' names."""

    vectors: Array
    scores: NDArray[np.float32]
    identity: NDArray[np.float32]
    scorers: tuple[str, ...]

    def save(self, path: Path, origin: dict[str, object]) -> None:
        """Writes the file whole or not at all."""
        path.parent.mkdir(exist_ok=True)
        whole = path.with_suffix(".part")
        with whole.open("wb") as file:
            np.savez_compressed(
                file,
                vectors=self.vectors,
                scores=self.scores,
                identity=self.identity,
                scorers=np.array(self.scorers),
                origin=np.array(json.dumps(origin)),
            )
        whole.replace(path)


def load_recording(name: str) -> Recording | None:
    """The recording of a plan, as far as it came; None if there is none."""
    path = DATA / f"demo-{name}.npz"
    if not path.exists():
        return None
    with np.load(path) as kept:
        return Recording(
            kept["vectors"], kept["scores"], kept["identity"], tuple(kept["scorers"].tolist())
        )


def demo() -> Study:
    """The study whose model, prompts and objective are recorded."""
    return load_study(ROOT / "studies" / "demo.toml")


class Trial:
    """Scores search vectors with the demo's model: (scorers, prompts) float32, on one thread."""

    def __init__(self, space: str) -> None:
        import torch

        from qsched.pipelines.generator import ImageGenerator
        from qsched.pipelines.loading import load_model
        from qsched.scoring.scorers import load_scorers

        torch.set_num_threads(1)
        study = demo()
        tables = study.tables
        loaded = load_model(tables.model, tables.quantization, execution=tables.execution)
        self._space = parametrisation(space, tables.sampling.steps)
        self._prompts = study.calibration[:PROMPTS]
        self._scorers = load_scorers(study.scorers)
        self._generator = ImageGenerator(
            loaded.pipeline, tables.sampling, part=tables.model.part, batch_size=PROMPTS
        )
        self._generator.prepare(self._prompts)

    def __call__(self, vector: Sequence[float]) -> NDArray[np.float32]:
        images = self._generator.generate(self._prompts, self._space.coefficients(list(vector)))
        scores = self._scorers.score(images, self._prompts)
        return np.array([scores[name] for name in scores], dtype=np.float32)

    @property
    def identity(self) -> tuple[float, ...]:
        """The search vector of the unmodified schedule."""
        return self._space.identity


_trial: Trial


def _load_trial(space: str) -> None:
    global _trial
    _trial = Trial(space)


def _scored(vector: Sequence[float]) -> NDArray[np.float32]:
    return _trial(vector)


def trials(
    space: str, vectors: Sequence[Sequence[float]], processes: int
) -> Iterator[NDArray[np.float32]]:
    """The scores of each vector, in order, by processes that load the model once.

    Raises BrokenProcessPool if one of them dies.
    """
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, _load_trial, (space,))
    try:
        yield from pool.map(_scored, vectors)
    finally:
        pool.shutdown(cancel_futures=True)


def record(name: str, processes: int) -> None:
    """Goes on with a plan where its recording stands, to its end."""
    import torch

    plan = PLANS[name]
    vectors = plan.vectors()
    kept = load_recording(name)
    scores = [] if kept is None else list(kept.scores)
    if kept is not None and not np.array_equal(kept.vectors, vectors[: len(scores)]):
        raise SystemExit(f"data/demo-{name}.npz holds another plan's points; remove it")
    if len(scores) == len(vectors):
        print(f"{name}: {len(scores)} points are there", flush=True)
        return
    study = demo()
    steps = study.tables.sampling.steps
    origin: dict[str, object] = {
        "study": "studies/demo.toml",
        "scheme": study.tables.quantization.scheme,
        "parametrisation": plan.parametrisation,
        "steps": steps,
        "prompts": [[prompt.text, prompt.seed] for prompt in study.calibration[:PROMPTS]],
        "torch": torch.__version__,
    }
    identity = parametrisation(plan.parametrisation, steps).identity
    left = [identity, *vectors[len(scores) :].tolist()]
    found = trials(plan.parametrisation, left, processes)
    base = next(found)

    def save() -> None:
        done = Recording(vectors[: len(scores)], np.stack(scores), base, study.scorers)
        done.save(DATA / f"demo-{name}.npz", origin)

    began = saved = time.perf_counter()
    start = len(scores)
    try:
        for score in found:
            scores.append(score)
            if time.perf_counter() - saved > SAVE_EVERY:
                save()
                saved = time.perf_counter()
                rate = (len(scores) - start) * PROMPTS / (saved - began)
                print(f"{name}: {len(scores)}/{len(vectors)}, {rate:.0f} images/s", flush=True)
    finally:
        if scores:
            save()
    print(f"{name}: {len(scores)} points, {time.perf_counter() - began:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("plans", nargs="*", choices=[*PLANS, []], help="default: all, in order")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true", help="print what is recorded as JSON")
    options = parser.parse_args()
    if options.json:
        found = {name: load_recording(name) for name in PLANS}
        print(json.dumps({name: len(r.vectors) if r else 0 for name, r in found.items()}))
        return
    for name in options.plans or PLANS:
        record(name, options.processes)


if __name__ == "__main__":
    main()
