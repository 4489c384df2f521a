"""What a calibration finds: c_eps and c_x of every step, and the weights of an x0 average.

    x_{i+1} = step(c_eps[i] * eps_i, t_i, c_x[i] * x_i)          (arXiv 2509.01624)
    image   = decode(sum_i w[i] * x0_i)                          x0_i: step i's guess of the end

    Coefficients.identity(steps=4)                    # changes nothing
    Coefficients.ramp(4, 1.1, 0.95)
    Coefficients.identity(4).averaged([0.25] * 4)     # the mean of the steps' x0 predictions

Plain Python: neither torch nor numpy is imported here.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from os import PathLike
from pathlib import Path
from reprlib import repr as short
from typing import Any, Self

from qsched.errors import CoefficientsError, DocumentError, OutputError, one_line
from qsched.files import outputs
from qsched.files.documents import from_json, read
from qsched.notebooks import table

FORMAT = "qsched-coefficients"
VERSION = 2
"""Of what has an average; without one a file is of version 1."""
_KEYS = ("format", "version", "steps", "model", "sample")
_OPTIONAL = {"average", "provenance", "digest"}


@dataclass(frozen=True, repr=False)
class Coefficients:
    """One c_eps (`model`) and one c_x (`sample`) per step, in the order of the steps.

    `model`, `sample`: finite numbers above 0, equally many, at least one. `average`: the weights of
    the steps' x0 predictions in the final latents, finite, with the sum one; () is the last step
    alone, as are the weights (0, ..., 0, 1). All are kept as tuples of float. Raises
    `CoefficientsError` otherwise. Ones and the last step alone change nothing, to the bit.
    """

    model: tuple[float, ...]
    sample: tuple[float, ...]
    average: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", _series("model", self.model))
        object.__setattr__(self, "sample", _series("sample", self.sample))
        if len(self.model) != len(self.sample):
            raise CoefficientsError(
                f"{len(self.model)} model and {len(self.sample)} sample coefficients; expected "
                "equally many, one of both per step"
            )
        object.__setattr__(self, "average", _weights(self.average, self.steps))

    def __repr__(self) -> str:
        """Short, so with four digits: `to_dict` has them all."""
        told = "; ".join(f"{name} {', '.join(row)}" for name, row in self._shown())
        return f"<{type(self).__name__} {told}>"

    def _repr_html_(self) -> str:
        heads, rows = zip(*self._shown(), strict=True)
        steps = ((str(step), *row) for step, row in enumerate(zip(*rows, strict=True), start=1))
        return table(type(self).__name__, steps, ("step", *heads))

    def _shown(self) -> list[tuple[str, list[str]]]:
        series = {"c_eps": self.model, "c_x": self.sample, "average": self.average}
        return [(name, [f"{each:.4g}" for each in row]) for name, row in series.items() if row]

    @classmethod
    def identity(cls, steps: int) -> Self:
        """Ones: the unmodified schedule."""
        return cls.constant(steps, 1.0, 1.0)

    @classmethod
    def constant(cls, steps: int, model: float, sample: float) -> Self:
        """The same pair at every step."""
        count = whole_steps(steps)
        return cls((model,) * count, (sample,) * count)

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
            line(model_first, model_last, steps=steps),
            line(sample_first, sample_last, steps=steps),
        )

    def averaged(self, weights: Sequence[float] = ()) -> Self:
        """The same c_eps and c_x with these weights of the x0 predictions; () for none."""
        return replace(self, average=tuple(weights))

    @property
    def scalars(self) -> Self:
        """c_eps and c_x without the average: what decides where the steps go."""
        return self.averaged()

    @property
    def steps(self) -> int:
        """The number of denoising steps that these coefficients are for."""
        return len(self.model)

    @property
    def is_identity(self) -> bool:
        """Whether every coefficient is exactly 1, and the last step stands alone."""
        return set(self.model + self.sample) == {1.0} and not self.average

    def require_steps(self, steps: int) -> None:
        """Raises `CoefficientsError` unless a schedule of `steps` steps is what these are for."""
        if steps != self.steps:
            raise CoefficientsError(
                f"coefficients are for {self.steps} steps, the schedule has {steps}; "
                f"sample with {self.steps} steps, or calibrate for {steps}"
            )

    def to_dict(self) -> dict[str, list[float]]:
        """What reports say of them: model, sample, and average where there is one."""
        series = {"model": list(self.model), "sample": list(self.sample)}
        return series | ({"average": list(self.average)} if self.average else {})

    @classmethod
    def from_dict(cls, series: Mapping[str, Sequence[float]]) -> Self:
        """What `to_dict` wrote."""
        return cls(**{name: tuple(values) for name, values in series.items()})

    def to_json(self, provenance: Mapping[str, Any] | None = None) -> str:
        """Versioned JSON that `from_json` reads back exactly.

        `provenance`: any JSON object that tells where the numbers come from; kept for people and
        tools, ignored by `from_json`. A digest of all of it is added, by which `from_json` sees a
        later change. Raises `CoefficientsError` if JSON can't hold the provenance.
        """
        version = VERSION if self.average else 1
        document: dict[str, Any] = {"format": FORMAT, "version": version, "steps": self.steps}
        document |= self.to_dict()
        if provenance is not None:
            document["provenance"] = dict(provenance)
        try:
            document["digest"] = _digest(json.dumps(document, allow_nan=False))
            return json.dumps(document, indent=2, allow_nan=False) + "\n"
        except (TypeError, ValueError) as error:
            raise CoefficientsError(f"provenance: {error}; expected what JSON can hold") from None

    @classmethod
    def from_json(cls, text: str, place: str = "coefficients") -> Self:
        """The coefficients that `to_json` wrote, or a person without the digest.

        Raises `CoefficientsError`, naming `place`, for broken JSON, another format, a newer
        version, missing or unknown keys, values that `Coefficients` refuses, and a digest that
        doesn't fit the rest.
        """
        try:
            document = _document(text)
            average = document.get("average", ())
            coefficients = cls(document["model"], document["sample"], average)
            steps = document["steps"]
            if type(steps) is not int or steps != coefficients.steps:
                raise CoefficientsError(
                    f"steps = {short(steps)}; expected {coefficients.steps}, the number of "
                    "coefficients; export the file again"
                )
        except CoefficientsError as error:
            raise CoefficientsError(one_line(f"{place}: {error}")) from None
        return coefficients

    def save(self, path: str | PathLike[str], provenance: Mapping[str, Any] | None = None) -> None:
        """Writes `to_json` to a file; raises `CoefficientsError`, naming it, if it can't."""
        text = self.to_json(provenance)
        try:
            outputs.write(Path(path), text)
        except OutputError as error:
            raise CoefficientsError(str(error)) from None

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Reads what `save` wrote; raises `CoefficientsError`, naming the file."""
        try:
            text = read(path)
        except DocumentError as error:
            raise CoefficientsError(f"{path}: cannot be read: {error}") from None
        return cls.from_json(text, place=str(path))


def _series(name: str, values: object) -> tuple[float, ...]:
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise CoefficientsError(f"{name} = {short(values)}; expected a list, one number per step")
    series = tuple(_number(f"{name}[{i}]", value) for i, value in enumerate(values))
    if not series:
        raise CoefficientsError(f"{name} = []; expected one number per step")
    return series


def _weights(values: object, steps: int) -> tuple[float, ...]:
    """The weights of an average over `steps` x0 predictions; () for those of the last alone."""
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise CoefficientsError(f"average = {short(values)}; expected a list, one weight per step")
    weights = tuple(finite(f"average[{i}]", value) for i, value in enumerate(values))
    if not weights:
        return ()
    if len(weights) != steps:
        raise CoefficientsError(f"average: {len(weights)} weights; expected {steps}, one per step")
    try:
        total = math.fsum(weights)
    except OverflowError:
        total = math.inf
    if not math.isclose(total, 1.0, abs_tol=1e-6):
        raise CoefficientsError(f"average = {short(weights)} adds up to {total:.6g}; expected 1")
    return weights if any(weights[:-1]) else ()


def _number(name: str, value: object) -> float:
    """`value` as a float, if it is a finite number above 0."""
    number = finite(name, value, "a finite number above 0")
    if number <= 0.0:
        raise CoefficientsError(f"{name} = {number}; expected a finite number above 0")
    return number


def finite(name: str, value: object, expected: str = "a finite number") -> float:
    """`value` as a float, if it is a finite number; raises `CoefficientsError` naming it."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise CoefficientsError(
            f"{name} = {short(value)}; expected a number, such as 1.0, not {type(value).__name__}"
        )
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise CoefficientsError(f"{name} = {number}; expected {expected}")
    return number


