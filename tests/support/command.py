"""The command line in this process, as a person calls it."""

from collections.abc import Callable

Qsched = Callable[..., tuple[int, str, str]]
"""`qsched(*arguments)`: (exit code, standard output, standard error)."""


def one_line(err: str) -> str:
    """The error's text: one line, and never a traceback."""
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    return lines[0]
