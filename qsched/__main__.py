"""`python -m qsched` is `qsched`."""

from qsched.cli.main import main

if __name__ == "__main__":
    main()
