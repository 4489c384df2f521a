"""A study file: TOML in, one frozen and validated `Study` out, and its fingerprint.

Every problem of a file is reported at once, each with its key. Relative paths in a study file are
relative to the file. The fingerprint names all that a score depends on; a study is resumed only
under the same one.
"""

import difflib
import hashlib
import json
import tomllib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from qsched import catalog, jaq
from qsched.coefficients import (
    DEFAULT_BOUNDS,
    Bounds,
    Parametrisation,
    parametrisation,
)
from qsched.errors import ConfigError, QschedError
from qsched.prompts import Prompt, choose, read_captions, with_seeds

LIBRARIES = ("torch", "diffusers", "transformers", "open_clip_torch", "optuna", "numpy")
"""Packages whose version can change a score or a proposal."""

Seed = Annotated[int, Field(ge=0, lt=2**63)]


def _known(names: Collection[str]) -> AfterValidator:
    """Accepts one of `names`."""

    def check(name: str) -> str:
        if name not in names:
            raise ValueError(f"expected one of {', '.join(names)}")
        return name

    return AfterValidator(check)


def _accepted_by(check: Callable[[Any], object]) -> AfterValidator:
    """Accepts what `check` takes without a QschedError; its words become the problem's."""

    def validate(value: Any) -> Any:
        try:
            check(value)
        except QschedError as error:
            raise ValueError(str(error)) from error
        return value

    return AfterValidator(validate)


