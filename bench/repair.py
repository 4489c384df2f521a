"""How much of the lost quality a search wins back, and how much of its gain is taste.

    python bench/repair.py run [--processes 2] [--only w4a4-4]     # hours; resumable
    python bench/repair.py                                          # the tables

The demo model at 1, 2 and 4 steps and three widths. A search sees JAQ on 32 calibration prompts (a
draw of its own for each seed), 32 trials, `auto`; its best trial is measured on 128 held-out
prompts that it never saw, with metrics that it never saw. *Repair* is its gain on the quantized
model minus the gain of the same method, searched anew, on the full-precision one. A ceiling is the
same search with the similarity to full precision itself as its objective, and three times the
trials. Values are kept by prompt in bench/data/repair, so that every interval can be made again.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from printing import Table, show

from qsched import jaq
from qsched.coefficients import Coefficients
from qsched.config import load_study
from qsched.prompts import Prompt
from qsched.samplers import Proposer
from qsched.spaces import Bounds, parametrisation

ROOT = Path(__file__).parents[1]
DATA = Path(__file__).parent / "data" / "repair"
SCHEMES = ("w4a4", "none", "w4a8", "w8a8")
STEPS = (4, 2, 1)
SEEDS = range(5)
TRIALS = 32
CALIBRATION = 32
UNIFORM = "uniform 1/N, no search"
SEVERAL = ("ramp", "per-step", UNIFORM, "x0-average", "per-step+x0-average")
METHODS = {4: SEVERAL, 2: SEVERAL, 1: ("constant",)}
CEILING = "similarity"
CEILINGS = {("w4a8", 4), ("w4a4", 4)}
UNSEEN = ("similarity", "attributes")
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Cell:
    """One search: of `method` on `scheme` at `steps`, for `goal` ("jaq" or "similarity")."""

    scheme: str
    steps: int
    method: str
    seed: int
    goal: str = "jaq"

    @property
    def key(self) -> str:
        return f"{self.goal}|{self.method}|{self.seed}"

    @property
    def trials(self) -> int:
        return TRIALS if self.goal == "jaq" else 3 * TRIALS


def cells(scheme: str, steps: int) -> list[Cell]:
    """What is searched, seed by seed; then the ceilings."""
    searches = [Cell(scheme, steps, method, seed) for seed in SEEDS for method in METHODS[steps]]
    if (scheme, steps) not in CEILINGS:
        return searches
    methods = [method for method in METHODS[steps] if method != UNIFORM]
    return searches + [Cell(scheme, steps, method, 0, CEILING) for method in methods]


def calibration(seed: int) -> tuple[Prompt, ...]:
    """32 of the 64 calibration captions, with noise of their own."""
    captions = (ROOT / "studies/prompts/demo-calibration.txt").read_text().splitlines()
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(captions), CALIBRATION, replace=False)
    return tuple(Prompt(captions[i], 10_000 * (seed + 1) + int(i)) for i in sorted(chosen))


# --- measured with the model --------------------------------------------------------------------


class Lab:
    """The demo model under one scheme at one number of steps, and the judges."""

    def __init__(self, scheme: str, steps: int) -> None:
        import torch

        from qsched.defaults import sampling_of
        from qsched.generate import ImageGenerator
        from qsched.models import load
        from qsched.score import Metrics, load_metrics, load_scorers
        from qsched.sections import Quantization, Sampling

        torch.set_num_threads(1)
        self.study = load_study(ROOT / "studies/demo.toml")
        tables = self.study.tables
        self.held_out = self.study.held_out[:: tables.prompts.held_out_seeds]
        how = None if scheme == "none" else Quantization(scheme=scheme, skip=())
        sampling = sampling_of("demo", Sampling(steps=steps))
        prompts = {p for seed in SEEDS for p in calibration(seed)} | set(self.held_out)
        self._scorers = load_scorers(self.study.scorers)
        self._metrics = Metrics(load_metrics(UNSEEN), torch.device("cpu"))
        self._references: dict[Prompt, Any] = {}

        def generator(scheme: Any) -> ImageGenerator:
            pipeline = load(tables.model, scheme, execution=tables.execution).pipeline
            made = ImageGenerator(pipeline, sampling, part=tables.model.part, batch_size=16)
            made.prepare(sorted(prompts))
            return made

        identity = Coefficients.identity(steps)
        reference = generator(None)
        for start in range(0, len(prompts), 16):
            batch = sorted(prompts)[start : start + 16]
            images = reference.generate(batch, identity)
            self._references |= dict(zip(batch, images, strict=True))
        self._generator = generator(how)

    def measure(
        self, prompts: Sequence[Prompt], coefficients: Coefficients, *, unseen: bool
    ) -> dict[str, Values]:
        """{metric: (N,)}; `unseen`: beside the scorers those that the search never sees."""
        import torch

        values: dict[str, list[float]] = {}
        for start in range(0, len(prompts), 16):
            batch = prompts[start : start + 16]
            images = self._generator.generate(batch, coefficients)
            scored = self._scorers.score(images, batch)
            if unseen:
                beside = torch.stack([self._references[prompt] for prompt in batch])
                scored |= self._metrics.score(images, batch, beside)
            for name, listed in scored.items():
                values.setdefault(name, []).extend(listed)
        return {name: np.asarray(listed) for name, listed in values.items()}


def search(lab: Lab, cell: Cell) -> Coefficients:
    """The best trial's coefficients."""
    prompts = calibration(cell.seed)
    if cell.method == UNIFORM:
        return Coefficients.identity(cell.steps).averaged([1 / cell.steps] * cell.steps)
    space = parametrisation(cell.method, cell.steps)
    proposer = Proposer("auto", space, Bounds(), seed=cell.seed, budget=cell.trials)
    objective = lab.study.objective
    best: tuple[float, Coefficients] | None = None
    for slot in range(cell.trials):
        vector = proposer.vector(slot)
        coefficients = space.coefficients(vector)
        scores = lab.measure(prompts, coefficients, unseen=cell.goal != "jaq")
        if slot == 0:
            objective = objective.calibrated(scores)
        value = objective.value(scores) if cell.goal == "jaq" else float(scores[cell.goal].mean())
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
        kept.update({f"{key}|{name}": v.astype(np.float32) for name, v in measured.items()})

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


