"""How much of the lost quality a search wins back, and how much of its gain is taste.

    python bench/repair.py run [--processes 2] [--only w4a4-4]     # hours; resumable
    python bench/repair.py                                          # tables and docs/repair.png

The demo model at 1, 2 and 4 steps and three widths. A search sees JAQ on 32 calibration prompts (a
draw of its own for each seed), 32 trials, `auto`; its best trial is measured on 128 held-out
prompts that it never saw, with metrics that it never saw. *Repair* is its gain on the quantized
model minus the gain of the same method, searched anew, on the full-precision one. A ceiling is the
same search with an independent metric itself as its objective, and three times the trials. Values
and features are kept by image in bench/data/repair, so that every interval can be made again.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from printing import Table, show

from qsched import distances, distribution, jaq
from qsched.coefficients import Coefficients
from qsched.config import Study, load_study
from qsched.prompts import Prompt
from qsched.samplers import Proposer
from qsched.spaces import Bounds, parametrisation

ROOT = Path(__file__).parents[1]
DATA = Path(__file__).parent / "data" / "repair"
PLOT = ROOT / "docs" / "repair.png"
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
JAQ, FRECHET = "jaq", "frechet"
CEILINGS = ("similarity", "attributes")
MEASURED = ("w4a4", 4)
"""Where ceilings are searched, for these."""
CEILED = ("ramp", "per-step", "x0-average", "per-step+x0-average")
DEEP = 1_000
"""Trials of the ceilings of similarity of the last and the second of these once more, by CMA-ES."""
SIZES = (4, 8, 16, 64)
"""Calibration prompts beside 32, at w4a4 and 4 steps."""
PATIENT = ("per-step",)
"""At w4a4 and 4 steps with three times the trials as well."""
UNSEEN = ("similarity", "attributes")
SLIGHT = ("w8a8",)
"""Schemes that cost so little that a gain is no share of it."""
Values = NDArray[np.float64]


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
        found += [deep(scheme, name) for name in CEILED[1::2]]
    if scheme in ("none", "w4a4") and steps == 4:
        found += [patient(scheme, name, seed) for name in PATIENT for seed in SEEDS]
    return found


def patient(scheme: str, method: str, seed: int) -> Cell:
    return Cell(scheme, 4, method, seed, trials=3 * TRIALS)


def ceiling(scheme: str, method: str, goal: str) -> Cell:
    return Cell(scheme, 4, method, 0, goal, trials=3 * TRIALS)


def deep(scheme: str, method: str) -> Cell:
    return Cell(scheme, 4, method, 0, CEILINGS[0], trials=DEEP)


def sized(scheme: str, size: int, seed: int) -> Cell:
    return Cell(scheme, 4, "per-step", seed, prompts=size)


def calibration(seed: int, count: int = CALIBRATION) -> tuple[Prompt, ...]:
    """`count` of the 64 calibration captions, with noise of their own; more begin with fewer."""
    captions = (ROOT / "studies/prompts/demo-calibration.txt").read_text().splitlines()
    chosen = np.random.default_rng(seed).permutation(len(captions))[:count]
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
        self.study = demo()
        tables = self.study.tables
        self.held_out = self.study.held_out[:: tables.prompts.held_out_seeds]
        how = None if scheme == "none" else Quantization(scheme=scheme, skip=())
        sampling = sampling_of("demo", Sampling(steps=steps))
        draws = {p for seed in SEEDS for p in calibration(seed, max(SIZES))}
        compared = sorted({*calibration(0), *self.held_out})
        self._features = distribution.demo_features()
        self._scorers = load_scorers(self.study.scorers)
        self._metrics = Metrics(load_metrics(UNSEEN), torch.device("cpu"))
        self._references: dict[Prompt, Any] = {}

        def generator(scheme: Any) -> ImageGenerator:
            pipeline = load(tables.model, scheme, execution=tables.execution).pipeline
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

        values: dict[str, list[Any]] = {}
        for start in range(0, len(prompts), 16):
            batch = prompts[start : start + 16]
            images = self._generator.generate(batch, coefficients)
            scored = self._scorers.score(images, batch)
            if unseen:
                beside = torch.stack([self._references[prompt] for prompt in batch])
                scored |= self._metrics.score(images, batch, beside)
                scored["features"] = list(self._features((images * 255).round().byte()))
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


def run(processes: int, only: Sequence[str]) -> None:
    """Every network in a process of its own, `processes` at a time."""
    jobs = [f"{scheme}-{steps}" for steps in STEPS for scheme in SCHEMES]
    queue = [job for job in jobs if not only or job in only]
    running: list[subprocess.Popen[bytes]] = []
    while queue or running:
        while queue and len(running) < processes:
            running.append(subprocess.Popen([sys.executable, __file__, "network", queue.pop(0)]))
        time.sleep(1)
        running = [process for process in running if process.poll() is None]


# --- the tables ---------------------------------------------------------------------------------


def interval(metric: str, differences: Sequence[Values]) -> jaq.Interval:
    """Of the mean over seeds; over the held-out prompts, which are all different."""
    mean = np.mean(differences, axis=0)
    if metric == FRECHET:
        return distances.interval(mean)
    return jaq.paired_interval(mean, np.zeros(len(mean)), [str(i) for i in range(len(mean))])


def written(found: jaq.Interval, lost: float | None = None) -> str:
    """The mean and its interval; `lost`: in per cent of that."""
    numbers = np.array([found.mean, found.low, found.high])
    if lost is None:
        mean, low, high = (f"{v:+.3f}" if abs(found.mean) < 2 else f"{v:+.1f}" for v in numbers)
        return f"{mean} [{low}, {high}]"
    mean, low, high = (f"{v:.0f}" for v in 100 * numbers / lost)
    return f"{mean} [{low}, {high}] %"


@dataclass(frozen=True)
class Network:
    """What is kept of one network, its JAQ in the units of the quantized model's searches."""

    kept: dict[str, Any]
    units: dict[str, Any]

    def values(self, key: str, metric: str, seed: int) -> Values:
        """(prompts,); of the Frechet distance (1 + resamples,), negative: more is better."""
        if metric == FRECHET:
            return -frechet(self.kept[f"{key}|features"].astype(np.float64).tobytes())
        if metric != JAQ:
            return np.asarray(self.kept[f"{key}|{metric}"], dtype=float)
        study = demo()
        scorers = study.scorers
        objective = study.objective.calibrated(
            {k: self.units[f"units|{seed}|{k}"] for k in scorers}
        )
        return objective.values({k: self.kept[f"{key}|{k}"] for k in scorers})

    def gain(self, cell: Cell, metric: str) -> Values | None:
        """Paired with the identity; None if it wasn't run."""
        if f"{cell.key}|coefficients" not in self.kept:
            return None
        return self.values(cell.key, metric, cell.seed) - self.values("identity", metric, cell.seed)


