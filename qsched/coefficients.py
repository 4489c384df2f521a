"""The numbers that a calibration searches for: c_eps and c_x of every step.

    x_{i+1} = step(c_eps[i] * eps_i, t_i, c_x[i] * x_i)          (arXiv 2509.01624)

    Coefficients.identity(steps=4)                    # changes nothing
    ramp = parametrisation("ramp", steps=4)           # two free numbers
    ramp.coefficients([1.1, 0.95])                    # search vector -> Coefficients
    ramp.coefficients({"c_eps_first": 1.1, "c_x_first": 0.95})

Plain Python: neither torch nor numpy is imported here.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from os import PathLike
from pathlib import Path
from reprlib import repr as short
from typing import Any, Self

from qsched.errors import CoefficientsError

FORMAT = "qsched-coefficients"
VERSION = 1
_KEYS = ("format", "version", "steps", "model", "sample")


@dataclass(frozen=True)
class Coefficients:
    """One c_eps (`model`) and one c_x (`sample`) per step, in the order of the steps.

    `model`, `sample`: finite numbers above 0, equally many, at least one; kept as tuples of
    float. Raises `CoefficientsError` otherwise. All ones change nothing, to the bit.
    """

    model: tuple[float, ...]
    sample: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", _series("model", self.model))
        object.__setattr__(self, "sample", _series("sample", self.sample))
        if len(self.model) != len(self.sample):
            raise CoefficientsError(
                f"{len(self.model)} model and {len(self.sample)} sample coefficients; expected "
                "equally many, one of both per step"
            )

    @classmethod
    def identity(cls, steps: int) -> Self:
        """Ones: the unmodified schedule."""
        return cls.constant(steps, 1.0, 1.0)

    @classmethod
    def constant(cls, steps: int, model: float, sample: float) -> Self:
        """The same pair at every step."""
        return cls(_constant(model, steps=steps), _constant(sample, steps=steps))

    @classmethod
    def ramp(cls, steps: int, model: float, sample: float) -> Self:
        """The given pair at the first step, linear to 1 at the last; at one step, the pair."""
        return cls.ramp2(steps, model, 1.0, sample, 1.0)

    @classmethod
    def ramp2(
        cls,
        steps: int,
        model_first: float,
        model_last: float,
        sample_first: float,
        sample_last: float,
    ) -> Self:
        """Linear from the first step's pair to the last step's; at one step, the first pair."""
        return cls(
            _line(model_first, model_last, steps=steps),
            _line(sample_first, sample_last, steps=steps),
        )

    @property
    def steps(self) -> int:
        """The number of denoising steps that these coefficients are for."""
        return len(self.model)

    @property
    def is_identity(self) -> bool:
        """Whether every coefficient is exactly 1."""
        return set(self.model + self.sample) == {1.0}

    def require_steps(self, steps: int) -> None:
        """Raises `CoefficientsError` unless a schedule of `steps` steps is what these are for."""
        if steps != self.steps:
            raise CoefficientsError(
                f"coefficients are for {self.steps} steps, the schedule has {steps}; "
                f"sample with {self.steps} steps, or calibrate for {steps}"
            )

    def to_json(self, provenance: Mapping[str, Any] | None = None) -> str:
        """Versioned JSON that `from_json` reads back exactly.

        `provenance`: any JSON object that tells where the numbers come from; kept for people and
        tools, ignored by `from_json`. Raises `CoefficientsError` if JSON can't hold it.
        """
        values = (FORMAT, VERSION, self.steps, self.model, self.sample)
        document: dict[str, Any] = dict(zip(_KEYS, values, strict=True))
        if provenance is not None:
            document["provenance"] = dict(provenance)
        try:
            return json.dumps(document, indent=2, allow_nan=False) + "\n"
        except (TypeError, ValueError) as error:
            raise CoefficientsError(f"provenance: {error}; expected what JSON can hold") from None

    @classmethod
    def from_json(cls, text: str, place: str = "coefficients") -> Self:
        """The coefficients that `to_json` wrote.

        Raises `CoefficientsError`, naming `place`, for broken JSON, another format, a newer
        version, missing or unknown keys, and values that `Coefficients` refuses.
        """
        try:
            document = _document(text)
            coefficients = cls(document["model"], document["sample"])
            steps = document["steps"]
            if type(steps) is not int or steps != coefficients.steps:
                raise CoefficientsError(
                    f"steps = {short(steps)}; expected {coefficients.steps}, the number of "
                    "coefficients; export the file again"
                )
        except CoefficientsError as error:
            raise CoefficientsError(f"{place}: {error}") from None
        return coefficients

    def save(self, path: str | PathLike[str], provenance: Mapping[str, Any] | None = None) -> None:
        """Writes `to_json` to a file; raises `CoefficientsError`, naming it, if it can't."""
        text = self.to_json(provenance)
        try:
            Path(path).write_text(text, encoding="utf-8")
        except OSError as error:
            raise CoefficientsError(f"{path}: cannot be written: {error}") from None

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Reads what `save` wrote; raises `CoefficientsError`, naming the file."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CoefficientsError(f"{path}: cannot be read: {error}") from None
        return cls.from_json(text, place=str(path))


