"""Figures: true to their trials, readable in light and dark, on the page and in a file."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qsched.report import figures
from qsched.report.drawing import INKS, LIGHT, Drawing
from qsched.schedule.coefficients import Coefficients
from qsched.service.schema import Slot
from tests.support.html import Reader

RAMP = Coefficients.ramp(4, 1.1, 0.9)
PER_STEP = tuple(f"{name}[{step}]" for name in ("c_eps", "c_x") for step in range(4))


def slot(
    number: int, value: float, vector: tuple[float, ...] = (1.0, 1.0), state: str = "finished"
) -> Slot:
    return Slot(number, state, 1, 0, None, vector, number, value, None)


def search(trials: int, names: Sequence[str] = PER_STEP) -> list[Slot]:
    """A search that gets better by its trials, over names whose identity is 1."""
    rng = np.random.default_rng(0)
    vectors = [(1.0,) * len(names), *rng.uniform(0.6, 1.4, (trials - 1, len(names)))]
    return [slot(number, float(number), tuple(v)) for number, v in enumerate(vectors)]


def read(drawing: Drawing) -> Reader:
    return Reader(drawing.svg())


def tips(drawing: Drawing) -> list[str]:
    return re.findall("<title>(.*?)</title>", drawing.svg())


def test_the_course_tells_of_every_trial() -> None:
    slots = [slot(0, 1.0), slot(1, 0.6), slot(2, 0.7, state="stopped"), slot(3, 1.5)]
    drawing = figures.course(slots)
    assert sorted(tips(drawing)) == [
        "trial 0: +1.0000",
        "trial 1: +0.6000",
        "trial 2: +0.7000, expected by some prompts",
        "trial 3: +1.5000",
    ]
    (svg,) = read(drawing).all("svg")
    assert svg["role"] == "img"
    assert svg["aria-label"] == (
        "Value of 4 trials; the best is 1.5, the unmodified schedule has 1"
    )


def places(drawing: Drawing, kind: str) -> list[tuple[float, float]]:
    """Where the points of a kind are, in units of the figure."""
    group = re.search(rf'<g class="{kind}">(.*?)\n   </g>', drawing.svg(), re.DOTALL)
    assert group is not None, kind
    found = re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)"', group[1])
    return [(float(x), float(y)) for x, y in found]


def test_points_stand_where_their_values_are() -> None:
    slots = [slot(0, 1.0), slot(1, 3.0), slot(2, 2.0)]
    points = places(figures.course(slots), "trial")
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    low, high, middle = (y for _, y in points)
    assert high < middle < low, "upwards on the page is downwards in y"
    assert middle == pytest.approx((low + high) / 2)


def test_what_lies_far_below_is_on_the_edge_and_squeezes_nothing() -> None:
    slots = [slot(0, 1.0), *(slot(n, 1.0 + n / 100) for n in range(1, 29)), slot(29, -50.0)]
    drawing = figures.course(slots)
    ((_, edge),) = places(drawing, "trial below")
    heights = [y for _, y in places(drawing, "trial")]
    assert len(heights) == 29
    assert max(heights) < edge
    assert max(heights) - min(heights) > 200
    assert "trial 29: -50.0000" in tips(drawing)


@pytest.mark.parametrize(
    ("names", "panels"),
    [
        (("c_eps_first", "c_x_first"), ["plane-0"]),
        (PER_STEP, ["plane-0", "plane-1", "plane-2", "plane-3"]),
        (("c_eps", "c_x", "x0[0]", "x0[1]"), ["plane-0", "slice-2", "slice-3"]),
    ],
)
def test_the_landscape_has_a_panel_a_step(names: tuple[str, ...], panels: list[str]) -> None:
    drawn = figures.landscapes(search(9, names), names, (1.0,) * len(names))
    assert [re.findall('id="(.*?)-0"', drawing.svg())[0] for drawing in drawn] == panels
    for drawing in drawn:
        told = tips(drawing)
        assert told.count("the unmodified schedule") == 2  # the cross and its halo
        assert sorted(each.partition(":")[0] for each in told if "trial" in each) == [
            f"trial {number}" for number in range(9)
        ]


def test_the_best_trial_is_marked_and_on_top() -> None:
    (drawing,) = figures.landscapes(search(9, ("c_eps", "c_x")), ("c_eps", "c_x"), (1.0, 1.0))
    text = drawing.svg()
    chosen = text[text.index('class="chosen"') :]
    assert "trial 8: +8.0000" in chosen
    assert not re.search(r"trial [0-7]:", chosen)


def test_coefficients_are_told_by_step() -> None:
    told = tips(figures.profile(RAMP))
    assert told == [
        f"{name}, step {step}: {value:.4f}"
        for name, series in (("c_eps", RAMP.model), ("c_x", RAMP.sample))
        for step, value in enumerate(series, start=1)
    ]
    average = (0.1, 0.2, -0.1, 0.8)
    assert tips(figures.weights(average)) == [
        "step 1: 0.1000",
        "step 2: 0.2000",
        "step 3: -0.1000",
        "step 4: 0.8000",
    ]


def everything(trials: int) -> list[Drawing]:
    """All figures of a study's page."""
    slots = [*search(trials), slot(trials, 0.5, state="stopped")]
    return [
        figures.course(slots),
        figures.profile(RAMP),
        figures.weights((0.1, 0.2, -0.1, 0.8)),
        *figures.landscapes(slots, PER_STEP, (1.0,) * 8),
    ]


def test_every_colour_follows_the_page_but_the_landscapes_own() -> None:
    scale = figures.scale_of(range(9), 0)
    shades = {figures.colour(value, scale) for value in range(9)}
    for drawing in everything(9):
        colours = set(re.findall(r"#[0-9a-f]{6}\b", drawing.svg()))
        assert colours <= shades
        named = set(re.findall(r"var\(--(\w+)\)", drawing.svg()))
        assert {"soft", "ink", "line"} <= named <= set(INKS)
    assert len({LIGHT[name] for name in INKS}) == len(INKS)


def test_text_is_text_in_the_font_of_the_page() -> None:
    for drawing in everything(9):
        text = drawing.svg()
        assert "font" not in text
        assert len(read(drawing).all("text")) > 5
    assert ">JAQ on the calibration prompts</text>" in figures.course(search(9)).svg()


def test_no_two_figures_of_a_page_share_an_id_and_none_points_elsewhere() -> None:
    ids: list[str] = []
    for drawing in everything(9):
        text = drawing.svg()
        own = re.findall(r' id="(.*?)"', text)
        assert set(re.findall(r'href="#(.*?)"', text)) == set(own)
        assert "xmlns" not in text
        assert "//" not in text
        ids += own
    assert len(ids) == len(set(ids)) > 10


def test_a_page_of_a_hundred_trials_stays_small() -> None:
    assert sum(len(drawing.svg()) for drawing in everything(100)) < 200_000


@pytest.mark.parametrize("values", [[1.0], [1.0, 1.0], [1.0, -9.0, 1.2, 1.1], list(range(60))])
@pytest.mark.parametrize("early", [set(), {1}])
def test_any_course_can_be_drawn(tmp_path: Path, values: list[float], early: set[int]) -> None:
    slots = [
        slot(number, value, state="stopped" if number in early else "finished")
        for number, value in enumerate(values)
    ]
    figures.course(slots, "demo: improved $x$").save(tmp_path / "course.png")
    picture = Image.open(tmp_path / "course.png")
    assert picture.width > 1000
    assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 10
    assert read(figures.course(slots)).all("svg")
