"""The report's figures as inline SVG: the search's course, its landscape, profiles, intervals.

Drawn here, with matplotlib's ticks and colours: plotly's script alone takes 4.8 MB, and a drawing
of matplotlib's own can't follow the reader's colour scheme or tell what a point is. Colours are
classes of the page's style sheet; only the landscape carries its own.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element, SubElement, tostring

import numpy as np

from qsched.service.schema import Slot

WIDTH, HEIGHT = 480, 320
"""Units of a figure; the page scales it."""


class Panel:
    """Axes over the ranges `x` and `y` in an <svg> that is read to the blind as `words`."""

    def __init__(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        *,
        words: str,
        size: tuple[int, int] = (WIDTH, HEIGHT),
        labels: tuple[str, str] = ("", ""),
        ticks: Sequence[float] | None = None,
    ) -> None:
        self._x, self._y = _padded(x), _padded(y)
        self._left, self._top = 52, 28
        self._right, self._bottom = size[0] - 12, size[1] - 44
        box = f"0 0 {size[0]} {size[1]}"
        self.svg = Element("svg", {"viewBox": box, "role": "img", "aria-label": words})
        self._axes(labels, ticks)

    def __str__(self) -> str:
        return tostring(self.svg, encoding="unicode")

    def x(self, value: float) -> float:
        """Where a value lies, in units of the figure."""
        low, high = self._x
        return self._left + (value - low) / (high - low) * (self._right - self._left)

    def y(self, value: float) -> float:
        """The same, upwards."""
        low, high = self._y
        return self._bottom - (value - low) / (high - low) * (self._bottom - self._top)

    def draw(self, tag: str, kind: str, *, tip: str = "", **attributes: Any) -> Element:
        """An element of the class `kind`; `tip` is shown where the pointer rests on it."""
        numbers = {
            name.replace("_", "-"): f"{value:.2f}" if isinstance(value, float) else str(value)
            for name, value in attributes.items()
        }
        element = SubElement(self.svg, tag, {"class": kind} | numbers)
        if tip:
            SubElement(element, "title").text = tip
        return element

    def dot(self, x: float, y: float, kind: str, tip: str, r: float = 4.0, **more: Any) -> None:
        """A point; one below the axes is a triangle on their edge."""
        at, to = self.x(x), self.y(y)
        if to > self._bottom:
            edge = self._bottom - 2
            path = f"M{at - 4:.1f} {edge - 7:.1f}h8l-4 7z"
            self.draw("path", kind, tip=tip, d=path, **more)
        else:
            self.draw("circle", kind, tip=tip, cx=at, cy=to, r=r, **more)

    def line(self, points: Iterable[tuple[float, float]], kind: str) -> None:
        """A line through points."""
        places = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)
        self.draw("polyline", kind, points=places)

    def across(self, value: float, kind: str) -> None:
        """A level over the whole width."""
        self.line(((self._x[0], value), (self._x[1], value)), kind)

    def cross(self, x: float, y: float, tip: str) -> None:
        """The mark of the unmodified schedule."""
        d = f"M{self.x(x) - 6:.1f} {self.y(y) - 6:.1f}l12 12m0 -12l-12 12"
        self.draw("path", "cross-halo", d=d)
        self.draw("path", "cross", tip=tip, d=d)

    def _axes(self, labels: tuple[str, str], given: Sequence[float] | None) -> None:
        for tick, words in _named(given or _ticks(*self._x)):
            at = self.x(tick)
            self.draw("text", "tick", x=at, y=self._bottom + 17, text_anchor="middle").text = words
        for tick, words in _named(_ticks(*self._y)):
            at = self.y(tick)
            self.draw("line", "grid", x1=self._left, x2=self._right, y1=at, y2=at)
            place: dict[str, Any] = {"x": self._left - 7, "y": at + 4, "text_anchor": "end"}
            self.draw("text", "tick", **place).text = words
        middle = (self._left + self._right) / 2
        below = self.draw("text", "label", x=middle, y=self._bottom + 38, text_anchor="middle")
        above = self.draw("text", "label", x=2, y=15)
        below.text, above.text = labels


def history(slots: Sequence[Slot]) -> str:
    """The study's course: each trial's value, the best so far, the identity's level.

    `slots`: finished and stopped ones, by number; stopped ones are hollow, at their estimates. What
    lies far below the identity is a triangle on the lower edge. Needs trial 0's value.
    """
    values = {slot.number: slot.value for slot in slots if slot.value is not None}
    whole = {s.number: values[s.number] for s in slots if s.state == "finished"}
    top, last = max(values.values()), max(values)
    panel = Panel(
        (0, max(last, 1)),
        (floor_of(values.values(), whole[0]), top),
        words=f"Value of {len(values)} trials; the best is {max(whole.values()):.4g}, "
        f"the unmodified schedule has {whole[0]:.4g}",
        labels=("trial", "JAQ on the calibration prompts"),
    )
    panel.across(whole[0], "identity")
    for slot in slots:
        if slot.value is not None:
            early = slot.state == "stopped"
            note = ", stopped early (estimate)" if early else ""
            tip = f"trial {slot.number}: {slot.value:+.4f}{note}"
            panel.dot(slot.number, slot.value, "stopped" if early else "trial", tip)
    best = -math.inf
    course: list[tuple[float, float]] = []
    for number, value in whole.items():
        if value > best:
            course += [(number, best)] if course else []
            course += [(number, value)]
            best = value
    panel.line([*course, (last, best)], "best")
    return str(panel)


def profile(coefficients: Mapping[str, Sequence[float]]) -> str:
    """c_eps and c_x by step, beside the unmodified schedule's ones."""
    series = {"c_eps": coefficients["model"], "c_x": coefficients["sample"]}
    every = [*coefficients["model"], *coefficients["sample"], 1.0]
    steps = range(1, len(coefficients["model"]) + 1)
    panel = Panel(
        (0.8, len(steps) + 0.2),
        (min(every), max(every)),
        words="; ".join(f"{name} {listed(numbers)}" for name, numbers in series.items()),
        labels=("step", "factor"),
        ticks=steps,
    )
    panel.across(1.0, "identity")
    for (name, numbers), kind in zip(series.items(), ("first", "second"), strict=True):
        panel.line(zip(steps, numbers, strict=True), f"{kind} line")
        for step, number in zip(steps, numbers, strict=True):
            panel.dot(step, number, kind, f"{name}, step {step}: {number:.4f}", r=4.5)
    return str(panel)


