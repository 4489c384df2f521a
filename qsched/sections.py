"""The tables of a study file and the rules of each key (pydantic); a broken rule in words."""

import difflib
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from qsched import catalog
from qsched.coefficients import DEFAULT_BOUNDS, Bounds
from qsched.errors import QschedError

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
    allow_mixed_hardware: bool = False


class Gallery(Section):
    """`[gallery]`: the contact sheets in optuna-dashboard, of the identity, of every new best, and
    of the first `trials`; in a folder or s3://bucket."""

    trials: int = Field(default=8, ge=0)
    store: str | None = None


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
    gallery: Gallery = Gallery()


def in_words(problem: Mapping[str, Any]) -> str:
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
