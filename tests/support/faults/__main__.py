"""python -m tests.support.faults"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tests.support.faults import __doc__ as about
from tests.support.faults.ordeal import run


def main() -> None:
    """Runs, prints the result as JSON, and fails if something is wrong."""
    parser = argparse.ArgumentParser(description=(about or "").partition("\n")[0])
    parser.add_argument(
        "--database", choices=["sqlite", "postgresql", "pgbouncer"], default="postgresql"
    )
    parser.add_argument("--faults", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stop-below", type=float, default=0.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="qsched-faults-") as folder:
        Path(folder).chmod(0o755)  # the server runs as another user where this one is root
        result = run(
            options.database, options.faults, options.seed, Path(folder),
            stop_below=options.stop_below,
        )  # fmt: skip
    print(json.dumps(result, indent=2))
    sys.exit(bool(result["wrong"]))


if __name__ == "__main__":
    main()