def weights(average: Sequence[float]) -> str:
    """The weights of the steps' x0 predictions in the image; neutral is the last step alone."""
    steps = range(1, len(average) + 1)
    panel = Panel(
        (0.4, len(steps) + 0.6),
        (min(*average, 0.0), max(*average, 1.0)),
        words=f"weights of the steps' predictions: {listed(average)}",
        labels=("step", "weight"),
        ticks=steps,
    )
    zero, wide = panel.y(0.0), 0.5 * (panel.x(2) - panel.x(1))
    for step, weight in zip(steps, average, strict=True):
        ends = sorted((zero, panel.y(weight)))
        place = {"x": panel.x(step) - wide / 2, "y": ends[0], "height": ends[1] - ends[0]}
        panel.draw("rect", "bar", tip=f"step {step}: {weight:.4f}", width=wide, **place)
    panel.across(0.0, "zero")
    return str(panel)


def pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """The free numbers that belong together: c_eps and c_x of the same step."""
    partners = ((name, "c_x" + name.removeprefix("c_eps")) for name in names if "c_eps" in name)
    return [(one, other) for one, other in partners if other in names]


def landscapes(slots: Sequence[Slot], names: Sequence[str], neutral: Sequence[float]) -> list[str]:
    """The search space: a panel for each pair of `pairs`, a point a finished trial, coloured by
    JAQ; a panel for each other number, against JAQ. `neutral`: the identity's vector."""
    done = [slot for slot in slots if slot.state == "finished" and slot.vector is not None]
    coupled = pairs(names)
    single = [name for name in names if not any(name in pair for pair in coupled)]
    panels = len(coupled) + len(single)
    size = (WIDTH, HEIGHT) if panels == 1 else (300, 270)
    place = {name: index for index, name in enumerate(names)}
    drawn = [_plane(done, (place[x], place[y]), (x, y), neutral, size) for x, y in coupled]
    return drawn + [_slice(done, place[name], name, neutral, size) for name in single]


def _plane(
    done: Sequence[Slot],
    axes: tuple[int, int],
    names: tuple[str, str],
    neutral: Sequence[float],
    size: tuple[int, int],
) -> str:
    values = {slot.number: float(slot.value or 0.0) for slot in done}
    points = {
        slot.number: ((slot.vector or neutral)[axes[0]], (slot.vector or neutral)[axes[1]])
        for slot in done
    }
    x, y = zip(*points.values(), [neutral[axis] for axis in axes], strict=True)
    best = max(values, key=values.__getitem__)
    panel = Panel(
        (min(x), max(x)),
        (min(y), max(y)),
        words=f"{len(done)} trials over {names[0]} and {names[1]}; the best at "
        f"{listed(points[best])}",
        size=size,
        labels=names,
    )
    low, high = scale_of(values.values(), values.get(0))
    for number in sorted(values, key=values.__getitem__):  # the best on top
        share = (values[number] - low) / (high - low) if high > low else 1.0
        tip = f"trial {number}: {values[number]:+.4f} at {listed(points[number])}"
        kind = "place chosen" if number == best else "place"
        panel.dot(*points[number], kind, tip, r=7.0 if number == best else 5.0, fill=colour(share))
    panel.cross(neutral[axes[0]], neutral[axes[1]], "the unmodified schedule")
    return str(panel)


