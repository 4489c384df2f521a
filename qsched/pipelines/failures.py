"""What libraries raise, in one line: the class, the argument, the setting to change."""

import re
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch

from qsched.errors import QschedError, in_one_line


@contextmanager
def explained(
    error: Callable[[str], QschedError], doing: str, remedy: str, settings: Iterable[str] = ()
) -> Iterator[None]:
    """Raises `error` with one line for what is raised within: "`doing`: what was said; `remedy`".

    `settings`: keys of the study file; the one whose name is said becomes the remedy. What is in
    words already passes, and so does a device that is too small, which has remedies of its own.
    """
    try:
        yield
    except (QschedError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as failure:
        said, place = _said(failure), _place(failure)
        named = [key for key in settings if _names(key.rpartition(".")[2], said)]
        named = [key for key in named if not any(_within(key, other) for other in named)]
        if named:
            remedy = f"change {' or '.join(named)}"
            if any(key.startswith("sampling.call.") for key in named):
                remedy += "; sampling.none passes None"
        elif place.endswith("Scheduler"):
            remedy = "set model.scheduler to one that this pipeline can use"
        where = f" (in {place})" if place and place not in doing else ""
        raise error(f"{doing}: {said}{where}; {remedy}") from failure


def _said(failure: Exception) -> str:
    """An exception in one line; what follows a first line that only announces it belongs to it."""
    said = in_one_line(failure)
    lines = [line.strip() for line in str(failure).strip().splitlines()]
    return f"{said} {lines[1][:300]}" if said.endswith(":") and len(lines) > 1 else said


def _names(argument: str, said: str) -> bool:
    """Whether a message names an argument, as code or in words."""
    words = argument.replace("_", "[_ ]")
    return re.search(rf"\b{words}\b", said, re.IGNORECASE) is not None


def _within(key: str, other: str) -> bool:
    """Whether a key is a part of another's name, which was what a message meant."""
    return key != other and key.rpartition(".")[2] in other.rpartition(".")[2]


def _place(failure: BaseException) -> str:
    """The class of diffusers in whose method it was raised, as far as the frames tell."""
    for frame, _ in reversed(list(traceback.walk_tb(failure.__traceback__))):
        owner = frame.f_locals.get("self")
        if owner is not None and type(owner).__module__.startswith(
            ("diffusers", "qsched.schedule")
        ):
            name = type(owner).__name__
            if name.endswith(("Pipeline", "Scheduler")):
                return name.removeprefix("Preconditioned")
    return ""
