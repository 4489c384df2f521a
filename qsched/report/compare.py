"""A comparison of studies for people: a table in the terminal, and one page with pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.text import Text

from qsched.files import outputs
from qsched.pictures.sheets import ROWS, Pictures
from qsched.proof.comparison import Beside, Comparison
from qsched.report import files
from qsched.report.drawing import LIGHT
from qsched.report.numerals import Change
from qsched.report.page import environment
from qsched.report.rows import aligned, coloured, title

NOTE = (
    "Calibrated: each study's chosen candidate, also where the verdict keeps the unmodified "
    "schedule. Difference: its calibrated images less those of the first study, paired by caption "
    "and seed; each interval holds with 95 % by itself."
)


def terminal(found: Comparison, width: int = 80) -> Text:
    """The studies with their verdicts, then a row for each metric and study."""
    studies = [[Text(head, style="bold") for head in ("study", "verdict", "trials")]]
    studies += [
        [Text(e.name), Text(e.proof.badge.word, e.proof.badge.colour), Text(str(e.proof.trials))]
        for e in found.studies
    ]
    heads = ("held-out", "full", "quantized", "calibrated", "difference, 95 % interval")
    cells = [[Text(head, style="bold") for head in heads]]
    for row in found.rows:
        numbers = [Text(f"{mean:.3f}") for mean in row.means.values()]
        difference = row.difference
        shown = coloured(difference, better=row.direction) if difference else Text()
        cells.append([Text(f"  {row.study}"), *numbers, shown])
    lines = aligned(cells, width)
    each = len(lines) // len(cells)  # a line, or two where the names stand above
    table = lines[:each]
    for number, row in enumerate(found.rows, start=1):
        if number == 1 or row.metric != found.rows[number - 2].metric:
            table.append(Text(row.metric))
        table += lines[each * number : each * (number + 1)]
    return Text("\n").join([*aligned(studies, width), Text(), *table])


def write(folder: Path, found: Comparison, pictures: Mapping[str, Pictures | str]) -> Path:
    """Writes the page; its path. `pictures`: by study, or why there are none, in a sentence."""
    shown = {name: each for name, each in pictures.items() if isinstance(each, Pictures)}
    text = (
        environment()
        .get_template("compare.html")
        .render(
            found=found,
            light=LIGHT,
            note=NOTE,
            headings=ROWS.values(),
            metrics=_by_metric(found),
            cards=_cards(shown),
            lacking={name: each for name, each in pictures.items() if isinstance(each, str)},
        )
    )
    with outputs.whole(folder) as unfinished:
        (unfinished / files.COMPARISON).write_text(text, encoding="utf-8")
    return folder / files.COMPARISON


def _by_metric(found: Comparison) -> list[tuple[str, list[tuple[Beside, Change | None]]]]:
    """The rows of each metric, their differences on one axis."""
    metrics = dict.fromkeys(row.metric for row in found.rows)
    listed = []
    for metric in metrics:
        rows = [row for row in found.rows if row.metric == metric]
        ends = [abs(e) for r in rows if r.difference for e in (r.difference.low, r.difference.high)]
        reach = max(ends, default=0.0)
        changes = [
            Change.of(row.difference, reach, row.direction) if row.difference else None
            for row in rows
        ]
        listed.append((title(metric), list(zip(rows, changes, strict=True))))
    return listed


def _cards(pictures: Mapping[str, Pictures]) -> list[dict[str, Any]]:
    """A card a caption that all have: each study's networks, a picture that another study has too
    once."""
    columns: list[tuple[str, np.ndarray, Pictures, str]] = []
    for study, each in pictures.items():
        for row, label in ROWS.items():
            images = each.rows[row]
            if not any(np.array_equal(images, known) for _, known, _, _ in columns):
                columns.append((f"{label}, {study}", images, each, row))
    embedded = [(label, each.captions, each.embedded(row)) for label, _, each, row in columns]
    captions = [tuple(each.captions) for each in pictures.values()]
    shared = [c for c in captions[0] if all(c in other for other in captions)] if captions else []
    return [
        {
            "caption": caption,
            "images": [(label, images[own.index(caption)]) for label, own, images in embedded],
        }
        for caption in shared
    ]
