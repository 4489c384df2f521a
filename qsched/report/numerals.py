"""How the report writes numbers: means, differences with their intervals, times, coefficients."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self
from xml.etree.ElementTree import Element, SubElement, tostring

from markupsafe import Markup

from qsched.schedule.coefficients import Coefficients
from qsched.statistics import Interval

_BAR, _MIDDLE, _REACH = (120, 16), 60, 56
"""Width and height of an interval's bar, where zero lies in it, and how far it goes from there."""


@dataclass(frozen=True)
class Change:
    """A difference with its interval, on an axis from -`reach` to `reach`.

    `better`: 1 where above zero is better, -1 where below, 0 where neither is.
    """

    mean: float
    low: float
    high: float
    reach: float = 0.0
    better: int = 1

    @classmethod
    def of(cls, found: Interval, reach: float = 0.0, better: int = 1) -> Self:
        """Of a paired difference; without `reach` its own."""
        own = max(abs(found.low), abs(found.high))
        return cls(found.mean, found.low, found.high, reach or own, better)

    @property
    def number(self) -> str:
        """The difference, signed."""
        return signed(self.mean, self.decimals)

    @property
    def interval(self) -> str:
        """Both ends, signed."""
        low, high = signed(self.low, self.decimals), signed(self.high, self.decimals)
        return f"[{low}, {high}]"

    @property
    def tone(self) -> str:
        """Whether it is shown to be `better` or `worse`; `open` where the interval spans zero."""
        if self.low <= 0 <= self.high or not self.better:
            return "open"
        return "better" if self.better * self.low > 0 else "worse"

    @property
    def bar(self) -> Markup:
        """The difference as a small figure of the page, zero in the middle."""
        svg = Element(
            "svg",
            {"viewBox": f"0 0 {_BAR[0]} {_BAR[1]}", "class": "interval", "aria-hidden": "true"},
        )
        left, right = self._place(self.low), self._place(self.high)
        wide, tone = max(right - left, 1.0), self.tone
        shapes: tuple[tuple[str, str, dict[str, float]], ...] = (
            ("line", "rail", {"x1": 2, "x2": _BAR[0] - 2, "y1": 8, "y2": 8}),
            ("line", "middle", {"x1": _MIDDLE, "x2": _MIDDLE, "y1": 1, "y2": 15}),
            ("rect", tone, {"x": left, "y": 5, "width": wide, "height": 6}),
            ("circle", tone, {"cx": self._place(self.mean), "cy": 8, "r": 5}),
        )
        for tag, kind, place in shapes:
            numbers = {name: f"{value:.1f}" for name, value in place.items()}
            SubElement(svg, tag, {"class": kind} | numbers)
        return Markup(tostring(svg, encoding="unicode"))

    def _place(self, value: float) -> float:
        share = value / self.reach if self.reach else 0.0
        return _MIDDLE + _REACH * max(-1.0, min(1.0, share))

    @property
    def decimals(self) -> int:
        """As many as the interval's half width has certain ones: its first digit, the second too
        where the first is 1 or 2; at least three below 1."""
        half = (self.high - self.low) / 2
        if half >= 1 or half == 0:
            return 3 if half == 0 else 2 if half < 10 else 1
        place = math.ceil(-math.log10(half))
        second = half * 10.0**place < 3
        return min(6, max(3, place + int(second)))


def compact(coefficients: Coefficients) -> str:
    """Coefficients in one line."""
    series = {
        "c_eps": coefficients.model,
        "c_x": coefficients.sample,
        "average": coefficients.average,
    }
    return "; ".join(f"{name} {listed(numbers)}" for name, numbers in series.items() if numbers)


def listed(numbers: Iterable[float]) -> str:
    """Numbers as a person reads them."""
    return ", ".join(f"{number:.4g}" for number in numbers)


def figure(value: float | None) -> str:
    """A mean: three decimals, or three digits where it is small."""
    if value is None:
        return ""
    text = f"{value:.3f}" if abs(value) >= 0.01 or value == 0 else f"{value:.3g}"
    return text.replace("-", "−")


def signed(value: float, decimals: int) -> str:
    """With its sign, and so many decimals."""
    return f"{value:+.{decimals}f}".replace("-", "−")


def percent(share: float, sign: str = "") -> str:
    """A share in percent, with its own sign or another."""
    return f"{sign or ('+' if share >= 0 else '−')}{abs(share):.0%}".replace("%", " %")


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    for unit, size in (("days", 172_800), ("h", 7200), ("min", 120)):
        if seconds >= size:
            return f"{seconds / {'days': 86_400, 'h': 3600, 'min': 60}[unit]:.1f} {unit}"
    return f"{seconds:.0f} s"


def count(number: int, noun: str) -> str:
    """A number of things."""
    return f"{number:,} {noun}" + ("s" if number != 1 else "")
