"""How few images a search needs: every sampler on the demo's recorded landscape, and for real.

    python -m bench.search replay [--processes 2]    # thousands of searches, resumable
    python -m bench.search confirm [--processes 2]   # the leaders with the model itself
    python -m bench.search [table] [--json]          # what was run, and search.png

`recording` says what is recorded, `searches` which searches are run, `replay` how. Each JAQ is
that of the trial which the search reports as best, on all 16 prompts; *trend* is what of it is
not roughness, that is not gone at the next digit of a coefficient.
"""

import argparse
import os
import statistics
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from bench.printing import Table, show
from bench.search.recording import PROMPTS, ROOT, SIDE
from bench.search.replay import Search
from bench.search.searches import (
    BATCH,
    SPACES,
    STOP,
    WORKERS,
    Setting,
    as_search,
    confirmations,
    confirmed,
    recorded,
    replayed,
    run,
    settings,
    stored,
    variants,
)
from qsched.search.catalog import SAMPLERS
from qsched.statistics import paired_interval

PLOT = ROOT / "docs" / "images" / "search.png"
BUDGETS = (20, 25, 50, 100, 200)
SHOWN = {
    "gp": "#c2410c",
    "tpe": "#2563a8",
    "cmaes": "#15803d",
    "qmc": "#a16207",
    "random": "#888888",
}


def quartiles(values: Sequence[float], digits: int = 3) -> str:
    """Median and quartiles, "-" for a search that never came there."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75], method="nearest")
    shown = [f"{v:.{digits}f}" if np.isfinite(v) else "-" for v in (middle, low, high)]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"


@cache
def grid_pick() -> tuple[float, float]:
    """The official grid's best JAQ, the target in every space, and its trend."""
    found, values = recorded("ramp")
    best = int(values.mean(axis=1).argmax())
    smooth = SPACES["ramp"].trend(found.vectors, values)(found.vectors[best])
    return float(values[best].mean()), float(smooth.mean())


def groups(
    done: dict[str, Any], plan: Sequence[Setting], prefix: str = ""
) -> dict[tuple[str, str, int, float, int], list[Search]]:
    """{(space, sampler, workers, stop, batch): searches by seed} of what ran."""
    found: dict[tuple[str, str, int, float, int], list[Search]] = {}
    for each in plan:
        if prefix + each.key in done:
            name = (each.space, each.sampler, each.workers, each.stop, each.batch)
            found.setdefault(name, []).append(as_search(done[prefix + each.key]))
    return found


def results(done: dict[str, Any], plan: Sequence[Setting], prefix: str = "") -> Table:
    """A row for each setting: JAQ by budget, and the trials' worth of images to the target, that
    is to the JAQ of the official grid's best, and to a pick whose trend stays as good as its."""
    rows = []
    for (space, sampler, workers, stop, batch), searches in groups(done, plan, prefix).items():
        goal, smooth = grid_pick()
        full = min(search.images for search in searches) // PROMPTS
        row: dict[str, Any] = {
            "space": space,
            "sampler": sampler,
            "workers": workers,
            "stop": stop,
            "batch": batch,
            "seeds": len(searches),
        }
        for budget in BUDGETS:
            known = [search.best(images=budget * PROMPTS) for search in searches]
            if budget == full or (budget < full and sampler != "grid"):
                row[f"JAQ at {budget}"] = quartiles([best.value for best in known])
                row[f"trend at {budget}"] = quartiles([best.trend for best in known])
        reached = [search.images_to(goal) / PROMPTS for search in searches]
        row["trials to target"] = quartiles(reached, 0)
        row["reached"] = f"{sum(np.isfinite(reached))}/{len(reached)}"
        row["trials to its trend"] = quartiles(
            [search.images_to_trend(smooth) / PROMPTS for search in searches], 0
        )
        rows.append(row)
    return rows