class Section(BaseModel):
    """A table of the study file: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Model(Section):
    """`[model]`: which pipeline, in which precision."""

    name: Annotated[str, _accepted_by(catalog.model_entry)]
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    part: Literal["unet", "transformer"] | None = None


class Sampling(Section):
    """`[sampling]`: how the pipeline is called. What is left out comes from the model's entry."""

    steps: int = Field(ge=1, le=64)
    guidance_scale: float | None = Field(default=None, ge=0, le=50)
    height: int | None = Field(default=None, ge=8, le=4096)
    width: int | None = Field(default=None, ge=8, le=4096)
    sigmas: tuple[float, ...] | None = None
    call: Mapping[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_sigma_a_step(self) -> "Sampling":
        if self.sigmas is not None and len(self.sigmas) != self.steps:
            raise ValueError(f"sigmas has {len(self.sigmas)} numbers; expected one a step")
        return self

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of the pipeline's ``__call__`` that are the same in every batch."""
        named = {
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "height": self.height,
            "width": self.width,
            "sigmas": list(self.sigmas) if self.sigmas else None,
        }
        return {key: value for key, value in named.items() if value is not None} | dict(self.call)


class Quantization(Section):
    """`[quantization]`: the scheme, and the layers (fnmatch patterns) treated otherwise."""

    scheme: Annotated[str, _known(catalog.SCHEMES)]
    skip: tuple[str, ...] = ()
    overrides: Mapping[str, Annotated[str, _known(catalog.SCHEMES)]] = Field(default_factory=dict)


class TermTable(Section):
    """One `[[objective.terms]]`."""

    scorer: Annotated[str, _known(catalog.SCORERS)]
    weight: float = Field(default=1.0, allow_inf_nan=False)


class ObjectiveTable(Section):
    """`[objective]`: the terms of JAQ and whether they are standardised."""

    preset: Literal["standardised", "plain"] = "standardised"
    terms: tuple[TermTable, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _each_scorer_once(self) -> "ObjectiveTable":
        names = [term.scorer for term in self.terms]
        if len(set(names)) < len(names):
            raise ValueError(f"a scorer stands there twice: {', '.join(names)}")
        return self


class Search(Section):
    """`[search]`: the space, the sampler and the budget."""

    parametrisation: Literal["constant", "ramp", "ramp2", "per-step"] = "ramp"
    bounds: Annotated[tuple[float, float], _accepted_by(lambda pair: Bounds(*pair))] = (
        DEFAULT_BOUNDS.low,
        DEFAULT_BOUNDS.high,
    )
    sampler: Literal["tpe", "random"] = "tpe"
    trials: int = Field(default=48, ge=1, le=100_000)
    seed: Seed = 0


class Prompts(Section):
    """`[prompts]`: captions in files or lists, and the seed of all noise."""

    calibration: str | tuple[str, ...]
    held_out: str | tuple[str, ...]
    calibration_count: int | None = Field(default=None, ge=2)
    held_out_count: int | None = Field(default=None, ge=2)
    held_out_seeds: int = Field(default=2, ge=1, le=64)
    seed: Seed = 0


class Validation(Section):
    """`[validation]`: the metrics that the search never sees."""

    metrics: tuple[Annotated[str, _known(catalog.METRICS)], ...]

    @model_validator(mode="after")
    def _one_is_independent(self) -> "Validation":
        if not any(catalog.METRICS[name].independent for name in self.metrics):
            names = [entry.name for entry in catalog.METRICS.values() if entry.independent]
            raise ValueError(f"none is independent of the search; add {' or '.join(names)}")
        return self


class Execution(Section):
    """`[execution]`: where and how fast; nothing here changes what a score means."""

    batch_size: int = Field(default=16, ge=1, le=1024)
    device: str = "auto"


class StudyFile(Section):
    """The tables of a study file, as written."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    model: Model
    sampling: Sampling
    quantization: Quantization
    objective: ObjectiveTable
    search: Search = Search()
    prompts: Prompts
    validation: Validation
    execution: Execution = Execution()


@dataclass(frozen=True)
class Study:
    """A validated study: the file's tables with every default and prompt filled in.

    Complete by itself: it is stored in the database as JSON, so a worker needs no file.
    """

    tables: StudyFile
    calibration: tuple[Prompt, ...]
    held_out: tuple[Prompt, ...]
    weights: str

    @property
    def name(self) -> str:
        """The study's name, unique in its database."""
        return self.tables.name

    @property
    def trials(self) -> int:
        """The budget: finished trials, the identity's among them."""
        return self.tables.search.trials

    @cached_property
    def parametrisation(self) -> Parametrisation:
        """The map between a search vector and coefficients."""
        return parametrisation(self.tables.search.parametrisation, self.tables.sampling.steps)

    @cached_property
    def bounds(self) -> Bounds:
        """The box that is searched, the same in every dimension."""
        return Bounds(*self.tables.search.bounds)

    @cached_property
    def objective(self) -> jaq.Objective:
        """JAQ as this study defines it; standardised ones still lack their units."""
        table = self.tables.objective
        terms = tuple(jaq.Term(term.scorer, term.weight) for term in table.terms)
        return jaq.Objective(terms, standardised=table.preset == "standardised")

    @property
    def scorers(self) -> tuple[str, ...]:
        """The scorers that a trial needs."""
        return tuple(term.scorer for term in self.tables.objective.terms)

    def renamed(self, name: str) -> "Study":
        """The same study under another name."""
        return _checked(self, {"name": name})

    def with_trials(self, trials: int) -> "Study":
        """The same study with another budget."""
        search = self.tables.search.model_dump() | {"trials": trials}
        return _checked(self, {"search": search})

    def fingerprint(self) -> dict[str, Any]:
        """All that a value of this study depends on, flat: {"sampling.steps": 4, ...}.

        The budget, the name, the batch size and the device are not in it: they change no score.
        """
        tables = self.tables.model_dump(mode="json", exclude={"name", "prompts", "execution"})
        tables["search"].pop("trials")
        keys = dict(_flat(tables))
        keys["model.weights"] = self.weights
        keys["prompts.calibration"] = _digest(self.calibration)
        keys["prompts.held_out"] = _digest(self.held_out)
        return keys | {f"versions.{name}": installed_version(name) for name in LIBRARIES}

    def to_json(self) -> str:
        """The whole study as JSON; `from_json` reads it back equal."""
        return json.dumps(
            {
                "tables": self.tables.model_dump(mode="json"),
                "calibration": [[prompt.text, prompt.seed] for prompt in self.calibration],
                "held_out": [[prompt.text, prompt.seed] for prompt in self.held_out],
                "weights": self.weights,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> "Study":
        """The study that `to_json` wrote."""
        stored = json.loads(text)
        return cls(
            tables=StudyFile.model_validate(stored["tables"]),
            calibration=tuple(Prompt(*pair) for pair in stored["calibration"]),
            held_out=tuple(Prompt(*pair) for pair in stored["held_out"]),
            weights=stored["weights"],
        )


def load_study(path: str | Path) -> Study:
    """Reads and validates a study file.

    Raises ConfigError that lists every problem, one a line, each beginning with the path and key.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; expected a study file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    problems: list[str] = []
    prompts: tuple[tuple[Prompt, ...], tuple[Prompt, ...]] = ((), ())
    tables = None
    try:
        tables = StudyFile.model_validate(content)
        entry = catalog.model_entry(tables.model.name)
        tables = _with_defaults(tables, entry)
    except ValidationError as error:
        problems += [_in_words(dict(problem)) for problem in error.errors()]
    except QschedError as error:
        problems.append(str(error))
    try:
        prompts = _prompts(Prompts.model_validate(content.get("prompts")), path.parent)
    except ValidationError:
        pass  # already among the problems of the whole file
    except QschedError as error:
        problems.append(str(error))
    if tables is None or problems:
        raise ConfigError("\n".join(f"{path}: {problem}" for problem in problems))
    calibration, held_out = prompts
    return Study(
        tables=tables,
        calibration=calibration,
        held_out=held_out,
        weights=catalog.weights_identity(entry),
    )


def sampling_of(entry: catalog.ModelEntry, sampling: Sampling) -> Sampling:
    """`sampling` with what it leaves out filled in from the model's entry.

    Raises ConfigError if the model wasn't trained for this number of steps.
    """
    steps = sampling.steps
    if entry.steps and steps not in entry.steps:
        allowed = ", ".join(map(str, entry.steps))
        raise ConfigError(f"sampling.steps = {steps}; {entry.name} was trained for {allowed} steps")
    sigmas = sampling.sigmas
    if sigmas is None and entry.uniform_sigmas:
        sigmas = tuple(1 - step / steps for step in range(steps))
    return sampling.model_copy(
        update={
            "guidance_scale": _first(sampling.guidance_scale, entry.guidance_scale),
            "height": _first(sampling.height, entry.height),
            "width": _first(sampling.width, entry.width),
            "sigmas": sigmas,
            "call": {**entry.call, **sampling.call},
        }
    )


def differences(stored: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Each key in which two fingerprints differ, with both values, in words."""
    return [
        f"{key}: the study has {stored.get(key)!r}, now it is {current.get(key)!r}"
        for key in sorted(stored.keys() | current.keys())
        if stored.get(key) != current.get(key)
    ]


def installed_version(package: str) -> str | None:
    """The installed version of a package, None where it is missing; nothing is imported."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _prompts(table: Prompts, folder: Path) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
    def captions(source: str | Sequence[str], count: int | None, key: str) -> list[str]:
        listed = read_captions(folder / source) if isinstance(source, str) else list(source)
        return choose(listed, count, seed=table.seed, where=f"prompts.{key}")

    calibration = captions(table.calibration, table.calibration_count, "calibration")
    held_out = captions(table.held_out, table.held_out_count, "held_out")
    shared = sorted(set(calibration) & set(held_out))
    if shared:
        raise ConfigError(
            f"prompts.held_out: {len(shared)} captions are calibration prompts too, among them "
            f"{shared[0]!r}; a proof needs prompts that the search never saw"
        )
    for key, listed in (("calibration", calibration), ("held_out", held_out)):
        if len(listed) < 2:
            raise ConfigError(f"prompts.{key}: {len(listed)} caption; expected at least 2")
    return (
        with_seeds(calibration, seed=table.seed, split="calibration"),
        with_seeds(
            held_out, seed=table.seed, split="held_out", seeds_per_prompt=table.held_out_seeds
        ),
    )


def _with_defaults(tables: StudyFile, entry: catalog.ModelEntry) -> StudyFile:
    """The tables with what the file left out filled in from the model's entry."""
    part = _first(tables.model.part, entry.part)
    return tables.model_copy(
        update={
            "sampling": sampling_of(entry, tables.sampling),
            "model": tables.model.model_copy(update={"part": part}),
        }
    )


def _checked(study: Study, changes: Mapping[str, Any]) -> Study:
    """`study` with some tables replaced, validated again as a file would be."""
    try:
        tables = StudyFile.model_validate(study.tables.model_dump() | dict(changes))
    except ValidationError as error:
        raise ConfigError("\n".join(_in_words(dict(entry)) for entry in error.errors())) from error
    return replace(study, tables=tables)


def _in_words(problem: Mapping[str, Any]) -> str:
    """One pydantic problem as `key = value; rule`, with the nearest name for an unknown key."""
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "missing":
        return f"{key} is missing"
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(problem["loc"][-1]), _keys(problem["loc"][:-1]), n=1)
        return f"{key} is not a known key" + (f"; did you mean {near[0]!r}?" if near else "")
    rule = str(problem["msg"]).removeprefix("Value error, ")
    rule = rule.replace("Input should be", "expected", 1)
    rule = rule.replace("greater than or equal to", "at least").replace(
        "less than or equal to", "at most"
    )
    shown = problem["input"]
    return f"{key}: {rule}" if isinstance(shown, dict) else f"{key} = {shown!r}; {rule}"


def _keys(place: Iterable[str | int]) -> list[str]:
    """The known keys of the table at `place`."""
    table: Any = StudyFile
    for part in place:
        if isinstance(part, str):
            field = table.model_fields.get(part)
            table = field.annotation if field else None
        if not (isinstance(table, type) and issubclass(table, Section)):
            return []
    return list(table.model_fields)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _digest(prompts: Iterable[Prompt]) -> str:
    listed = json.dumps([[prompt.text, prompt.seed] for prompt in prompts])
    return hashlib.blake2b(listed.encode(), digest_size=8).hexdigest()


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
