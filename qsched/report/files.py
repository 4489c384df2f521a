"""The names of what a study leaves: in its folder, and among its artifacts."""

from collections.abc import Iterator
from contextlib import contextmanager

from qsched.errors import StudyError

PAGE = "report.html"
NUMBERS = "report.json"
IMAGES = "images.png"
COURSE = "history.png"

PREVIEW = "preview.png"
PREVIEW_PAGE = "preview.html"

COEFFICIENTS = "coefficients.json"
SCHEDULER = "scheduler"
CARD = "README.md"

HELD_OUT = "held-out.png"
"""The study's artifact with the pictures of its last validation."""


@contextmanager
def written() -> Iterator[None]:
    """What can't be written while the context lasts raises StudyError with its path."""
    try:
        yield
    except OSError as error:
        raise StudyError(
            f"{error.filename}: cannot be written: {error.strerror}; give another --out"
        ) from error
