"""Which searches `bench.search` runs, on the replayed landscape and on the model, and its results.

Two spaces: `ramp`, the official grid's own two numbers and box; `per-step`, eight numbers in the
wider box [0.6, 1.4]. A budget is counted in full trials' worth of images, 16 each, trials that were
stopped early included. One search of each setting is read off at every budget up to its largest:
with one worker 200, where a proposal takes few milliseconds, else 100, in eight dimensions 50; with
several 50. Each of 20 seeds has its own draw of the landscape's roughness. Trials stop early below
a chance to lead of 0.05, in one worker's searches also never. Nevergrad's optimizers and `gp`,
which takes a second a proposal there, are run with one worker only in eight dimensions. `variants`
tries other chances and batches.
"""

import json
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, astuple, dataclass
from functools import cache
from itertools import product
from typing import Any

from bench.search.recording import (
    BOX,
    DATA,
    PROMPTS,
    SAVE_EVERY,
    WIDE,
    Recording,
    Trial,
    demo,
    load_recording,
)
from bench.search.replay import (
    Array,
    Best,
    Fit,
    Kriging,
    Landscape,
    Polynomial,
    Search,
    Surface,
    identity_values,
    prompt_values,
    search,
)
from qsched.schedule.parametrisations import Bounds, parametrisation
from qsched.search.catalog import SAMPLERS
from qsched.search.samplers import Proposer

RESULTS = DATA / "search.json"
SEEDS = 20
WORKERS = (1, 4, 16)
STOP = 0.05
BATCH = 4
SLOW = ("gp", "tpe")
STEPS = 4
CONFIRMED = ("gp", "tpe")
CONFIRMED_SEEDS = 5
CONFIRMED_TRIALS = 50

Row = dict[str, Any]


@dataclass(frozen=True)
class Space:
    """A recorded space: its plan, its box, the trend that was fitted, and the residuals that
    stand for its roughness, as the arguments of a slice of the recorded points."""

    parametrisation: str
    recording: str
    box: tuple[float, float]
    trend: Fit
    rough: tuple[int | None, ...] = (None,)


SPACES = {
    "ramp": Space("ramp", "ramp-grid", BOX, Polynomial(6)),
    "per-step": Space("per-step", "per-step", WIDE, Kriging(1.5, 1e-3), (1, None, 2)),
}


@dataclass(frozen=True)
class Setting:
    """One search: where, by what, with how many workers, stopping below what, its seed, and how
    many prompts it scores at a time."""

    space: str
    sampler: str
    workers: int
    stop: float
    seed: int
    batch: int = BATCH

    @property
    def key(self) -> str:
        return "/".join(map(str, astuple(self)))

    @property
    def trials(self) -> int:
        """The budget, in full trials' worth of images."""
        slow = self.sampler in SLOW
        aside = self.workers > 1 or self.batch != BATCH or self.stop not in (0.0, STOP)
        if aside or (slow and self.space != "ramp"):
            return 50
        return 100 if slow else 200


def dimension(space: str) -> int:
    return parametrisation(SPACES[space].parametrisation, STEPS).dimension


def recorded(space: str) -> tuple[Recording, Array]:
    """A space's recording and its JAQ per prompt, (P, prompts)."""
    found = load_recording(SPACES[space].recording)
    if found is None:
        raise SystemExit(f"no recording of {space}; run: python -m bench.search.recording")
    return found, prompt_values(found, demo().objective)


@cache
def landscape(space: str) -> Landscape:
    kind = SPACES[space]
    found, values = recorded(space)
    identity = parametrisation(kind.parametrisation, STEPS).identity
    known = {identity: identity_values(found, demo().objective)}
    return Landscape(found.vectors, values, kind.trend, rough=slice(*kind.rough), known=known)


def proposer(setting: Setting) -> Proposer:
    space = SPACES[setting.space]
    return Proposer(
        setting.sampler,
        parametrisation(space.parametrisation, STEPS),
        Bounds(*space.box),
        seed=setting.seed,
        budget=setting.trials,
    )