@dataclass(frozen=True)
class Bounds:
    """The closed interval of a search for each coefficient: 0 < low <= 1 <= high, low < high."""

    low: float = 0.6
    high: float = 1.4

    def __post_init__(self) -> None:
        object.__setattr__(self, "low", _number("low", self.low))
        object.__setattr__(self, "high", _number("high", self.high))
        if not self.low <= 1.0 <= self.high or self.low == self.high:
            raise CoefficientsError(
                f"bounds [{self.low}, {self.high}]; expected low < high and 1 between them, "
                "so that the unmodified schedule can be tried; widen them"
            )

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Parametrisation:
    """The free numbers of a search, and the coefficients that they stand for.

    What a search, a study and an export use: `name`, `steps`, ordered `names`, `dimension`,
    `identity` (the vector that changes nothing), `coefficients` (vector, or mapping by name, to
    correction) and its inverse `vector`. Here a correction is a pair of scalars per step; another
    class with these members may stand for another kind.
    """

    name: str
    steps: int

    def __post_init__(self) -> None:
        if self.name not in _PROFILES:
            raise CoefficientsError(
                f"parametrisation = {short(self.name)}; expected one of {', '.join(_PROFILES)}"
            )
        if _steps(self.steps) < self._profile.min_steps:
            raise CoefficientsError(
                f"parametrisation = {self.name!r} at {self.steps} step; expected at least "
                f"{self._profile.min_steps} steps; use 'constant'"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters in the vector's order: those of c_eps, then those of c_x."""
        labels = self._profile.labels(self.steps)
        return tuple(series + label for series in ("c_eps", "c_x") for label in labels)

    @property
    def dimension(self) -> int:
        """The number of free numbers."""
        return len(self.names)

    @property
    def identity(self) -> tuple[float, ...]:
        """The vector of the unmodified schedule: ones."""
        return (1.0,) * self.dimension

    def coefficients(self, values: Mapping[str, float] | Sequence[float]) -> Coefficients:
        """The coefficients of a vector, or of a mapping with exactly the keys `names`."""
        vector = self._vector(values)
        half = self.dimension // 2
        grow = self._profile.grow
        return Coefficients(
            tuple(grow(*vector[:half], steps=self.steps)),
            tuple(grow(*vector[half:], steps=self.steps)),
        )

    def vector(self, coefficients: Coefficients) -> tuple[float, ...]:
        """The vector whose `coefficients` these are; `CoefficientsError` if there is none."""
        coefficients.require_steps(self.steps)
        read = self._profile.read
        vector = (*read(coefficients.model), *read(coefficients.sample))
        again = self.coefficients(vector)
        close = partial(math.isclose, rel_tol=1e-12)
        given = coefficients.model + coefficients.sample
        if not all(map(close, again.model + again.sample, given)):
            raise CoefficientsError(
                f"model = {short(coefficients.model)}, sample = {short(coefficients.sample)}; "
                f"expected what {self.name!r} can express; use 'per-step'"
            )
        return vector

    @property
    def _profile(self) -> "_Profile":
        return _PROFILES[self.name]

    def _vector(self, values: Mapping[str, float] | Sequence[float]) -> list[float]:
        if isinstance(values, Mapping) and set(values) == set(self.names):
            values = [values[name] for name in self.names]
        if isinstance(values, Mapping) or len(values) != self.dimension:
            raise CoefficientsError(
                f"{self.name}: {short(values)}; expected {self.dimension} numbers: "
                f"{', '.join(self.names)}"
            )
        return [_number(name, value) for name, value in zip(self.names, values, strict=True)]


def parametrisation(name: str, steps: int) -> Parametrisation:
    """The parametrisation called `constant`, `ramp`, `ramp2` or `per-step`, for `steps` steps."""
    return Parametrisation(name, steps)


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


def _constant(value: float, *, steps: int) -> tuple[float, ...]:
    return (value,) * _steps(steps)


def _line(first: float, last: float = 1.0, *, steps: int) -> tuple[float, ...]:
    """Linear from first to last; both ends are exact, and so is a line from 1 to 1."""
    first, last = _number("first", first), _number("last", last)
    inner = (first + (last - first) * i / (steps - 1) for i in range(1, _steps(steps) - 1))
    return (first, *inner, last)[:steps]


_PROFILES: Mapping[str, _Profile] = {
    "constant": _Profile(lambda n: ("",), _constant, lambda c: c[:1]),
    "ramp": _Profile(lambda n: ("_first",), _line, lambda c: c[:1]),
    "ramp2": _Profile(lambda n: ("_first", "_last"), _line, lambda c: (c[0], c[-1]), min_steps=2),
    "per-step": _Profile(lambda n: [f"[{i}]" for i in range(n)], lambda *c, steps: c, lambda c: c),
}


def _series(name: str, values: object) -> tuple[float, ...]:
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise CoefficientsError(f"{name} = {short(values)}; expected a list, one number per step")
    series = tuple(_number(f"{name}[{i}]", value) for i, value in enumerate(values))
    if not series:
        raise CoefficientsError(f"{name} = []; expected one number per step")
    return series


def _number(name: str, value: object) -> float:
    """`value` as a float, if it is a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise CoefficientsError(
            f"{name} = {short(value)}; expected a number, such as 1.0, not {type(value).__name__}"
        )
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or number <= 0.0:
        raise CoefficientsError(f"{name} = {number}; expected a finite number above 0")
    return number


def _steps(steps: object) -> int:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise CoefficientsError(f"steps = {short(steps)}; expected a whole number of 1 or more")
    return steps


def _document(text: str) -> dict[str, Any]:
    """The JSON object in `text`, if it has this format, a version known here and its keys."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CoefficientsError(f"broken JSON: {error}; export the file again") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise CoefficientsError(f"expected JSON with format = {FORMAT!r}, as qsched exports it")
    version = document.get("version")
    if type(version) is not int or not 1 <= version <= VERSION:
        raise CoefficientsError(
            f"version = {short(version)}; this qsched reads 1 to {VERSION}; upgrade qsched"
        )
    odd = (document.keys() - {"provenance"}) ^ set(_KEYS)
    if odd:
        raise CoefficientsError(
            f"missing or unknown: {', '.join(sorted(odd))}; expected {', '.join(_KEYS)}, "
            "perhaps provenance"
        )
    if not isinstance(document.get("provenance", {}), dict):
        raise CoefficientsError("provenance: expected an object {...}; mend it or leave it out")
    return document


DEFAULT_BOUNDS = Bounds()
"""The bounds of a search that names none."""
