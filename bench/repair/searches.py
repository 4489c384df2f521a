"""Which searches there are, made with the demo model, and kept by image."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qsched.evidence import real_images as distribution
from qsched.prompts import Prompt
from qsched.proof.outcome import JAQ
from qsched.schedule.coefficients import Coefficients
from qsched.schedule.parametrisations import Bounds, parametrisation
from qsched.search.samplers import Proposer
from qsched.statistics import Values
from qsched.study.study import Study, load_study

ROOT = Path(__file__).parents[2]
DATA = Path(__file__).parent / "data"
SCHEMES = ("none", "w4a4", "w4a8", "w8a8")
STEPS = (4, 2, 1)
SEEDS = range(5)
TRIALS = 32
CALIBRATION = 32
UNSEARCHED = {"mean of all x0": 1.0, "x0 decay of 0.4": 0.4}
"""Averages that nothing is searched for."""
WIDE = Bounds(0.6, 1.4)
BOXES = {" in [0.8, 1.2]": Bounds(0.8, 1.2), " in [0.9, 1.1]": Bounds(0.9, 1.1)}
"""Boxes other than WIDE, by what stands behind the parametrisation."""
NEAR, NARROW = BOXES
SEVERAL = ("ramp", "per-step", "per-step+x0-average", f"per-step+x0-fade{NARROW}")
MANY = (
    *("ramp", "per-step", f"per-step{NEAR}", f"per-step{NARROW}", "x0-average", "x0-decay"),
    *("per-step+x0-average", "per-step+x0-decay", f"per-step+x0-decay{NEAR}"),
    *(f"per-step+x0-fade{NEAR}", f"per-step+x0-fade{NARROW}"),
)
CEILINGS = ("similarity", "attributes")
MEASURED = ("w4a4", 4)
"""Where ceilings are searched, for these."""
CEILED = ("ramp", "per-step", "x0-average", "per-step+x0-average")
LONG = 3 * TRIALS
"""Trials of a ceiling, and of the searches in PATIENT."""
DEEP = 1_000
"""Trials, by CMA-ES, of the ceilings of similarity of the spaces in DEEPENED."""
DEEPENED = ("per-step", "per-step+x0-average")
SIZES = (4, 8, 16, 64)
"""Calibration prompts beside 32, at w4a4 and 4 steps."""
PATIENT = ("per-step",)
"""At w4a4 and 4 steps with LONG trials as well."""
UNSEEN = ("similarity", "attributes")


@dataclass(frozen=True)
class Cell:
    """One search: of `method` on `scheme` at `steps`, for `goal` ("jaq" or an unseen metric)."""

    scheme: str
    steps: int
    method: str
    seed: int
    goal: str = JAQ
    trials: int = TRIALS
    prompts: int = CALIBRATION

    @property
    def key(self) -> str:
        return f"{self.goal}|{self.method}|{self.seed}|{self.trials}|{self.prompts}"


def methods(scheme: str, steps: int) -> Sequence[str]:
    """What is searched; most of it where rounding costs most."""
    if steps == 1:
        return ("constant",)
    return MANY if scheme in ("none", "w4a4") and steps == 4 else SEVERAL


def cells(scheme: str, steps: int) -> list[Cell]:
    """What is searched, seed by seed; then other calibration sets, ceilings and more trials."""
    found = [Cell(scheme, steps, name, seed) for seed in SEEDS for name in methods(scheme, steps)]
    if steps > 1:
        found += [Cell(scheme, steps, name, 0) for name in UNSEARCHED]
    if scheme in ("none", "w4a4") and steps == 4:
        found += [sized(scheme, size, seed) for size in SIZES for seed in SEEDS]
    if (scheme, steps) == MEASURED:
        found += [ceiling(scheme, name, goal) for goal in CEILINGS for name in CEILED]
        found += [ceiling(scheme, name, "similarity", DEEP) for name in DEEPENED]
    if scheme in ("none", "w4a4") and steps == 4:
        found += [patient(scheme, name, seed) for name in PATIENT for seed in SEEDS]
    return found


def patient(scheme: str, method: str, seed: int) -> Cell:
    return Cell(scheme, 4, method, seed, trials=LONG)


def ceiling(scheme: str, method: str, goal: str, trials: int = LONG) -> Cell:
    return Cell(scheme, 4, method, 0, goal, trials)


def sized(scheme: str, size: int, seed: int) -> Cell:
    return Cell(scheme, 4, "per-step", seed, prompts=size)


def calibration(seed: int, count: int = CALIBRATION) -> tuple[Prompt, ...]:
    """`count` of the 64 calibration captions, with noise of their own; more begin with fewer."""
    captions = (ROOT / "studies/prompts/demo-calibration.txt").read_text().splitlines()
    chosen = np.random.default_rng(seed).permutation(len(captions))[:count]
    return tuple(Prompt(captions[i], 10_000 * (seed + 1) + int(i)) for i in sorted(chosen))


@cache
def demo() -> Study:
    return load_study(ROOT / "studies/demo.toml")


class Lab:
    """The demo model under one scheme at one number of steps, and the judges."""

    def __init__(self, scheme: str, steps: int) -> None:
        import torch

        from qsched.pipelines.generator import ImageGenerator
        from qsched.pipelines.loading import load_model
        from qsched.pipelines.table import Sampling, sampling_of
        from qsched.quantization.table import Quantization
        from qsched.scoring.scorers import load_scorers

        torch.set_num_threads(1)
        self.study = demo()
        tables = self.study.tables
        self.held_out = self.study.held_out[:: tables.prompts.held_out_seeds]
        how = None if scheme == "none" else Quantization(scheme=scheme, skip=())
        sampling = sampling_of("demo", Sampling(steps=steps))
        draws = {p for seed in SEEDS for p in calibration(seed, max(SIZES))}
        compared = sorted({*calibration(0), *self.held_out})
        self._features = distribution.demo_features()
        self._scorers = load_scorers(self.study.scorers)
        self._metrics = load_scorers(UNSEEN)
        self._references: dict[Prompt, Any] = {}

        def generator(scheme: Any) -> ImageGenerator:
            pipeline = load_model(tables.model, scheme, execution=tables.execution).pipeline
            made = ImageGenerator(pipeline, sampling, part=tables.model.part, batch_size=16)
            made.prepare(sorted({*draws, *self.held_out}))
            return made

        identity = Coefficients.identity(steps)
        reference = generator(None)
        for start in range(0, len(compared), 16):
            batch = compared[start : start + 16]
            images = reference.generate(batch, identity)
            self._references |= dict(zip(batch, images, strict=True))
        self._generator = generator(how)

    def measure(
        self, prompts: Sequence[Prompt], coefficients: Coefficients, *, unseen: bool
    ) -> dict[str, Values]:
        """{metric: (N,)}; `unseen`: beside the scorers those that the search never sees, and the
        features (N, D) of the Frechet distance."""
        import torch

        from qsched.pictures.pixels import eight_bit

        values: dict[str, list[Any]] = {}
        for start in range(0, len(prompts), 16):
            batch = prompts[start : start + 16]
            images = self._generator.generate(batch, coefficients)
            scored = self._scorers.score(images, batch)
            if unseen:
                beside = torch.stack([self._references[prompt] for prompt in batch])
                scored |= self._metrics.score(images, batch, beside)
                scored["features"] = list(
                    self._features(torch.from_numpy(eight_bit(images.numpy())))
                )
            for name, listed in scored.items():
                values.setdefault(name, []).extend(listed)
        return {name: np.asarray(listed) for name, listed in values.items()}


def search(lab: Lab, cell: Cell) -> Coefficients:
    """The best trial's coefficients."""
    prompts = calibration(cell.seed, cell.prompts)
    if cell.method in UNSEARCHED:
        return parametrisation("x0-decay", cell.steps).coefficients([UNSEARCHED[cell.method]])
    box = next((box for box in BOXES if cell.method.endswith(box)), "")
    space = parametrisation(cell.method.removesuffix(box), cell.steps)
    bounds = BOXES.get(box, WIDE)
    sampler = "cmaes" if cell.trials == DEEP else "auto"
    proposer = Proposer(sampler, space, bounds, seed=cell.seed, budget=cell.trials)
    objective = lab.study.objective
    best: tuple[float, Coefficients] | None = None
    for slot in range(cell.trials):
        vector = proposer.vector(slot)
        coefficients = space.coefficients(vector)
        scores = lab.measure(prompts, coefficients, unseen=cell.goal != JAQ)
        if slot == 0:
            objective = objective.calibrated(scores)
        value = objective.value(scores) if cell.goal == JAQ else float(scores[cell.goal].mean())
        proposer.add(slot, vector, value)
        if best is None or value > best[0]:
            best = value, coefficients
    assert best
    return best[1]


