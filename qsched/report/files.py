"""The names of what a study leaves: in its folder, and among its artifacts."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
def written(option: str = "--out") -> Iterator[None]:
    """What can't be written while the context lasts raises StudyError with its path, and with the
    `option` that names another place."""
    try:
        yield
    except OSError as error:
        raise StudyError(
            f"{error.filename}: cannot be written: {error.strerror}; give another {option}"
        ) from error


def ready(folder: Path, option: str = "--out") -> Path:
    """The absolute path of a folder that can be written to, made where it is missing. Raises
    StudyError now, and not after the work whose results it is for."""
    folder = folder.resolve()
    with written(option):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError as error:
            error.filename = folder
            raise
