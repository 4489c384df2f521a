"""What a finished study leaves in its folder to look at: a page, numbers, pictures. No torch."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsched import __version__
from qsched.libraries import installed_version
from qsched.pictures.sheets import Pictures
from qsched.report import figures, page
from qsched.service.status import Status
from qsched.service.stored_study import StoredStudy
from qsched.study.fingerprint import LIBRARIES

if TYPE_CHECKING:
    from qsched.proof.validation import Validation

GRID = 50 * 50
"""Points of the official search, a grid, for the comparison of costs."""


def write(folder: Path, study: StoredStudy, status: Status, validation: "Validation") -> None:
    """report.html, report.json, images.png and history.png.

    The numbers are stored first, as the study's outcome, from which `export` and `report` work
    later.
    """
    content = document(study, status, validation)
    study.storage.conclude(study.name, content | {"scheduler": validation.scheduler})
    pictures = Pictures.of(validation)
    write_page(folder, study, status, content, pictures)
    pictures.write(folder / "images.png")
    title = f"{study.name}: {validation.verdict.replace('_', ' ')}"
    slots = study.queue.slots(("finished", "stopped"))
    figures.course(slots, title).save(folder / "history.png")


def write_page(
    folder: Path,
    study: StoredStudy,
    status: Status,
    content: dict[str, Any],
    pictures: Pictures | str,
) -> list[Path]:
    """report.html, and report.json with its `content`; their paths.

    `pictures`: or a sentence that says why there are none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    numbers, shown = folder / "report.json", folder / "report.html"
    numbers.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    slots = study.queue.slots(("finished", "stopped"))
    text = page.render(content, study.definition, status, slots, pictures)
    shown.write_text(text, encoding="utf-8")
    return [shown, numbers]


def stored(study: StoredStudy, status: Status) -> dict[str, Any]:
    """The content of report.json by what the database holds: the outcome of the last validation,
    or where the study stands, with the verdict None."""
    outcome = study.storage.outcome(study.name)
    if outcome is not None:
        return {key: value for key, value in outcome.items() if key != "scheduler"}
    left = status.budget - status.done - status.parked
    todo = f"{left} trials are to be done" if left else f"qsched validate {study.name} proves it"
    return {
        "study": status.study,
        "verdict": None,
        "sentence": "Nothing is proven yet: what is shown is the search's own, on the prompts it "
        f"optimised; {todo}.",
        "budget": status.budget,
        "trials": status.done,
        "stopped_early": status.stopped,
        "images_generated": status.images,
        "images_of_the_official_grid": grid_images(study),
        "seconds": round(status.seconds, 2),
        "identity": status.identity.to_dict() if status.identity else None,
        "best": status.best.to_dict() if status.best else None,
        "fingerprint": status.fingerprint,
    }


def document(study: StoredStudy, status: Status, validation: "Validation") -> dict[str, Any]:
    """The content of report.json."""
    return {
        "study": status.study,
        "verdict": validation.verdict,
        "sentence": validation.sentence,
        "budget": status.budget,
        "trials": status.done,
        "stopped_early": status.stopped,
        "images_generated": status.images + validation.images,
        "images_of_the_official_grid": grid_images(study),
        "seconds": round(status.seconds, 2),
        "identity": status.identity.to_dict() if status.identity else None,
        "best": validation.candidate.to_dict(),
        "coefficients": validation.published.to_dict(),
        "held_out": {name: metric.to_dict() for name, metric in validation.metrics.items()},
        "repair_against": validation.repair_against,
        "candidates": [judged.to_dict() for judged in validation.candidates],
        "controls": [control.to_dict() for control in validation.controls],
        "guards": [guard.to_dict() for guard in validation.guards],
        "distributions": {
            name: distance.to_dict() for name, distance in validation.distributions.items()
        },
        "network": validation.network,
        "fingerprint": status.fingerprint,
        "versions": {
            "qsched": __version__,
            **{name: installed_version(name) for name in LIBRARIES},
        },
    }


def grid_images(study: StoredStudy) -> int:
    """The images that the official grid takes on the study's calibration prompts."""
    return GRID * len(study.definition.calibration)


def provenance(outcome: dict[str, Any]) -> dict[str, Any]:
    """What coefficients.json says of where its numbers come from."""
    return {
        key: outcome[key]
        for key in ("study", "verdict", "sentence", "trials", "best", "network", "versions")
    }
