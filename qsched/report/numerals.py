"""How the report writes numbers: means, differences with their intervals, times, coefficients."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from markupsafe import Markup

from qsched.report import plots


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
    def of(cls, found: Mapping[str, Any], reach: float = 0.0, better: int = 1) -> Self:
        """From the report's JSON: {difference, interval} or {mean, low, high}."""
        low, high = found["interval"] if "interval" in found else (found["low"], found["high"])
        mean = found["difference"] if "difference" in found else found["mean"]
        return cls(mean, low, high, reach or max(abs(low), abs(high)), better)

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
    def bar(self) -> Markup:
        """The difference as a small figure."""
        return Markup(
            plots.interval(self.mean, self.low, self.high, self.reach, better=self.better)
        )

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


def compact(coefficients: Mapping[str, Sequence[float]]) -> str:
    """Coefficients in one line."""
    names = {"model": "c_eps", "sample": "c_x", "average": "average"}
    return "; ".join(
        f"{label} {plots.listed(coefficients[name])}"
        for name, label in names.items()
        if coefficients.get(name)
    )


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