def line(first: float, last: float = 1.0, *, steps: int) -> tuple[float, ...]:
    """Linear from first to last; both ends are exact, and so is a line from 1 to 1."""
    first, last = _number("first", first), _number("last", last)
    inner = (first + (last - first) * i / (steps - 1) for i in range(1, whole_steps(steps) - 1))
    return (first, *inner, last)[:steps]


def whole_steps(steps: object) -> int:
    """`steps`, if it is a whole number of 1 or more; raises `CoefficientsError` otherwise."""
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise CoefficientsError(f"steps = {short(steps)}; expected a whole number of 1 or more")
    return steps


def _document(text: str) -> dict[str, Any]:
    """The JSON object in `text`, if it has this format, a version known here and its keys."""
    try:
        document = from_json(text)
    except DocumentError as error:
        raise CoefficientsError(f"{error}, or export the file again") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise CoefficientsError(f"expected JSON with format = {FORMAT!r}, as qsched exports it")
    version = document.get("version")
    if type(version) is not int or not 1 <= version <= VERSION:
        raise CoefficientsError(
            f"version = {short(version)}; this qsched reads 1 to {VERSION}; upgrade qsched"
        )
    odd = (document.keys() - _OPTIONAL) ^ set(_KEYS)
    if odd:
        raise CoefficientsError(
            f"missing or unknown: {', '.join(sorted(odd))}; expected {', '.join(_KEYS)}, "
            "perhaps average, provenance and digest"
        )
    if not isinstance(document.get("provenance", {}), dict):
        raise CoefficientsError("provenance: expected an object {...}; mend it or leave it out")
    if "digest" in document and document["digest"] != _digest(text):
        raise CoefficientsError(
            f"changed since it was written: digest = {short(document['digest'])}, and the content "
            f"has {short(_digest(text))}; export again, or take the digest out to keep the change"
        )
    return document


def _digest(text: str) -> str:
    """Of a JSON document but for its digest, however it is laid out and its whole numbers written:
    the SHA-256 of its compact form with sorted keys and every number a float."""
    document = json.loads(text, parse_int=float)
    document.pop("digest", None)
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(canonical.encode()).hexdigest()}"
