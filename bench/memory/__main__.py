"""Whether a worker's memory stays flat: resident size over the trials of one study, in one process.

    python -m bench.memory [--trials 200] [--json]

The study is studies/demo.toml with a larger budget, worked on by a real worker with a real
database, scorers and contact sheets. Exits with 1 if the resident size grows by more than a tenth
of what the images of the trials would take if they were held.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from qsched import api
from qsched.service.status import Status
from qsched.service.storage import Storage
from qsched.study.study import load_study

STUDY = Path(__file__).parents[2] / "studies" / "demo.toml"
WARM = 0.2
"""The first so many of the trials fill caches and allocators; growth is counted after them."""


def resident() -> int:
    """The process's resident size in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Watch(api.Observer):
    """Notes the resident size as trials finish."""

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}

    def working(self, status: Status) -> None:
        self.sizes[status.done] = resident()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    definition = load_study(STUDY).changed(trials=options.trials)
    sampling = definition.tables.sampling
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        study = api.create(Storage(f"sqlite:///{folder}/qsched.db"), definition)
        api.work(study, observer=watch)
        status = study.status()
    assert status.done == options.trials, status
    pixels = 3 * (sampling.height or 0) * (sampling.width or 0)
    held = options.trials * len(definition.calibration) * pixels * 4  # as float32
    warm = next(done for done in sorted(watch.sizes) if done >= WARM * options.trials)
    growth = watch.sizes[options.trials] - watch.sizes[warm]
    flat = growth < held / 10
    marks = [*sorted(watch.sizes)[:: max(1, len(watch.sizes) // 10)], options.trials]
    rows = {done: round(watch.sizes[done] / 1e6, 1) for done in dict.fromkeys(marks)}
    result = {
        "resident_mb": rows,
        "growth_mb": round(growth / 1e6, 1),
        "after_trial": warm,
        "images_would_take_mb": round(held / 1e6, 1),
        "flat": flat,
    }
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        table = Table(title=f"resident size over {options.trials} trials")
        table.add_column("trials")
        table.add_column("MB", justify="right")
        for done, size in rows.items():
            table.add_row(str(done), f"{size:.1f}")
        Console().print(table)
        print(
            f"{result['growth_mb']:+.1f} MB after trial {warm}; "
            f"the images of all trials are {result['images_would_take_mb']:.1f} MB"
        )
    sys.exit(not flat)


if __name__ == "__main__":
    main()
