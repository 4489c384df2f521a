"""What a study leaves in its folder: a page, its numbers, pictures, an export. No torch.

A folder never holds files of two runs of a study: what an earlier one left there is written anew
with what is asked for, all at once.
"""

import json
from collections.abc import Callable
from enum import Flag, auto
from pathlib import Path
from typing import Any, NamedTuple

from qsched.errors import DocumentError
from qsched.files import outputs
from qsched.files.documents import json_object
from qsched.pictures.sheets import Pictures
from qsched.proof import outcome
from qsched.proof.outcome import Proof
from qsched.report import artifacts, export, figures, files, page
from qsched.report.card import model_card
from qsched.service.status import Status
from qsched.service.stored_study import StoredStudy

Writes = Callable[[Path], object]
"""Writes a file to a path; nothing, for one that there is to be no more."""


class Part(Flag):
    """What is written together; `PICTURES`: the held-out ones as a grid, and the study's course."""

    PAGE = auto()
    PICTURES = auto()
    EXPORT = auto()


class Written(NamedTuple):
    """What was written: its paths by part, and the outcome that they are of."""

    paths: dict[Part, list[Path]]
    proof: Proof


def write(
    folder: Path,
    study: StoredStudy,
    parts: Part,
    *,
    pictures: Pictures | None = None,
    force: bool = False,
) -> Written:
    """Writes parts of what the database and the artifacts hold of a study.

    `pictures`: where they are at hand. `force`: the best candidate leaves without being proven.
    Raises StudyError for an export before the first validation, and OutputError.
    """
    status = study.status()
    proof = outcome.outcome_of(study, status)
    outputs.settle(folder)
    parts |= _outdated(folder, proof)
    found: Pictures | str = ""
    if parts & (Part.PAGE | Part.PICTURES):
        found = pictures or artifacts.kept(study, proof)
    contents = {
        part: _contents(part, study, status, proof, found, force=force)
        for part in Part
        if part in parts
    }
    with outputs.whole(folder) as unfinished:
        for name, writes in ((n, w) for each in contents.values() for n, w in each.items()):
            path = unfinished / name
            path.parent.mkdir(exist_ok=True)
            path.touch()
            writes(path)
    paths = {part: [folder / name for name in each] for part, each in contents.items()}
    return Written(paths, proof)


def _contents(
    part: Part,
    study: StoredStudy,
    status: Status,
    proof: Proof,
    pictures: Pictures | str,
    *,
    force: bool,
) -> dict[str, Writes]:
    """{name of a file: what writes it}; all that can fail but the disk has been done."""
    slots = study.queue.slots(("finished", "stopped"))
    if part is Part.EXPORT:
        taken = proof.taken(force=force)
        stock = export.stock_of(export.scheduler_config(proof.scheduler))
        texts = export.contents(
            taken.coefficients,
            proof.scheduler,
            export.provenance(proof, forced=taken.forced),
            card=model_card(study.definition, proof, taken, stock),
        )
    elif part is Part.PAGE:
        rendered = page.render(proof, study.definition, status, slots, pictures)
        numbers = json.dumps(proof.report(), indent=2, allow_nan=False) + "\n"
        texts = {files.PAGE: rendered, files.NUMBERS: numbers}
    else:
        drawn = (
            figures.course(slots, f"{study.name}: {proof.badge.word}") if proof.verdict else None
        )
        return {
            files.IMAGES: pictures.write if isinstance(pictures, Pictures) else _nothing,
            files.COURSE: drawn.save if drawn else _nothing,
        }
    return {name: _text(content) for name, content in texts.items()}


def _outdated(folder: Path, proof: Proof) -> Part:
    """What a folder holds of another run of the study."""
    found = Part(0)
    if _earlier(folder / files.NUMBERS, proof, lambda document: document):
        found |= Part.PAGE
        if any((folder / name).exists() for name in (files.IMAGES, files.COURSE)):
            found |= Part.PICTURES
    exported = _earlier(folder / files.COEFFICIENTS, proof, lambda each: each["provenance"])
    return found | Part.EXPORT if exported and proof.verdict else found


def _earlier(path: Path, proof: Proof, of: Callable[[dict[str, Any]], Any]) -> bool:
    """Whether a file is there that is the study's and not of this run."""
    try:
        stated = of(json_object(path))
    except (DocumentError, KeyError):
        return False
    ours = isinstance(stated, dict) and stated.get("study") == proof.study
    return ours and stated.get("run") != proof.run


def _text(content: str) -> Writes:
    return lambda path: path.write_text(content, encoding="utf-8")


def _nothing(path: Path) -> None:
    """There is to be no such file."""