@cache
def demo() -> Study:
    return load_study(ROOT / "studies/demo.toml")


@cache
def frechet(features: bytes) -> Values:
    real = distances.Statistics(distribution.demo_scenes())
    seen = np.frombuffer(features).reshape(-1, len(real.mean)).copy()
    captions = [str(index) for index in range(len(seen))]
    return distances.distances(distances.Cloud(seen, real), captions, resamples=400)


@dataclass(frozen=True)
class Pair:
    """The quantized network and full precision."""

    quantized: Network
    whole: Network
    slight: bool = False

    def lost(self, metric: str) -> jaq.Interval:
        """What quantization cost, in the mean of the units of all seeds."""
        each = [
            self.whole.values("identity", metric, seed)
            - self.quantized.values("identity", metric, seed)
            for seed in SEEDS
        ]
        return interval(metric, each)

    def share_of(self, metric: str) -> float | None:
        """What a gain is a share of; None if quantization cost nothing to speak of."""
        lost = self.lost(metric)
        return None if self.slight or not lost.above_zero else lost.mean

    def row(self, plan: Sequence[Cell], metrics: Sequence[str]) -> dict[str, Any] | None:
        """What the searches of `plan` won back, and what of it is repair; None without one."""
        row: dict[str, Any] = {}
        for metric in metrics:
            gains = [(self.quantized.gain(c, metric), self.whole.gain(c, metric)) for c in plan]
            won = [mine for mine, _ in gains if mine is not None]
            if not won:
                return None
            row["seeds"] = len(won)
            row[f"{metric} won back"] = written(interval(metric, won), self.share_of(metric))
            repaired = [a - b for a, b in gains if a is not None and b is not None]
            if repaired:
                above = sum(interval(metric, [each]).above_zero for each in repaired)
                row[f"{metric} repair"] = written(interval(metric, repaired))
                row[f"{metric} repair above 0"] = f"{above}/{len(repaired)}"
        return row


