"""The held-out table: one list of rows, and how the terminal, the page and Markdown write it.

Another paired difference is a field of `HeldOut` or `Distance` and its headings in `COLUMNS`.
"""

import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from rich.table import Table
from rich.text import Text

from qsched.pictures.sheets import ROWS as MEANS
from qsched.proof.outcome import JAQ, Distance, HeldOut, Proof
from qsched.report.numerals import Change, figure
from qsched.statistics import Interval

Place = Literal["terminal", "page", "phone", "distances", "card", "note"]

COLUMNS: Mapping[str, Mapping[Place, str]] = {
    "gain": {
        "terminal": "gain, 95 % interval",
        "page": "gain",
        "distances": "calibrated minus quantized",
        "card": "gain",
        "note": "gain",
    },
    "taste": {
        "page": "same on full precision",
        "phone": "the same coefficients on full precision",
        "note": "gain on full precision",
    },
    "repair": {"terminal": "repair", "page": "repair", "distances": "repair", "note": "repair"},
}
"""The paired differences, and their headings in the places that show them: the page has a table of
its own for distances, and on a phone a heading a number."""

LOWER, UNSEEN, SEARCHED = "lower is better", "unseen", "searched"


@dataclass(frozen=True)
class Row:
    """A metric, or a distance to real images, on the held-out images.

    `marks`: of LOWER, UNSEEN and SEARCHED those that hold. `means`: by their headings, full
    precision, quantized and calibrated. `changes`: those of COLUMNS that were measured.
    `direction`: 1 where higher is better, -1 where lower is.
    """

    name: str
    marks: tuple[str, ...]
    means: Mapping[str, float]
    changes: Mapping[str, Interval]
    direction: int
    distance: bool

    @property
    def title(self) -> str:
        """The name as the page has it."""
        return title(self.name)

    @cached_property
    def shown(self) -> dict[str, Change]:
        """The changes on one axis, or each distance's on its own."""
        ends = [abs(end) for each in self.changes.values() for end in (each.low, each.high)]
        reach = 0.0 if self.distance else max(ends)
        return {
            name: Change.of(change, reach, better=self.direction)
            for name, change in self.changes.items()
        }


def rows_of(proof: Proof, searched: Collection[str] = ()) -> list[Row]:
    """A row a metric, then a row a distance. `searched`: the scorers of the objective."""
    metrics = [_row(name, found, name in searched) for name, found in proof.held_out.items()]
    return metrics + [_row(name, found, False) for name, found in proof.distances.items()]


def _row(metric: str, found: HeldOut | Distance, searched: bool) -> Row:
    distance = isinstance(found, Distance)
    marks = (
        (LOWER, distance),
        (UNSEEN, found.independent),
        (SEARCHED, searched and not found.independent),
    )
    changes = {key: getattr(found, key, None) for key in COLUMNS}
    return Row(
        name=metric,
        marks=tuple(mark for mark, holds in marks if holds),
        means={heading: getattr(found, name) for name, heading in MEANS.items()},
        changes={key: change for key, change in changes.items() if change is not None},
        direction=-1 if distance else 1,
        distance=distance,
    )


def title(metric: str) -> str:
    """A metric's name as the page has it."""
    return "JAQ" if metric == JAQ else metric


def columns(rows: Iterable[Row], place: Place) -> dict[str, str]:
    """{change: its heading} of those that a place shows and some row has."""
    measured = {key for row in rows for key in row.changes}
    return {
        key: headings[place]
        for key, headings in COLUMNS.items()
        if place in headings and key in measured
    }


# The terminal


