"""What a search finds is worth on prompts that it never saw: the sampler `prompts` and 0.1's auto.

    python -m bench.search.fresh run [--processes 2] [--only "w4a4, 4 steps, per-step"]
    python -m bench.search.fresh [--json]

Real runs of the demo model, none replayed; `fresh_searches` says how. `run` takes hours and is
resumable: what is there stays. data/fresh.json holds a line a search: its best vector at each
budget of images, JAQ over the identity's on its own pool (*searched*), what the model of `prompts`
expects of it (*posterior*), JAQ over the identity's on the 224 fresh prompts and its standard error
(*fresh*), and the seconds that a proposal took.

Intervals are Student's t over the search's seeds, 95 %, of differences paired by seed. The fresh
prompts are the same for all: what another draw of them would change is not in these intervals.

The rows that are kept were made by a script of the same searches, one seed a process, in batches of
4 (of 16 for auto), on two busy cores, so their seconds are upper bounds. In the rows of `prompts,
first variant` one fit of the model, at 44 trials, knew the seven last trials of the budget of 400
when the search went on to 800; here it does not.
"""

import argparse
import json
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from scipy.stats import t as student

from bench.printing import Table, show
from bench.search.fresh_searches import METHODS, Row, Setting, run
from bench.search.recording import DATA

RESULTS = DATA / "fresh.json"
TARGET = Setting("w4a4", 4, "per-step")
SETTINGS = {
    TARGET: 10,
    Setting("w4a4", 4, "ramp"): 5,
    Setting("w4a8", 4, "per-step"): 5,
    Setting("w4a4", 2, "per-step"): 5,
    Setting("w4a4", 1, "constant"): 5,
}
"""{what is searched: with so many seeds}."""
REFERENCE, AT = "auto of 0.1", 800
"""What the others are compared with, and at how many images."""
TOGETHER = 4
"""Seeds that go side by side."""


@dataclass(frozen=True)
class Job:
    """Searches that one process makes."""

    setting: Setting
    method: str
    seeds: tuple[int, ...]

    def key(self, seed: int) -> str:
        """Of a search in the results."""
        return f"{self.setting.name}, {self.method}, {seed}"


def jobs(done: dict[str, Row]) -> list[Job]:
    """What is not there yet. The first variant was run on the target only."""
    found = []
    for (setting, seeds), method in product(SETTINGS.items(), METHODS):
        if method == "prompts, first variant" and setting != TARGET:
            continue
        whole = Job(setting, method, tuple(range(seeds)))
        left = [seed for seed in whole.seeds if whole.key(seed) not in done]
        found += [
            Job(setting, method, tuple(left[at : at + TOGETHER]))
            for at in range(0, len(left), TOGETHER)
        ]
    return found


def made(job: Job) -> dict[str, Row]:
    """The rows of a job."""
    about = {
        "scheme": job.setting.scheme,
        "steps": job.setting.steps,
        "space": job.setting.space,
        "method": job.method,
    }
    return {
        job.key(seed): {"spec": {**about, "seed": seed}, **row}
        for seed, row in run(job.setting, job.method, job.seeds)
    }


