"""A preview as a picture and a page: four captions, full precision beside quantized. No torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qsched.evidence.impression import Impression
from qsched.files import outputs
from qsched.pictures.sheets import ROWS, Pictures
from qsched.pipelines.effective import effective
from qsched.report import files
from qsched.report.drawing import LIGHT
from qsched.report.page import environment
from qsched.study.study import Study


def doubts_of(impressions: Mapping[str, Impression]) -> list[str]:
    """All doubts, each with its network."""
    return [f"{ROWS[row]}: {doubt}" for row, each in impressions.items() for doubt in each.doubts]


def sentence_of(study: Study, impressions: Mapping[str, Impression]) -> str:
    """What is to be said of the pictures."""
    if study.tables.model.twin:
        return "A twin has random weights: its pictures show that the study runs, and no more."
    if not doubts_of(impressions):
        if all(each.alignment for each in impressions.values()):
            return "These look like images, and fit their captions."
        return "These may be images; no scorer of the study tells whether they fit their captions."
    return "These may be no images; see to guidance, steps, size, scheduler and dtype."


def write(
    folder: Path,
    study: Study,
    pictures: Pictures,
    impressions: Mapping[str, Impression],
    network: str,
) -> list[Path]:
    """Writes the grid and the page; their paths."""
    labels = [(ROWS[row], pictures.embedded(row)) for row in ROWS if row in pictures.rows]
    fits = [each.alignment for each in impressions.values() if each.alignment]
    values: dict[str, Any] = {
        "study": study.name,
        "light": LIGHT,
        "sentence": sentence_of(study, impressions),
        "doubts": [] if study.tables.model.twin else doubts_of(impressions),
        "drawn": f"{study.tables.sampling.steps} steps, "
        f"{effective(study.tables.model, study.tables.sampling).words}",
        "network": network,
        "cards": [
            (caption, [(label, images[column]) for label, images in labels])
            for column, caption in enumerate(pictures.captions)
        ],
        "rows": [(ROWS[row], impressions[row]) for row in ROWS if row in impressions],
        "scorer": fits[0].scorer if fits and len(fits) == len(impressions) else None,
    }
    text = environment().get_template("preview.html").render(values)
    with outputs.whole(folder) as unfinished:
        pictures.write(unfinished / files.PREVIEW)
        (unfinished / files.PREVIEW_PAGE).write_text(text, encoding="utf-8")
    return [folder / files.PREVIEW, folder / files.PREVIEW_PAGE]
