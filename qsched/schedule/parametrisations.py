"""The spaces of a search: which numbers are free, and the coefficients that they stand for.

    ramp = parametrisation("ramp", steps=4)           # two free numbers
    ramp.coefficients([1.1, 0.95])                    # search vector -> Coefficients
    ramp.coefficients({"c_eps_first": 1.1, "c_x_first": 0.95})
    parametrisation("ramp+x0-average", steps=4)       # five: an average of x0 predictions as well

Plain Python: neither torch nor numpy is imported here.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from reprlib import repr as short

from qsched.errors import CoefficientsError
from qsched.schedule.coefficients import Coefficients, finite, line, whole_steps

Pair = tuple[float, float]


@dataclass(frozen=True)
class Bounds:
    """The closed interval of a search for each c_eps and c_x: 0 < low <= 1 <= high, low < high."""

    low: float = 0.8
    high: float = 1.2

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            number = finite(name, getattr(self, name), "a finite number above 0")
            if number <= 0.0:
                raise CoefficientsError(f"{name} = {number}; expected a finite number above 0")
            object.__setattr__(self, name, number)
        if not self.low <= 1.0 <= self.high or self.low == self.high:
            raise CoefficientsError(
                f"bounds [{self.low}, {self.high}]; expected low < high and 1 between them, "
                "so that the unmodified schedule can be tried; widen them"
            )

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


DECAY = 0.4
"""An average that repairs without any search: docs/explanation/repair.md."""


@dataclass(frozen=True)
class Parametrisation:
    """The free numbers of a search, and the coefficients that they stand for.

    What a search, a study and an export use: `name`, `steps`, ordered `names`, `dimension`,
    `identity` (the vector that changes nothing), `box` (the interval of each number), `guess` (a
    vector worth trying first, if there is one), `pinned` (what every trial but the identity has),
    `coefficients` (vector, or mapping by name, to correction) and its inverse `vector`. Raises
    `CoefficientsError` for an unknown name or too few steps.
    """

    name: str
    steps: int

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise CoefficientsError(
                f"parametrisation = {short(self.name)}; expected one of {', '.join(NAMES)}"
            )
        whole_steps(self.steps)
        least = max([p.min_steps for p in (self._profile, self._average) if p], default=1)
        if self.steps < least:
            raise CoefficientsError(
                f"parametrisation = {self.name!r} at {self.steps} step; expected at least "
                f"{least} steps; use 'constant'"
            )

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The parameters in the vector's order: those of c_eps, of c_x, of the average."""
        labels = self._profile.labels(self.steps) if self._profile else ()
        scalars = [series + label for series in ("c_eps", "c_x") for label in labels]
        return (*scalars, *(self._average.names(self.steps) if self._average else ()))

    @property
    def dimension(self) -> int:
        """The number of free numbers."""
        return len(self.names)

    @property
    def identity(self) -> tuple[float, ...]:
        """The vector of the unmodified schedule: ones, and no average."""
        return (1.0,) * self._scalars + (0.0,) * (self.dimension - self._scalars)

    @property
    def guess(self) -> tuple[float, ...] | None:
        """The vector whose weights fall by `DECAY` a step; None in spaces without an average."""
        if self._average is None:
            return None
        ratio = self._average is _DECAY
        fading = (DECAY,) if ratio else self._average.read(_fading(DECAY, steps=self.steps))
        return (1.0,) * self._scalars + tuple(fading)

    @property
    def pinned(self) -> dict[str, float]:
        """The numbers that are not searched: with `x0-fade` every trial but the identity fades."""
        return {"x0_decay": DECAY} if self.name.endswith("+x0-fade") else {}

    def box(self, bounds: Bounds) -> tuple[Pair, ...]:
        """The closed interval of each number; `bounds` are those of c_eps and c_x."""
        average = (self._average.interval if self._average else (0.0, 0.0),)
        return ((bounds.low, bounds.high),) * self._scalars + average * (
            self.dimension - self._scalars
        )

    def coefficients(self, values: Mapping[str, float] | Sequence[float]) -> Coefficients:
        """The coefficients of a vector, or of a mapping with exactly the keys `names`."""
        vector = self._vector(values)
        half, scalars = self._scalars // 2, Coefficients.identity(self.steps)
        if self._profile:
            grow = partial(self._profile.grow, steps=self.steps)
            scalars = Coefficients(tuple(grow(*vector[:half])), tuple(grow(*vector[half:][:half])))
        if self._average is None:
            return scalars
        return scalars.averaged(self._average.grow(*vector[self._scalars :], steps=self.steps))

    def vector(self, coefficients: Coefficients) -> tuple[float, ...]:
        """The vector whose `coefficients` these are; `CoefficientsError` if there is none."""
        coefficients.require_steps(self.steps)
        weights = coefficients.average or (0.0,) * (self.steps - 1) + (1.0,)
        read = self._profile.read if self._profile else lambda _: ()
        vector = (
            *read(coefficients.model),
            *read(coefficients.sample),
            *(self._average.read(weights) if self._average else ()),
        )
        again = self.coefficients(vector)
        close = partial(math.isclose, rel_tol=1e-12, abs_tol=1e-12)
        given = coefficients.model + coefficients.sample + weights
        back = again.model + again.sample + (again.average or (0.0,) * (self.steps - 1) + (1.0,))
        if not all(map(close, back, given)):
            raise CoefficientsError(
                f"{', '.join(f'{k} = {short(v)}' for k, v in coefficients.to_dict().items())}; "
                f"expected what {self.name!r} can express; use 'per-step', or 'per-step+x0-average'"
            )
        return vector

    @property
    def _profile(self) -> "_Profile | None":
        return _PROFILES.get(self.name.partition("+")[0])

    @property
    def _average(self) -> "_Average | None":
        return _AVERAGES.get(self.name.rpartition("+")[2])

    @property
    def _scalars(self) -> int:
        """The free numbers that are c_eps or c_x."""
        return 2 * len(self._profile.labels(self.steps)) if self._profile else 0

    def _vector(self, values: Mapping[str, float] | Sequence[float]) -> list[float]:
        if isinstance(values, Mapping) and set(values) == set(self.names):
            values = [values[name] for name in self.names]
        if isinstance(values, Mapping) or len(values) != self.dimension:
            raise CoefficientsError(
                f"{self.name}: {short(values)}; expected {self.dimension} numbers: "
                f"{', '.join(self.names)}"
            )
        return [finite(name, value) for name, value in zip(self.names, values, strict=True)]