def stopping(done: dict[str, Any], plan: Sequence[Setting], trials: int = 50) -> Table:
    """What early stopping saves and loses, paired by seed, one worker."""
    found = groups(done, plan)
    rows = []
    for (space, sampler, workers, stop, batch), with_it in found.items():
        without = found.get((space, sampler, workers, 0.0, batch), [])
        if not stop or workers != 1 or len(without) != len(with_it):
            continue
        seeds = [str(seed) for seed in range(len(with_it))]
        saved = [
            1 - search.images_at.get(trials, search.images) / (trials * PROMPTS)
            for search in with_it
        ]
        row: dict[str, Any] = {
            "space": space,
            "sampler": sampler,
            "images saved": f"{statistics.mean(saved):.0%}",
        }
        pairs = {
            f"JAQ, same {trials} trials": [
                (a.best(ended=trials).value, b.best(ended=trials).value)
                for a, b in zip(with_it, without, strict=True)
            ],
            f"trend, same {trials} trials": [
                (a.best(ended=trials).trend, b.best(ended=trials).trend)
                for a, b in zip(with_it, without, strict=True)
            ],
            f"JAQ, images of {trials}": [
                (a.best(images=trials * PROMPTS).value, b.best(images=trials * PROMPTS).value)
                for a, b in zip(with_it, without, strict=True)
            ],
        }
        for name, values in pairs.items():
            with_stop, without_stop = np.array(values).T
            change = paired_interval(with_stop, without_stop, seeds)
            row[name] = f"{change.mean:+.3f} [{change.low:+.3f}, {change.high:+.3f}]"
        rows.append(row)
    return rows


def plot(done: dict[str, Any]) -> None:
    """Medians of regret against images, as measured and without roughness."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = groups(done, list(settings()))
    found_ramp, values = recorded("ramp")
    means = values.mean(axis=1)
    smooth = SPACES["ramp"].trend(found_ramp.vectors, values)(found_ramp.vectors)
    tops = means.max(), smooth.mean(axis=1).max()
    figure = Figure(figsize=(11, 4.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    images = np.unique(np.geomspace(16, 200 * PROMPTS, 200).astype(int))
    for sampler, colour in SHOWN.items():
        for stop, line in ((0.0, "--"), (STOP, "-")):
            searches = found.get(("ramp", sampler, 1, stop, BATCH))
            if searches is None:
                continue
            upto = images[images <= min(search.images for search in searches)]
            bests = [[search.best(images=made) for search in searches] for made in upto]
            for axes, top, name in ((left, tops[0], "value"), (right, tops[1], "trend")):
                regret = [top - np.median([getattr(b, name) for b in row]) for row in bests]
                label = sampler if stop else None
                axes.plot(
                    upto, regret, line, color=colour, linewidth=1.8 if stop else 1, label=label
                )
    pick = grid_pick()[1]
    right.axhline(tops[1] - pick, color="#444444", linewidth=1, linestyle=":")
    right.annotate("the official grid's pick", (17, tops[1] - pick), va="top", fontsize=8)
    left.axhline(0, color="#444444", linewidth=1, linestyle=":")
    left.annotate("the official grid's best, 40,000 images", (17, 0), va="top", fontsize=8)
    for axes, title in (
        (left, "JAQ as measured: below the grid's best of 2,500"),
        (right, "JAQ without roughness: below the top of the trend"),
    ):
        for share in (0.01, 0.02):
            axes.axvline(share * SIDE**2 * PROMPTS, color="#dddddd", linewidth=1, zorder=0)
        axes.set_ylim(bottom=-0.05)
        axes.set_xscale("log")
        axes.set_xticks([16, 50, 100, 200, 400, 800, 1600, 3200], minor=False)
        axes.set_xticks([], minor=True)
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.set_xlabel("images generated (lines: 1 % and 2 % of the grid's)")
        axes.set_title(title, loc="left", fontsize=11)
        axes.spines[["top", "right"]].set_visible(False)
    left.set_ylabel("median of 20 seeds")
    right.legend(frameon=False, title="dashed: no early stopping", title_fontsize=8, fontsize=8)
    figure.savefig(PLOT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "action", nargs="?", default="table", choices=["replay", "confirm", "table"]
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--space", choices=SPACES, action="append", help="only this one")
    parser.add_argument("--sampler", choices=SAMPLERS, action="append", help="only this one")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    spaces, samplers = options.space or list(SPACES), options.sampler or list(SAMPLERS)

    def chosen(plan: Sequence[Setting]) -> list[Setting]:
        return [each for each in plan if each.space in spaces and each.sampler in samplers]

    done = stored()
    replays, others = chosen(list(settings())), chosen(list(variants()))
    real = chosen(list(confirmations()))
    if options.action == "replay":
        left = [each for each in replays + others if each.key not in done]
        run(replayed, left, options.processes)
        return
    if options.action == "confirm":
        left = [each for each in real if f"real/{each.key}" not in done]
        run(confirmed, left, options.processes)
        return
    tables = {
        f"{space}, {workers} at a time": results(
            done, [each for each in replays if (each.space, each.workers) == (space, workers)]
        )
        for space in spaces
        for workers in WORKERS
    }
    tables["early stopping"] = stopping(done, replays)
    tables["early stopping otherwise"] = results(done, others)
    tables["real runs"] = results(done, real, "real/")
    plot(done)
    show(tables, as_json=options.json)


if __name__ == "__main__":
    main()
