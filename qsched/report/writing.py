"""What a finished study leaves in its folder to look at: a page, numbers, pictures. No torch."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qsched import __version__
from qsched.pictures.sheets import Pictures
from qsched.report import page
from qsched.service.schema import Slot
from qsched.service.status import Status
from qsched.service.stored_study import StoredStudy
from qsched.study.fingerprint import versions

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
    write_history(folder / "history.png", study.queue.slots(("finished", "stopped")), title)


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
            **{
                key.removeprefix("versions."): found
                for key, found in versions(study.definition.tables).items()
            },
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


def write_history(path: Path, slots: Sequence[Slot], title: str) -> None:
    """The study's course: each trial's value, the best so far, and the identity (trial 0).

    Trials that were stopped early are shown hollow, at their estimates.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    whole = {s.number: s.value for s in slots if s.state == "finished" and s.value is not None}
    early = {s.number: s.value for s in slots if s.state == "stopped" and s.value is not None}
    trials, values = np.array(list(whole)), np.array(list(whole.values()))
    axes.axhline(whole[0], color="#888888", linewidth=1, linestyle="--", label="identity, trial 0")
    axes.scatter(trials, values, s=18, color="#7aa6d8", label="trial", zorder=3)
    if early:
        axes.scatter(
            list(early),
            list(early.values()),
            s=16,
            facecolors="none",
            edgecolors="#7aa6d8",
            label="stopped early, estimate",
            zorder=3,
        )
    axes.step(
        [*trials, max(trials[-1], *early, 0)],
        [*np.maximum.accumulate(values), values.max()],
        where="post",
        color="#c2410c",
        linewidth=2,
        label="best so far",
        zorder=4,
    )
    every = np.array([*values, *early.values()])
    low = min(np.quantile(every, 0.1) if len(every) > 10 else every.min(), whole[0])
    span = every.max() - low
    if span > 0:
        axes.set_ylim(low - 0.1 * span, every.max() + 0.1 * span)
    axes.set_xlabel("trial")
    axes.set_ylabel("JAQ on the calibration prompts")
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path)
