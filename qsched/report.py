"""What a finished study leaves in its folder: numbers, pictures, the scheduler. Needs no torch."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from qsched import __version__, config
from qsched.export import export
from qsched.schema import Slot
from qsched.status import Status
from qsched.study import StoredStudy

if TYPE_CHECKING:
    from qsched.validation import Validation

ROWS = {
    "full_precision": "full precision",
    "identity": "quantized",
    "calibrated": "quantized, calibrated",
}
"""The rows of images.png, from the top."""


GRID = 50 * 50
"""Points of the official search, a grid, for the comparison of costs."""


def write(folder: Path, study: StoredStudy, status: Status, validation: "Validation") -> None:
    """Everything: report.json, coefficients.json, scheduler/, images.png and history.png.

    The numbers are stored as the study's outcome too, from which `export` works later.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = document(study, status, validation)
    (folder / "report.json").write_text(
        json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8"
    )
    study.storage.conclude(study.name, content | {"scheduler": validation.scheduler})
    export(folder, validation.published, validation.scheduler, provenance(content))
    write_images(folder / "images.png", validation)
    title = f"{study.name}: {validation.verdict.replace('_', ' ')}"
    write_history(folder / "history.png", study.queue.slots(("finished", "stopped")), title)


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
            **{name: config.installed_version(name) for name in config.LIBRARIES},
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


def write_images(path: Path, validation: "Validation", *, side: int = 160) -> None:
    """A grid of held-out images: a row a model, a column a prompt, captions above.

    Pixels are enlarged by a whole factor without blur until an image is about `side` wide; larger
    images are reduced to it.
    """
    shown = [(label, validation.pictures[row]) for row, label in ROWS.items()]
    height, width = shown[0][1].shape[1:3]
    factor = max(1, side // width)
    size = (width * factor, height * factor) if width <= side else (side, side * height // width)
    gap, left = max(6, size[0] // 20), 150
    letters = font(15)
    columns = len(validation.captions)
    captions = [_wrapped(text, letters, size[0]) for text in validation.captions]
    top = gap + 20 * max(len(lines) for lines in captions) + gap
    sheet = Image.new(
        "RGB",
        (left + columns * (size[0] + gap) + gap, top + len(shown) * (size[1] + gap) + gap),
        "white",
    )
    draw = ImageDraw.Draw(sheet)
    for column, lines in enumerate(captions):
        x = left + column * (size[0] + gap)
        for line, text in enumerate(lines):
            y = top - gap - 20 * (len(lines) - line)
            draw.text((x, y), text, fill="#222222", font=letters)
    for row, (label, pictures) in enumerate(shown):
        y = top + row * (size[1] + gap)
        lines = _wrapped(label, letters, left - 2 * gap)
        for line, text in enumerate(lines):
            offset = size[1] // 2 - 10 * len(lines) + 20 * line
            draw.text((gap, y + offset), text, fill="#222222", font=letters)
        for column, pixels in enumerate(pictures):
            picture = Image.fromarray(np.ascontiguousarray(pixels))
            resample = Image.Resampling.NEAREST if width <= side else Image.Resampling.LANCZOS
            sheet.paste(picture.resize(size, resample), (left + column * (size[0] + gap), y))
    sheet.save(path, optimize=True)


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


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """`text` in lines that are at most `width` pixels wide, as far as words allow."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def font(size: int) -> ImageFont.FreeTypeFont:
    """A scalable font that comes with matplotlib, so that every machine draws the same."""
    from matplotlib import font_manager

    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)