def tables() -> dict[str, Table]:
    """What is won back of what was lost, and what of it is repair; ceilings; calibration sets."""
    found: dict[str, Table] = {}
    for steps, scheme in ((steps, scheme) for steps in STEPS for scheme in SCHEMES[1:]):
        if not (kept := load(scheme, steps)) or not (full := load("none", steps)):
            continue
        pair = Pair(Network(kept, kept), Network(full, kept), scheme in SLIGHT)
        plans = {
            method: [Cell(scheme, steps, method, seed) for seed in SEEDS]
            for method in methods(scheme, steps)
        }
        for method in UNSEARCHED if steps > 1 else ():
            plans[f"{method}, no search"] = [Cell(scheme, steps, method, 0)]
        for method in PATIENT if steps == 4 else ():
            label = f"{method}, {3 * TRIALS} trials"
            plans[label] = [patient(scheme, method, seed) for seed in SEEDS]
        metrics = (JAQ, FRECHET, *UNSEEN)
        words = ", ".join(f"{metric} {pair.lost(metric).mean:.3g}" for metric in metrics)
        title = f"{scheme} at {steps} step{'s' * (steps > 1)}; lost by quantization: {words}"
        for chosen in (metrics[:2], metrics[2:]):
            rows = {name: pair.row(plan, chosen) for name, plan in plans.items()}
            found[f"{title} ({', '.join(chosen)})"] = [
                {"search": name} | row for name, row in rows.items() if row
            ]
        if (scheme, steps) == MEASURED:
            found[f"{scheme}: ceilings"] = ceilings(pair, scheme)
        if scheme == "w4a4" and steps == 4:
            found["per-step at w4a4, by calibration prompts"] = [
                {"prompts": size} | row
                for size in sorted((CALIBRATION, *SIZES))
                if (row := pair.row([sized(scheme, size, s) for s in SEEDS], (JAQ, FRECHET)))
            ]
    found["gains in KID beside gains in the Frechet distance"] = kernel_distances()
    return {title: rows for title, rows in found.items() if rows}


def kernel_distances() -> Table:
    """Whether another distance, KID, tells the same of the same features, network by network."""
    scenes = distribution.demo_scenes()
    statistics, kernel = distances.Statistics(scenes), distances.Kernel(scenes)
    rows: Table = []
    for steps, scheme in ((steps, scheme) for steps in STEPS for scheme in SCHEMES):
        kept = load(scheme, steps)
        seen = {name: kept[name].astype(float) for name in kept if name.endswith("|features")}
        sets = [seen.pop("identity|features"), *seen.values()] if len(seen) > 2 else []
        if sets:
            network = "full precision" if scheme == "none" else scheme
            fid = np.array([distances.Cloud(each, statistics).distance() for each in sets])
            kid = np.array([distances.KernelCloud(each, kernel).distance() for each in sets])
            gains = fid[0] - fid[1:], kid[0] - kid[1:]
            rows.append(
                {
                    "network": f"{network} at {steps} step{'s' * (steps > 1)}",
                    "searches": len(seen),
                    "correlation": f"{np.corrcoef(*gains)[0, 1]:.2f}",
                    "same sign": f"{np.mean(np.sign(gains[0]) == np.sign(gains[1])):.0%}",
                }
            )
    return rows


