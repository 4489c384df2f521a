"""What a study leaves in its folder to look at: a page, its numbers, pictures. No torch."""

import json
from pathlib import Path

from qsched.pictures.sheets import Pictures
from qsched.proof.outcome import Proof
from qsched.report import figures, files, page
from qsched.service.status import Status
from qsched.service.stored_study import StoredStudy


def write(
    folder: Path, study: StoredStudy, status: Status, proof: Proof, pictures: Pictures
) -> None:
    """The page and its numbers, the pictures as a grid, and the study's course."""
    write_page(folder, study, status, proof, pictures)
    slots = study.queue.slots(("finished", "stopped"))
    with files.written():
        pictures.write(folder / files.IMAGES)
        figures.course(slots, f"{study.name}: {proof.badge.word}").save(folder / files.COURSE)


def write_page(
    folder: Path, study: StoredStudy, status: Status, proof: Proof, pictures: Pictures | str
) -> list[Path]:
    """The page, and its numbers as JSON; their paths.

    `pictures`: or a sentence that says why there are none.
    """
    numbers, shown = folder / files.NUMBERS, folder / files.PAGE
    text = json.dumps(proof.report(), indent=2, allow_nan=False)
    slots = study.queue.slots(("finished", "stopped"))
    rendered = page.render(proof, study.definition, status, slots, pictures)
    with files.written():
        folder.mkdir(parents=True, exist_ok=True)
        numbers.write_text(text + "\n", encoding="utf-8")
        shown.write_text(rendered, encoding="utf-8")
    return [shown, numbers]