def settings() -> Iterator[Setting]:
    """The plan of the replay, what takes long and matters less last."""
    for family in (False, True):
        for workers, stop in ((1, 0.0), *((workers, STOP) for workers in WORKERS)):
            for space, seed in product(SPACES, range(SEEDS)):
                for sampler in SAMPLERS:
                    fits = sampler != "grid" or dimension(space) == 2
                    aside = family and (workers > 1 or not stop)
                    if space == "per-step" and (aside or (sampler == "gp" and workers > 1)):
                        continue
                    if sampler != "auto" and fits and (":" in sampler) is family:
                        yield Setting(space, sampler, workers, stop, seed)


def variants() -> Iterator[Setting]:
    """The leader with other early stopping: chance to lead, and prompts at a time."""
    for seed in range(SEEDS):
        for stop, batch in ((0.2, 4), (0.35, 4), (0.05, 1), (0.2, 1)):
            yield Setting("ramp", "gp", 1, stop, seed, batch)


def confirmations() -> Iterator[Setting]:
    """The plan of the real runs."""
    for space in SPACES:
        for sampler in CONFIRMED:
            for stop in (0.0, STOP):
                for seed in range(CONFIRMED_SEEDS):
                    yield Setting(space, sampler, 1, stop, seed)


def found_by(setting: Setting, surface: Surface, trials: int) -> tuple[str, Row]:
    """A setting's key and what its search found, as it is stored."""
    began = time.perf_counter()
    found = search(
        surface,
        proposer(setting),
        images=trials * PROMPTS,
        workers=setting.workers,
        stop=setting.stop,
        batch=setting.batch,
        least=max(2, setting.batch),
        seed=setting.seed,
    )
    row = asdict(found)
    row["bests"] = [
        [best.images, best.ended, round(best.value, 4), round(best.trend, 4)]
        for best in found.bests
    ]
    return setting.key, {**row, "seconds": round(time.perf_counter() - began, 2)}


def replayed(setting: Setting) -> tuple[str, Row]:
    return found_by(setting, landscape(setting.space).drawn(setting.seed), setting.trials)


def as_search(row: Row) -> Search:
    """The inverse of what `found_by` stores."""
    known = {key: value for key, value in row.items() if key != "seconds"}
    known["bests"] = [Best(*best) for best in row["bests"]]
    known["images_at"] = {int(ended): images for ended, images in row["images_at"].items()}
    return Search(**known)


class Model:
    """The demo itself as a surface: a real run, whose trend is the landscape's."""

    def __init__(self, space: str) -> None:
        self._trial = Trial(SPACES[space].parametrisation)
        self._scorers = demo().scorers
        self._landscape = landscape(space)
        identity = self._trial(self._trial.identity)
        self._objective = demo().objective.calibrated(
            dict(zip(self._scorers, identity, strict=True))
        )

    def values(self, vector: Sequence[float]) -> Array:
        return self._objective.values(dict(zip(self._scorers, self._trial(vector), strict=True)))

    def trend(self, vector: Sequence[float]) -> float:
        return self._landscape.trend(vector)


@cache
def model(space: str) -> Model:
    return Model(space)


def confirmed(setting: Setting) -> tuple[str, Row]:
    key, row = found_by(setting, model(setting.space), CONFIRMED_TRIALS)
    return f"real/{key}", row


def stored() -> dict[str, Row]:
    """{setting's key: what was found} of all that was run."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def store(results: dict[str, Row]) -> None:
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(row)}" for key, row in results.items())
    part = RESULTS.with_suffix(".part")
    part.write_text(f"{{\n{lines}\n}}\n")
    part.replace(RESULTS)


def run(
    work: Callable[[Setting], tuple[str, Row]], left: Sequence[Setting], processes: int
) -> None:
    """Runs the searches that are `left`, saving as it goes."""
    fresh: dict[str, Row] = {}
    print(f"{len(left)} searches to run", flush=True)
    saved = time.perf_counter()
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        searches = [pool.submit(work, setting) for setting in left]
        for count, done in enumerate(as_completed(searches), start=1):
            key, row = done.result()
            fresh[key] = row
            if time.perf_counter() - saved > SAVE_EVERY or count == len(left):
                store(stored() | fresh)
                saved = time.perf_counter()
                print(f"{count}/{len(left)}", flush=True)