def stored() -> dict[str, Row]:
    """{key: row} of all that was run."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def store(rows: dict[str, Row]) -> None:
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(rows[key])}" for key in sorted(rows))
    part = RESULTS.with_suffix(".part")
    part.write_text(f"{{\n{lines}\n}}\n")
    part.replace(RESULTS)


def run_all(left: Sequence[Job], processes: int) -> None:
    """Runs jobs, each in a process of its own, and keeps each as it ends."""
    print(f"{len(left)} jobs to run", flush=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, max_tasks_per_child=1) as workers:
        for each in as_completed([workers.submit(made, job) for job in left]):
            rows = each.result()
            store(stored() | rows)
            print("\n".join(rows), flush=True)


@dataclass(frozen=True)
class Group:
    """The searches of a method in a setting, read off at a budget: {seed: point}."""

    method: str
    budget: int
    points: dict[int, Row]
    seconds: list[float]

    def values(self, name: str) -> list[float]:
        """One of what the points say, where they say it."""
        return [point[name] for point in self.points.values() if name in point]


def groups(rows: dict[str, Row], setting: Setting) -> list[Group]:
    """All that ran in a setting, the reference first."""
    about = (setting.scheme, setting.steps, setting.space)
    own = [
        row
        for row in rows.values()
        if tuple(row["spec"][key] for key in ("scheme", "steps", "space")) == about
    ]
    found = []
    for name, method in METHODS.items():
        for budget in method.budgets:
            these = [row for row in own if row["spec"]["method"] == name]
            points = {row["spec"]["seed"]: row["points"][str(budget)] for row in these}
            if points:
                seconds = [row["seconds a proposal"] for row in these]
                found.append(Group(name, budget, points, seconds))
    return found


def spread(values: Sequence[float]) -> str:
    """Median and quartiles; of two or less each."""
    if len(values) < 3:
        return ", ".join(f"{value:.2f}" for value in values)
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


def summaries(found: Sequence[Group]) -> Table:
    """A row for each method and budget."""
    return [
        {
            "method": group.method,
            "images": group.budget,
            "seeds": len(group.points),
            "fresh": spread(group.values("fresh")),
            "worst seed": f"{min(group.values('fresh')):.2f}",
            "searched": f"{np.median(group.values('searched')):.2f}",
            "posterior": _median(group.values("posterior")),
            "searched - fresh": _difference(group.values("searched"), group.values("fresh")),
            "s a proposal": f"{np.median(group.seconds):.2f}",
        }
        for group in found
    ]


def comparisons(found: Sequence[Group]) -> Table:
    """Fresh JAQ less the reference's at 800 images, paired by seed."""
    reference = [group for group in found if (group.method, group.budget) == (REFERENCE, AT)]
    rows = []
    for group in found:
        for other in reference:
            both = sorted(group.points.keys() & other.points.keys())
            if group is other or len(both) < 2:
                continue
            own = [group.points[seed]["fresh"] for seed in both]
            others = [other.points[seed]["fresh"] for seed in both]
            won = sum(a > b for a, b in zip(own, others, strict=True))
            rows.append(
                {
                    "method": group.method,
                    "images": group.budget,
                    f"fresh, less {REFERENCE} at {AT}": _difference(own, others),
                    "better": f"{won} of {len(both)}",
                }
            )
    return rows


def _median(values: Sequence[float]) -> str:
    return f"{np.median(values):.2f}" if values else "-"


def _difference(one: Sequence[float], other: Sequence[float]) -> str:
    """The mean paired difference and its interval by Student's t."""
    apart = np.array(one) - np.array(other)
    if len(apart) < 2:
        return f"{apart.mean():+.2f}"
    half = student.ppf(0.975, len(apart) - 1) * apart.std(ddof=1) / np.sqrt(len(apart))
    return f"{apart.mean():+.2f} [{apart.mean() - half:+.2f}, {apart.mean() + half:+.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", nargs="?", default="table", choices=["run", "table"])
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", help="one setting, by the title of its table")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    chosen = [each for each in SETTINGS if options.only in (None, each.name)]
    if not chosen:
        parser.error(f"--only: expected one of {', '.join(repr(s.name) for s in SETTINGS)}")
    done = stored()
    if options.action == "run":
        run_all([job for job in jobs(done) if job.setting in chosen], options.processes)
        return
    tables: dict[str, list[dict[str, Any]]] = {}
    for setting in chosen:
        found = groups(done, setting)
        tables[setting.name] = summaries(found)
        tables[f"{setting.name}, paired"] = comparisons(found)
    show(tables, as_json=options.json)


if __name__ == "__main__":
    main()
