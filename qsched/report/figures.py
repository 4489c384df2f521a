"""The report's figures, a function each: the search's course, its landscape, coefficients by step.

`drawing` puts them on the page and into files.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from qsched.report.drawing import LIGHT, Drawing, Layout, Style
from qsched.report.numerals import listed
from qsched.schedule.coefficients import Coefficients
from qsched.service.schema import Slot

ONE = Layout(480, 320)
SMALL = Layout(300, 264, top=38, bottom=52, pad=14)
"""A panel on the page, and one of several, with room for letters that are large beside it."""
ALONE = Layout(800, 420, left=62, top=64, right=18, bottom=82)
"""A file of its own, with a title and a legend."""

Point = tuple[float, float, str]
"""Where it is, and what it is."""

TRIAL: Style = {"color": LIGHT["blue"], "alpha": 0.75, "linewidths": 0, "s": 64}
STOPPED: Style = {"facecolors": "none", "edgecolors": LIGHT["blue"], "linewidths": 1.4, "s": 58}
BEST: Style = {"color": LIGHT["orange"], "linewidth": 2.5}
PLACE: Style = {"edgecolors": LIGHT["soft"], "linewidths": 0.7, "s": 100}
CHOSEN: Style = {"edgecolors": LIGHT["ink"], "linewidths": 2.5, "s": 196}
UNMODIFIED: Style = {"color": LIGHT["soft"], "linewidth": 1.5, "dashes": (3.3, 2.7)}


def course(slots: Sequence[Slot], title: str = "") -> Drawing:
    """Each trial's value, the best so far, the identity's level.

    `slots`: finished and stopped ones, by number; stopped ones are hollow, at their estimates. What
    lies far below the identity is a triangle on the lower edge. Needs trial 0's value. With a
    `title` it stands alone.
    """
    values = {slot.number: slot.value for slot in slots if slot.value is not None}
    whole = {s.number: values[s.number] for s in slots if s.state == "finished"}
    last = max(values)
    drawing = Drawing(
        "course",
        f"Value of {len(values)} trials; the best is {max(whole.values()):.4g}, "
        f"the unmodified schedule has {whole[0]:.4g}",
        (0, max(last, 1)),
        (floor_of(values.values(), whole[0]), max(values.values())),
        labels=("trial", "JAQ on the calibration prompts"),
        layout=ALONE if title else ONE,
        ticks=range(last + 1) if last < 6 else None,
    )
    drawing.level("identity", whole[0], label="unmodified schedule", **UNMODIFIED)
    done, early = [], []
    for number, value in values.items():
        words = f"trial {number}: {value:+.4f}"
        if number in whole:
            done.append((number, value, words))
        else:
            early.append((number, value, f"{words}, expected by some prompts"))
    _dots(drawing, "trial", done, label="trial", **TRIAL)
    _dots(drawing, "stopped", early, label="some prompts, expected", **STOPPED)
    highest = np.maximum.accumulate(list(whole.values())).tolist()
    drawing.line(
        *("best", [*whole, last], [*highest, highest[-1]]),
        drawstyle="steps-post",
        label="best so far",
        **BEST,
    )
    if title:
        drawing.write(title, 12, 26, fontsize=16)
        drawing.legend()
    return drawing


def profile(coefficients: Coefficients) -> Drawing:
    """c_eps and c_x by step, beside the unmodified schedule's ones."""
    series = {"c_eps": coefficients.model, "c_x": coefficients.sample}
    every = [*coefficients.model, *coefficients.sample, 1.0]
    steps = range(1, coefficients.steps + 1)
    drawing = Drawing(
        "profile",
        "; ".join(f"{name} {listed(numbers)}" for name, numbers in series.items()),
        (0.8, coefficients.steps + 0.2),
        (min(every), max(every)),
        labels=("step", "factor"),
        layout=ONE,
        ticks=steps,
    )
    drawing.level("identity", 1.0, **UNMODIFIED)
    for (name, numbers), colour in zip(series.items(), ("blue", "orange"), strict=True):
        look = {"color": LIGHT[colour]}
        points = zip(steps, numbers, strict=True)
        drawing.line(f"{name} line", steps, numbers, linewidth=2.5, **look)
        tips = [(step, number, f"{name}, step {step}: {number:.4f}") for step, number in points]
        drawing.dots(name, tips, s=81, linewidths=0, zorder=3, **look)
    return drawing


def weights(average: Sequence[float]) -> Drawing:
    """The weights of the steps' x0 predictions in the image; neutral is the last step alone."""
    steps = range(1, len(average) + 1)
    drawing = Drawing(
        "weights",
        f"weights of the steps' predictions: {listed(average)}",
        (0.4, len(steps) + 0.6),
        (min(*average, 0.0), max(*average, 1.0)),
        labels=("step", "weight"),
        layout=ONE,
        ticks=steps,
    )
    tips = [f"step {step}: {weight:.4f}" for step, weight in zip(steps, average, strict=True)]
    drawing.bars("bar", steps, average, tips, color=LIGHT["blue"], width=0.5)
    drawing.level("zero", 0.0, color=LIGHT["soft"], linewidth=1)
    return drawing


def pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """The free numbers that belong together: c_eps and c_x of the same step."""
    partners = ((name, "c_x" + name.removeprefix("c_eps")) for name in names if "c_eps" in name)
    return [(one, other) for one, other in partners if other in names]


def landscapes(
    slots: Sequence[Slot], names: Sequence[str], neutral: Sequence[float]
) -> list[Drawing]:
    """The search space: a panel for each pair of `pairs`, a point a finished trial, coloured by
    JAQ; a panel for each other number, against JAQ. `neutral`: the identity's vector."""
    done = [slot for slot in slots if slot.state == "finished" and slot.vector is not None]
    coupled = pairs(names)
    single = [name for name in names if not any(name in pair for pair in coupled)]
    layout = ONE if len(coupled) + len(single) == 1 else SMALL
    drawn = [_plane(done, pair, names, neutral, layout) for pair in coupled]
    return drawn + [_slice(done, name, names, neutral, layout) for name in single]


def _plane(
    done: Sequence[Slot],
    pair: tuple[str, str],
    names: Sequence[str],
    neutral: Sequence[float],
    layout: Layout,
) -> Drawing:
    """The trials over two numbers."""
    one, other = (names.index(name) for name in pair)
    values = {slot.number: float(slot.value or 0.0) for slot in done}
    place = {
        slot.number: ((slot.vector or neutral)[one], (slot.vector or neutral)[other])
        for slot in done
    }
    centre = neutral[one], neutral[other]
    x, y = zip(*place.values(), centre, strict=True)
    scale = scale_of(values.values(), values.get(0))
    ranked = sorted(values, key=lambda number: (values[number], -number))  # the best on top
    drawing = Drawing(
        f"plane-{one}",
        f"{len(done)} trials over {pair[0]} and {pair[1]}; the best at {listed(place[ranked[-1]])}",
        (min(x), max(x)),
        (min(y), max(y)),
        labels=pair,
        layout=layout,
    )
    points = [(*place[n], f"trial {n}: {values[n]:+.4f} at {listed(place[n])}") for n in ranked]
    colours = [colour(values[number], scale) for number in ranked]
    drawing.dots("place", points[:-1], c=colours[:-1], **PLACE)
    drawing.dots("chosen", points[-1:], c=colours[-1:], **CHOSEN)
    _cross(drawing, *centre)
    return drawing


def _slice(
    done: Sequence[Slot],
    name: str,
    names: Sequence[str],
    neutral: Sequence[float],
    layout: Layout,
) -> Drawing:
    """The trials' JAQ over one number."""
    axis = names.index(name)
    values = [float(slot.value or 0.0) for slot in done]
    x = [(slot.vector or neutral)[axis] for slot in done]
    drawing = Drawing(
        f"slice-{axis}",
        f"JAQ of {len(done)} trials over {name}",
        (min(*x, neutral[axis]), max(*x, neutral[axis])),
        (floor_of(values, values[0]), max(values)),
        labels=(name, "JAQ"),
        layout=layout,
    )
    points = [
        (at, value, f"trial {slot.number}: {value:+.4f} at {at:.4g}")
        for slot, at, value in zip(done, x, values, strict=True)
    ]
    _dots(drawing, "trial", points, **TRIAL)
    _cross(drawing, neutral[axis], values[0])
    return drawing


def _dots(drawing: Drawing, kind: str, points: Sequence[Point], **style: Any) -> None:
    """Points; those below the axes are triangles on their edge."""
    floor = drawing.axes.get_ylim()[0]
    above = [point for point in points if point[1] >= floor]
    below = [(x, floor, tip) for x, y, tip in points if y < floor]
    drawing.dots(kind, above, **style)
    drawing.dots(f"{kind} below", below, **(style | {"marker": "v", "label": None}))


def _cross(drawing: Drawing, x: float, y: float) -> None:
    """The mark of the unmodified schedule."""
    point = [(x, y, "the unmodified schedule")]
    drawing.dots("halo", point, marker="x", s=144, linewidths=6, color=LIGHT["card"])
    drawing.dots("cross", point, marker="x", s=144, linewidths=2.6, color=LIGHT["bad"])


def floor_of(values: Iterable[float], identity: float) -> float:
    """Where an axis of values begins: what lies far below the identity would squeeze the rest."""
    every = np.array(list(values))
    low = np.quantile(every, 0.1) if len(every) > 10 else every.min()
    return float(min(low, identity))


def scale_of(values: Iterable[float], identity: float | None) -> tuple[float, float]:
    """The values of the first and the last colour of a landscape."""
    every = list(values)
    return floor_of(every, max(every) if identity is None else identity), max(every)


def colour(value: float, scale: tuple[float, float]) -> str:
    """#rrggbb of a value: viridis without its darkest fifth, which a dark page would swallow."""
    from matplotlib import colormaps, colors

    low, high = scale
    share = (value - low) / (high - low) if high > low else 1.0
    return colors.to_hex(colormaps["viridis"](0.2 + 0.8 * min(max(share, 0.0), 1.0)))


def ramp(count: int = 9) -> list[str]:
    """So many colours of a landscape, from the first to the last."""
    return [colour(share, (0.0, 1.0)) for share in np.linspace(0, 1, count)]