def path_of(scheme: str, steps: int) -> Path:
    return DATA / f"{scheme}-{steps}.npz"


def load(scheme: str, steps: int) -> dict[str, Any]:
    """What is kept of one network: {"goal|method|seed|metric": (prompts,) float32}."""
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


def run(processes: int, only: Sequence[str]) -> None:
    """Every network in a process of its own, `processes` at a time."""
    jobs = [f"{scheme}-{steps}" for steps in STEPS for scheme in SCHEMES]
    queue = [job for job in jobs if not only or job in only]
    running: list[subprocess.Popen[bytes]] = []
    while queue or running:
        while queue and len(running) < processes:
            running.append(subprocess.Popen([sys.executable, __file__, "network", queue.pop(0)]))
        running[0].wait()
        running = [process for process in running if process.poll() is None]


# --- the tables ---------------------------------------------------------------------------------


def interval(difference: Values, scale: float = 1.0, digits: int = 3) -> str:
    """Mean and 95 % interval over the held-out prompts, which are all different."""
    names = [str(index) for index in range(len(difference))]
    found = jaq.paired_interval(difference / scale, np.zeros(len(difference)), names)
    mean, low, high = (f"{v:+.{digits}f}" for v in (found.mean, found.low, found.high))
    return f"{mean} [{low}, {high}]"


def above(differences: Sequence[Values]) -> str:
    """For how many seeds the interval lies above zero."""
    names = [str(index) for index in range(len(differences[0]))]
    nothing = np.zeros(len(names))
    shown = [jaq.paired_interval(each, nothing, names).above_zero for each in differences]
    return f"{sum(shown)}/{len(shown)}"


@dataclass(frozen=True)
class Network:
    """What is kept of one network, its JAQ in the units of the quantized model's searches."""

    kept: dict[str, Any]
    units: dict[str, Any]

    def values(self, key: str, metric: str, seed: int) -> Values:
        if metric != "jaq":
            return np.asarray(self.kept[f"{key}|{metric}"], dtype=float)
        study = load_study(ROOT / "studies/demo.toml")
        scorers = study.scorers
        objective = study.objective.calibrated(
            {k: self.units[f"units|{seed}|{k}"] for k in scorers}
        )
        return objective.values({k: self.kept[f"{key}|{k}"] for k in scorers})

    def gain(self, cell: Cell, metric: str) -> Values | None:
        """Paired with the identity, (prompts,); None if it wasn't run."""
        if f"{cell.key}|coefficients" not in self.kept:
            return None
        return self.values(cell.key, metric, cell.seed) - self.values("identity", metric, cell.seed)


def gains(network: Network, cells: Sequence[Cell], metric: str) -> list[Values]:
    found = [network.gain(cell, metric) for cell in cells]
    return [each for each in found if each is not None]


def tables() -> dict[str, Table]:
    """One table a network: what is won back of what was lost, and what of it is repair."""
    found: dict[str, Table] = {}
    for steps, scheme in ((steps, scheme) for steps in STEPS for scheme in SCHEMES):
        if scheme == "none" or not (kept := load(scheme, steps)):
            continue
        whole = Network(load("none", steps), kept)
        quantized = Network(kept, kept)
        rows, metrics = [], ("jaq", *UNSEEN)
        lost = {
            metric: float(
                np.mean([whole.values("identity", metric, seed).mean() for seed in SEEDS])
                - np.mean([quantized.values("identity", metric, seed).mean() for seed in SEEDS])
            )
            for metric in metrics
        }
        for goal, method in ((g, m) for g in ("jaq", CEILING) for m in METHODS[steps]):
            plan = [Cell(scheme, steps, method, seed, goal) for seed in SEEDS]
            row: dict[str, Any] = {"search": method if goal == "jaq" else f"{method}, for {goal}"}
            for metric in metrics:
                won = gains(quantized, plan, metric)
                if not won:
                    break
                row["seeds"] = len(won)
                mean = np.mean(won, axis=0)
                row[f"{metric} won back"] = interval(mean, lost[metric] / 100, 0) + " %"
                pairs = [
                    (a, b)
                    for a, b in ((quantized.gain(c, metric), whole.gain(c, metric)) for c in plan)
                    if a is not None and b is not None
                ]
                if pairs:
                    row[f"{metric} on full"] = f"{np.mean([b for _, b in pairs]):+.3f}"
                    repaired = [a - b for a, b in pairs]
                    row[f"{metric} repair"] = interval(np.mean(repaired, axis=0))
                    row[f"{metric} repair above 0"] = above(repaired)
            if "seeds" in row:
                rows.append(row)
        words = ", ".join(f"{metric} {value:.3f}" for metric, value in lost.items())
        found[f"{scheme} at {steps} steps; lost by quantization: {words}"] = rows
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=["run", "network", "table"], default="table")
    parser.add_argument("network", nargs="?", help="such as w4a4-4")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.what == "run":
        run(options.processes, options.only)
    elif options.what == "network":
        scheme, _, steps = options.network.rpartition("-")
        work(scheme, int(steps))
    else:
        show(tables(), as_json=options.json)


if __name__ == "__main__":
    main()