def ceilings(pair: Pair, scheme: str) -> Table:
    """What a search for an independent metric itself gains in it, beside a search for JAQ."""
    rows: Table = []
    for goal in CEILINGS:
        for method in CEILED:
            lost = pair.share_of(goal)
            row = {"metric": goal, "parametrisation": method}
            for label, cell in (
                (f"searched itself, {3 * TRIALS} trials", ceiling(scheme, method, goal)),
                (f"searched itself, {DEEP:,} trials", deep(scheme, method)),
                (f"searched by JAQ, {TRIALS} trials", Cell(scheme, 4, method, 0)),
            ):
                gain = pair.quantized.gain(cell, goal) if cell.goal in (goal, JAQ) else None
                row[label] = "" if gain is None else written(interval(goal, [gain]), lost)
            rows.append(row)
    return rows


SHOWN = {
    "ramp": "#8c8c8c",
    "per-step": "#c2410c",
    f"per-step{NEAR}": "#1d6fb8",
    "per-step+x0-average": "#7c3aed",
    f"per-step+x0-fade{NARROW}": "#15803d",
}
"""Methods and their colours."""


def plot() -> None:
    """docs/repair.png: each search's gain at w4a4 and four steps, beside full precision's own."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kept, full = load(*MEASURED), load("none", MEASURED[1])
    quantized, whole = Network(kept, kept), Network(full, kept)
    figure = Figure(figsize=(11, 5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, metric, title in zip(
        figure.subplots(1, 2),
        (JAQ, FRECHET),
        ("held-out JAQ, which was searched", "less Fréchet distance, which was not"),
        strict=True,
    ):
        for method, colour in SHOWN.items():
            plan = [Cell(*MEASURED, method, seed) for seed in SEEDS]
            pairs = [
                [interval(metric, [gain]).mean for gain in (other, mine)]
                for cell in plan
                if (mine := quantized.gain(cell, metric)) is not None
                and (other := whole.gain(cell, metric)) is not None
            ]
            across, up = np.transpose(pairs)
            axes.scatter(across, up, s=18, color=colour, alpha=0.45, linewidths=0)
            axes.scatter(across.mean(), up.mean(), s=90, color=colour, label=method, linewidths=0)
        axes.margins(0.12)
        ends, (low, high) = np.array(axes.get_xlim()), axes.get_ylim()
        axes.plot(ends, ends, color="#444444", linewidth=1)
        axes.fill_between(ends, ends, high, color="#15803d", alpha=0.06, linewidth=0)
        axes.text(0.03, 0.95, "repair: more than full precision", transform=axes.transAxes)
        axes.text(0.97, 0.03, "taste", transform=axes.transAxes, horizontalalignment="right")
        axes.set(xlim=ends, ylim=(low, high))
        axes.axhline(0, color="#cccccc", linewidth=1, zorder=0)
        axes.axvline(0, color="#cccccc", linewidth=1, zorder=0)
        axes.set_xlabel("gain of its own search on full precision")
        axes.set_title(title, loc="left", fontsize=11)
        axes.spines[["top", "right"]].set_visible(False)
        if metric == JAQ:
            axes.set_ylabel("gain on the quantized model")
            axes.legend(
                edgecolor="none",
                framealpha=1,
                fontsize=9,
                loc="lower right",
                bbox_to_anchor=(1, 0.06),
            )
    figure.savefig(PLOT)


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
        plot()


if __name__ == "__main__":
    main()
