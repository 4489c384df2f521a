"""The held-out table is one list of rows, and every place writes the same numbers of it."""

import io
from dataclasses import replace
from typing import get_args

import pytest
from rich.console import Console

from qsched.proof.outcome import JAQ, Proof
from qsched.report import rows
from qsched.report.rows import COLUMNS, LOWER, SEARCHED, UNSEEN, Place
from qsched.statistics import Interval
from tests.support.outcomes import DISTANCE, METRIC, proof
from tests.support.outcomes import UNSEEN as UNSEEN_METRIC


def found() -> Proof:
    """A metric that was searched, one that was not, one that shares a network, and a distance."""
    held_out = {JAQ: METRIC, "clip": METRIC, "pixels": UNSEEN_METRIC}
    return proof(held_out=held_out, distances={"frechet": DISTANCE})


def test_each_row_knows_what_it_is() -> None:
    listed = rows.rows_of(found(), searched=("clip", "pixels"))
    assert [(row.name, row.marks, row.direction) for row in listed] == [
        ("jaq", (), 1),
        ("clip", (SEARCHED,), 1),
        ("pixels", (UNSEEN,), 1),
        ("frechet", (LOWER, UNSEEN), -1),
    ]
    assert listed[0].means == {"full precision": 3.0, "quantized": 1.0, "calibrated": 1.5}
    assert listed[0].shown["gain"].reach == 0.75, "all differences of a metric are on one axis"
    assert listed[3].shown["gain"].tone == "better", "a smaller distance"


def printed(made: Proof) -> str:
    console = Console(file=io.StringIO(), width=120, force_terminal=False)
    console.print(rows.terminal(rows.rows_of(made), made.repair_against))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_terminal_says_what_its_marks_mean() -> None:
    lines = printed(found()).splitlines()
    assert lines[0].split() == [
        *("held-out", "full", "quantized", "calibrated"),
        *("gain,", "95", "%", "interval", "repair"),
    ]
    assert lines[3].split() == [
        *("pixels*", "3.000", "1.000", "1.500"),
        *("+0.500", "[+0.250,", "+0.750]", "+0.300"),
    ]
    assert lines[4].split()[:5] == ["frechet*", "60.0", "130.0", "120.0", "-10.0"]
    assert "*: unseen by the search; frechet: distances to real images" in " ".join(lines)
    assert "gains by the same coefficients" in " ".join(printed(found()).split())
    small = replace(DISTANCE, identity=0.03, full_precision=0.01, calibrated=0.0289)
    assert "0.0289" in printed(proof(distances={"kid": small}))


@pytest.mark.parametrize(
    ("change", "colour"),
    [
        (Interval(0.5, 0.2, 0.8), "green"),
        (Interval(-0.5, -0.8, -0.2), "red"),
        (Interval(0.1, -0.2, 0.4), ""),
    ],
)
def test_the_terminal_colours_what_is_shown(change: Interval, colour: str) -> None:
    opposite = {"green": "red", "red": "green", "": ""}
    assert rows.coloured(change).style == colour
    assert rows.coloured(change, better=-1).style == opposite[colour]


def test_the_readme_and_the_note_have_the_same_numbers() -> None:
    card, note = rows.card(rows.rows_of(found())), rows.note(rows.rows_of(found()))
    assert card[0] == "| | full precision | quantized | calibrated | gain |"
    assert "| pixels \\* | 3.000 | 1.000 | 1.500 | +0.500 [+0.250, +0.750] |" in card
    assert card[-1].startswith("| frechet (lower is better) \\* | 60.000 | 130.000 | 120.000 |")
    assert note[0] == (
        "| held out | full precision | quantized | calibrated | gain | gain on full precision "
        "| repair |"
    )
    assert note[-1] == (
        "| pixels (unseen) | 3.000 | 1.000 | 1.500 | +0.500 [+0.250, +0.750] "
        "| +0.200 [+0.150, +0.250] | +0.300 [+0.200, +0.400] |"
    )
    assert rows.note(rows.rows_of(proof(held_out={}))) == []


def test_the_page_has_a_table_of_its_own_for_distances() -> None:
    listed = rows.rows_of(found())
    page, distances = rows.page(listed), rows.page(listed, "distances")
    assert [row.title for row in page.rows] == ["JAQ", "clip", "pixels"]
    assert list(page.columns) == ["gain", "taste", "repair"]
    assert [row.title for row in distances.rows] == ["frechet"]
    assert list(distances.columns) == ["gain", "repair"]
    assert rows.page([]).columns == {}


def test_what_was_not_measured_has_no_column_or_an_empty_place() -> None:
    older = replace(METRIC, taste=None, repair=None)
    listed = rows.rows_of(proof(held_out={JAQ: older}, distances={}))
    assert list(rows.page(listed).columns) == ["gain"]
    assert "repair" not in rows.note(listed)[0]
    mixed = rows.rows_of(proof(held_out={JAQ: older, "pixels": UNSEEN_METRIC}))
    assert rows.note(mixed)[2] == ("| jaq | 3.000 | 1.000 | 1.500 | +0.500 [+0.250, +0.750] | | |")


def test_every_column_is_a_difference_that_is_measured() -> None:
    for key, headings in COLUMNS.items():
        assert isinstance(getattr(METRIC, key), Interval)
        assert set(headings) <= set(get_args(Place))