def parametrisation(name: str, steps: int) -> Parametrisation:
    """The parametrisation called `name`, one of `NAMES`, for `steps` steps."""
    return Parametrisation(name, steps)


def automatic(steps: int, *, averages: bool) -> str:
    """The name of what repaired most on the demo model: docs/explanation/repair.md.

    `averages`: whether the scheduler is known to make x0 predictions that can be averaged.
    """
    if steps == 2 and averages:
        return "per-step+x0-average"
    return "constant" if steps == 1 else "per-step"


@dataclass(frozen=True)
class _Profile:
    """How one series of coefficients (c_eps, or c_x) grows out of its free numbers.

    `labels(steps)`: what follows "c_eps" in their names. `grow(*values, steps=)`: the series.
    `read(series)`: the values that it grew from, if it has this profile at all.
    """

    labels: Callable[[int], Sequence[str]]
    grow: Callable[..., Sequence[float]]
    read: Callable[[tuple[float, ...]], Sequence[float]]
    min_steps: int = 1


@dataclass(frozen=True)
class _Average:
    """How the weights of the x0 predictions grow out of free numbers that are 0 for none.

    `names(steps)`: theirs. `interval`: of each, without negative weights: those extrapolate, which
    sharpens any model's images and repairs nothing. `grow(*values, steps=)`: all weights, with the
    sum one. `read(weights)`: the inverse.
    """

    names: Callable[[int], Sequence[str]]
    interval: Pair
    grow: Callable[..., tuple[float, ...]]
    read: Callable[[tuple[float, ...]], Sequence[float]]
    min_steps: int = 2


def _fading(ratio: float, *, steps: int) -> tuple[float, ...]:
    """Each x0 prediction weighs `ratio` of the next one: from the last alone (0) to the mean of all
    (1)."""
    weights = [ratio ** (steps - 1 - step) for step in range(steps)]
    return _completed([weight / math.fsum(weights) for weight in weights[:-1]])


def _free(*early: float, steps: int) -> tuple[float, ...]:
    return _completed(early)


def _completed(early: Sequence[float]) -> tuple[float, ...]:
    """The weights of all steps but the last, which gets what is left of one."""
    return (*early, 1.0 - math.fsum(early))


_PROFILES: Mapping[str, _Profile] = {
    "constant": _Profile(lambda n: ("",), lambda v, steps: (v,) * steps, lambda c: c[:1]),
    "ramp": _Profile(lambda n: ("_first",), line, lambda c: c[:1]),
    "ramp2": _Profile(lambda n: ("_first", "_last"), line, lambda c: (c[0], c[-1]), min_steps=2),
    "per-step": _Profile(lambda n: [f"[{i}]" for i in range(n)], lambda *c, steps: c, lambda c: c),
}

_DECAY = _Average(
    lambda n: ("x0_decay",), (0.0, 0.5), _fading, lambda w: (w[-2] / (w[-1] or math.inf),)
)

_AVERAGES: Mapping[str, _Average] = {
    "x0-decay": _DECAY,
    "x0-fade": _DECAY,
    "x0-average": _Average(
        lambda n: [f"x0[{i}]" for i in range(n - 1)], (0.0, 0.75), _free, lambda w: w[:-1]
    ),
}

NAMES = (
    *_PROFILES,
    *(name for name in _AVERAGES if name != "x0-fade"),  # which has nothing to search by itself
    *(f"{profile}+{average}" for profile in _PROFILES for average in _AVERAGES),
)
"""All parametrisations: of c_eps and c_x, of the average over x0 predictions, of both."""

DEFAULT_BOUNDS = Bounds()
"""The bounds of a search that names none."""
