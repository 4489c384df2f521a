"""How much of the lost quality a search wins back, and how much of its gain is taste.

    python -m bench.repair run [--processes 2] [--only w4a4-4]    # hours; resumable
    python -m bench.repair                                        # tables and repair.png

The demo model at 1, 2 and 4 steps and three widths. A search sees JAQ on 32 calibration prompts (a
draw of its own for each seed), 32 trials, `auto`; its best trial is measured on 128 held-out
prompts that it never saw, with metrics that it never saw. *Repair* is its gain on the quantized
model minus the gain of the same method, searched anew, on the full-precision one. A ceiling is the
same search with an independent metric itself as its objective, and three times the trials. Values
and features are kept by image in data/, so that every interval can be made again.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import numpy as np

from bench.printing import Table, show
from bench.repair.searches import (
    CALIBRATION,
    CEILED,
    CEILINGS,
    DEEP,
    LONG,
    MEASURED,
    NARROW,
    NEAR,
    PATIENT,
    ROOT,
    SCHEMES,
    SEEDS,
    SIZES,
    STEPS,
    TRIALS,
    UNSEARCHED,
    UNSEEN,
    Cell,
    ceiling,
    demo,
    load,
    methods,
    patient,
    sized,
    work,
)
from qsched.evidence import distances
from qsched.evidence import real_images as distribution
from qsched.evidence.table import FRECHET
from qsched.proof.outcome import JAQ
from qsched.statistics import Interval, Values, paired_interval

PLOT = ROOT / "docs" / "images" / "repair.png"
SLIGHT = ("w8a8",)
"""Schemes that cost so little that a gain is no share of it."""


def interval(metric: str, differences: Sequence[Values]) -> Interval:
    """Of the mean over seeds; over the held-out prompts, which are all different."""
    mean = np.mean(differences, axis=0)
    if metric == FRECHET:
        return distances.interval(mean)
    return paired_interval(mean, np.zeros(len(mean)), [str(i) for i in range(len(mean))])


def written(found: Interval, lost: float | None = None) -> str:
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
def scenes() -> tuple[distances.Statistics, distances.Kernel]:
    """The real images, for either distance."""
    features = distribution.demo_scenes()
    return distances.Statistics(features), distances.Kernel(features)


@cache
def frechet(features: bytes) -> Values:
    statistics, _ = scenes()
    seen = np.frombuffer(features).reshape(-1, len(statistics.mean)).copy()
    captions = [str(index) for index in range(len(seen))]
    return distances.distances(distances.Cloud(seen, statistics), captions, resamples=400)


@dataclass(frozen=True)
class Pair:
    """The quantized network and full precision."""

    quantized: Network
    whole: Network
    slight: bool = False

    def lost(self, metric: str) -> Interval:
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
    for steps, scheme in product(STEPS, SCHEMES[1:]):
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
            label = f"{method}, {LONG} trials"
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
    statistics, kernel = scenes()
    rows: Table = []
    for steps, scheme in product(STEPS, SCHEMES):
        kept = load(scheme, steps)
        seen = {name: kept[name].astype(float) for name in kept if name.endswith("|features")}
        if len(seen) < 3:
            continue
        sets = [seen.pop("identity|features"), *seen.values()]
        fid = np.array([distances.Cloud(each, statistics).distance() for each in sets])
        kid = np.array([distances.KernelCloud(each, kernel).distance() for each in sets])
        gains = fid[0] - fid[1:], kid[0] - kid[1:]
        network = "full precision" if scheme == "none" else scheme
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
                (f"searched itself, {LONG} trials", ceiling(scheme, method, goal)),
                (f"searched itself, {DEEP:,} trials", ceiling(scheme, method, goal, DEEP)),
                (f"searched by JAQ, {TRIALS} trials", Cell(scheme, 4, method, 0)),
            ):
                gain = pair.quantized.gain(cell, goal)
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
    """Each search's gain at w4a4 and four steps, beside full precision's own."""
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


def run(processes: int, only: Sequence[str]) -> None:
    """Every network in a process of its own, `processes` at a time."""
    jobs = [f"{scheme}-{steps}" for steps in STEPS for scheme in SCHEMES]
    queue = [job for job in jobs if not only or job in only]
    running: list[subprocess.Popen[bytes]] = []
    while queue or running:
        while queue and len(running) < processes:
            command = [sys.executable, "-m", "bench.repair", "network", queue.pop(0)]
            running.append(subprocess.Popen(command, cwd=ROOT))
        time.sleep(1)
        running = [process for process in running if process.poll() is None]


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