def _slice(
    done: Sequence[Slot], axis: int, name: str, neutral: Sequence[float], size: tuple[int, int]
) -> str:
    values = [float(slot.value or 0.0) for slot in done]
    x = [(slot.vector or neutral)[axis] for slot in done]
    panel = Panel(
        (min(*x, neutral[axis]), max(*x, neutral[axis])),
        (floor_of(values, values[0]), max(values)),
        words=f"JAQ of {len(done)} trials over {name}",
        size=size,
        labels=(name, "JAQ"),
    )
    for slot, at, value in zip(done, x, values, strict=True):
        panel.dot(at, value, "trial", f"trial {slot.number}: {value:+.4f} at {at:.4g}")
    panel.cross(neutral[axis], values[0], "the unmodified schedule")
    return str(panel)


def interval(mean: float, low: float, high: float, reach: float, *, better: int = 1) -> str:
    """A difference with its interval on an axis from -`reach` to `reach`, zero in the middle.

    `better`: 1 where above zero is better, -1 where below, 0 where neither is.
    """
    side = "above" if low > 0 else "below" if high < 0 else "across"
    word = {"above": "better", "below": "worse"}
    turned = {"above": "below", "below": "above"} if better < 0 else {}
    kind = word.get(turned.get(side, side), "open") if better else "open"
    svg = Element("svg", {"viewBox": "0 0 120 16", "class": "interval", "aria-hidden": "true"})

    def at(value: float) -> float:
        return 60 + 56 * max(-1.0, min(1.0, value / reach)) if reach else 60.0

    shapes: tuple[tuple[str, str, dict[str, float]], ...] = (
        ("line", "rail", {"x1": 2, "x2": 118, "y1": 8, "y2": 8}),
        ("line", "middle", {"x1": 60, "x2": 60, "y1": 1, "y2": 15}),
        ("rect", kind, {"x": at(low), "y": 5, "width": max(at(high) - at(low), 1.0), "height": 6}),
        ("circle", kind, {"cx": at(mean), "cy": 8, "r": 5}),
    )
    for tag, shape, place in shapes:
        numbers = {name: f"{value:.1f}" for name, value in place.items()}
        SubElement(svg, tag, {"class": shape} | numbers)
    return tostring(svg, encoding="unicode")


def floor_of(values: Iterable[float], identity: float) -> float:
    """Where an axis of values begins: what lies far below the identity would squeeze the rest."""
    every = np.array(list(values))
    low = np.quantile(every, 0.1) if len(every) > 10 else every.min()
    return float(min(low, identity))


def scale_of(values: Iterable[float], identity: float | None) -> tuple[float, float]:
    """The values of the first and the last colour of a landscape."""
    every = list(values)
    return floor_of(every, max(every) if identity is None else identity), max(every)


def colour(share: float) -> str:
    """Viridis from 0 to 1 without its darkest fifth, which a dark page would swallow; #rrggbb."""
    from matplotlib import colormaps, colors

    return colors.to_hex(colormaps["viridis"](0.2 + 0.8 * min(max(share, 0.0), 1.0)))


def listed(numbers: Iterable[float]) -> str:
    """Numbers as a person reads them."""
    return ", ".join(f"{number:.4g}" for number in numbers)


def _padded(ends: tuple[float, float]) -> tuple[float, float]:
    low, high = ends
    room = 0.06 * (high - low) or 0.05 * max(abs(high), 1e-3)
    return low - room, high + room


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between two ends."""
    from matplotlib.ticker import MaxNLocator

    found = MaxNLocator(nbins=5, steps=[1, 2, 5, 10]).tick_values(low, high)
    return [float(tick) for tick in found if low <= tick <= high]


def _named(ticks: Sequence[float]) -> list[tuple[float, str]]:
    """Ticks with as many decimals as their distance needs."""
    distance = ticks[1] - ticks[0] if len(ticks) > 1 else 1.0
    decimals = max(0, -math.floor(math.log10(distance) + 1e-9))
    return [(tick, f"{tick + 0.0:.{decimals}f}".replace("-", "−")) for tick in ticks]
