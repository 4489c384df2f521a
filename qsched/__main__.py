"""`python -m qsched` is `qsched`: it does not import from the folder that it is called in."""

import sys
from pathlib import Path

if __name__ == "__main__":
    here = Path(__file__).parents[1]
    if not sys.flags.safe_path and Path(sys.path[0]).resolve() != here:
        del sys.path[0]

    from qsched.cli.main import main

    main()