def terminal(rows: Sequence[Row], repair_against: str, width: int = 80) -> Text:
    """The gain with its interval, of other differences the mean; what the marks mean below.

    Where a line would be longer than `width` the names have lines of their own; then 64 do.
    """
    shown = columns(rows, "terminal")
    heads = ["held-out", "full", "quantized", "calibrated", *shown.values()]
    cells = [[Text(head, style="bold") for head in heads]]
    for row in rows:
        decimals = _decimals(row)
        first, *others = (row.changes.get(key) for key in shown)
        cells.append(
            [
                Text(f"{row.name}*" if UNSEEN in row.marks else row.name),
                *(Text(f"{mean:.{decimals}f}") for mean in row.means.values()),
                coloured(first, decimals, better=row.direction) if first else Text(),
                *(Text(f"{change.mean:+.{decimals}f}" if change else "") for change in others),
            ]
        )
    distances = ", ".join(row.name for row in rows if row.distance)
    notes = ["*: unseen by the search"]
    notes += [f"{distances}: distances to real images, less is better"] if distances else []
    notes += [f"repair: the gain less what full precision gains by {repair_against}"]
    below = textwrap.wrap("; ".join(notes), min(width, 80), break_long_words=False)
    return Text("\n").join([*aligned(cells, width), Text("\n".join(below), style="dim")])


def aligned(cells: Sequence[Sequence[Text]], width: int) -> list[Text]:
    """Rows in columns, the first to the left and the others to the right; where that takes more
    than `width`, what the first says stands in a line above the rest."""
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    above = sum(widths) + 2 * (len(widths) - 1) > width
    lines = []
    for first, *others in cells:
        places = zip(others, widths[1:], strict=True)
        numbers = Text("  ").join([Text(" " * (wide - len(each))) + each for each, wide in places])
        if above:
            lines += [first, Text("  ") + numbers] if first else [numbers]
        else:
            lines.append(first + Text(" " * (widths[0] - len(first) + 2)) + numbers)
    return lines


def _decimals(row: Row) -> int:
    if not row.distance:
        return 3
    return 1 if row.means[MEANS["identity"]] >= 10 else 4


def plain_table(first: str, *headings: str) -> Table:
    """A table without lines, numbers to the right of the first column."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column(first)
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def coloured(gain: Interval, decimals: int = 3, *, better: int = 1) -> Text:
    """A difference with its interval; green for the better, red for the worse."""
    mean, low, high = (f"{value:+.{decimals}f}" for value in (gain.mean, gain.low, gain.high))
    colour = {"better": "green", "worse": "red", "open": ""}[Change.of(gain, better=better).tone]
    return Text(f"{mean} [{low}, {high}]", style=colour)


# Markdown


def card(rows: Sequence[Row]) -> list[str]:
    """For the README of an exported folder: all rows, with what is better and what is unseen."""
    marks = {LOWER: " (lower is better)", UNSEEN: " \\*", SEARCHED: ""}
    names = [row.name + "".join(marks[mark] for mark in row.marks) for row in rows]
    return _markdown("", names, rows, "card", figure)


def note(rows: Sequence[Row]) -> list[str]:
    """For optuna-dashboard: the metrics; nothing where there are none."""
    metrics = [row for row in rows if not row.distance]
    if not metrics:
        return []
    names = [f"{row.name} (unseen)" if UNSEEN in row.marks else row.name for row in metrics]
    return _markdown("held out", names, metrics, "note", "{:.3f}".format)


def _markdown(
    first: str,
    names: Sequence[str],
    rows: Sequence[Row],
    place: Place,
    mean: Callable[[float], str],
) -> list[str]:
    shown = columns(rows, place)
    heading = [first, *MEANS.values(), *shown.values()]
    lines = [_line(heading), "|---" * len(heading) + "|"]
    for name, row in zip(names, rows, strict=True):
        changes = [row.shown.get(key) for key in shown]
        words = [f"{change.number} {change.interval}" if change else "" for change in changes]
        lines.append(_line([name, *map(mean, row.means.values()), *words]))
    return lines


def _line(cells: Iterable[str]) -> str:
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in cells)


# The page


@dataclass(frozen=True)
class PageTable:
    """Rows for the page's template. `columns`: {change: (its heading, the same on a phone, which
    has no head line)}."""

    rows: Sequence[Row]
    columns: Mapping[str, tuple[str, str]]


def page(rows: Sequence[Row], place: Place = "page") -> PageTable:
    """The table of the metrics, or of the `distances`."""
    chosen = [row for row in rows if row.distance == (place == "distances")]
    shown = columns(chosen, place)
    return PageTable(
        chosen,
        {key: (words, COLUMNS[key].get("phone", words)) for key, words in shown.items()},
    )