def work(scheme: str, steps: int) -> None:
    """Every cell of one network that isn't there yet."""
    kept = load(scheme, steps)
    todo = [cell for cell in cells(scheme, steps) if f"{cell.key}|coefficients" not in kept]
    if not todo:
        return
    lab = Lab(scheme, steps)
    identity = Coefficients.identity(steps)

    def keep(key: str, measured: dict[str, Values]) -> None:
        kept.update({f"{key}|{name}": _small(name, v) for name, v in measured.items()})

    if "identity|similarity" not in kept:
        keep("identity", lab.measure(lab.held_out, identity, unseen=True))
        for seed in SEEDS:
            units = lab.measure(calibration(seed), identity, unseen=False)
            keep(f"units|{seed}", units)
    for done, cell in enumerate(todo, 1):
        found = search(lab, cell)
        keep(cell.key, lab.measure(lab.held_out, found, unseen=True))
        kept[f"{cell.key}|coefficients"] = np.array(json.dumps(found.to_dict()))
        save(scheme, steps, kept)
        print(f"{scheme} at {steps} steps: {cell.key} ({done}/{len(todo)})", flush=True)


def _small(name: str, values: Values) -> NDArray[Any]:
    return values.astype(np.float16 if name == "features" else np.float32)


def path_of(scheme: str, steps: int) -> Path:
    return DATA / f"{scheme}-{steps}.npz"


def load(scheme: str, steps: int) -> dict[str, Any]:
    """What is kept of one network: {"goal|method|seed|trials|prompts|metric": (prompts,)}."""
    path = path_of(scheme, steps)
    if not path.exists():
        return {}
    with np.load(path) as found:
        return {name: found[name] for name in found.files}


def save(scheme: str, steps: int, kept: dict[str, Any]) -> None:
    """Writes the file whole or not at all."""
    path = path_of(scheme, steps)
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_suffix(".part")
    with whole.open("wb") as file:
        np.savez_compressed(file, **kept)
    whole.replace(path)
