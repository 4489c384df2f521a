"""The tables of a study file and the rules of each key (pydantic); a broken rule in words."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from qsched.errors import QschedError
from qsched.pipelines import catalog
from qsched.quantization.schemes import Scheme, resolve
from qsched.schedule.parametrisations import (
    DEFAULT_BOUNDS,
    NAMES,
    Bounds,
    Parametrisation,
    automatic,
    parametrisation,
)
from qsched.scoring.catalog import METRICS, PRESETS, independent, metric_entry, scorer_entry
from qsched.search.catalog import check_sampler, resolved

Seed = Annotated[int, Field(ge=0, lt=2**63)]

DEMO_REFERENCE = "demo"
"""The `validation.reference` that ships with qsched."""


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


class LoraTable(Section):
    """`[model.lora]`: LoRA weights, fused before the network is quantized."""

    source: str
    file: str
    revision: str | None = None
    scale: float = Field(default=1.0, allow_inf_nan=False)


class Model(Section):
    """`[model]`: which pipeline, in which precision. What is left out comes from the catalog.

    `full_precision`: the model that validation compares with, where `name` is quantized already.
    `twin`: a tiny pipeline of the same class with random weights takes its place.
    """

    name: Annotated[str, _accepted_by(catalog.model_entry)]
    source: str | None = None
    revision: str | None = None
    variant: str | None = None
    pipeline: str | None = None
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    part: Literal["unet", "transformer"] | None = None
    steps: tuple[Annotated[int, Field(ge=1, le=64)], ...] | None = None
    scheduler: Mapping[str, Any] | None = None
    lora: LoraTable | None = None
    text_encoders: Literal["int8"] | None = None
    vae_tiling: bool = False
    attention: str | None = None
    compile: bool = False
    full_precision: Annotated[str, _accepted_by(catalog.model_entry)] | None = None
    twin: bool = False

    @model_validator(mode="after")
    def _scheduler_has_a_class(self) -> "Model":
        if self.scheduler is not None and not isinstance(self.scheduler.get("class"), str):
            raise ValueError(
                'scheduler has no class; expected { class = "EulerDiscreteScheduler", ... }'
            )
        return self


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


def _canonical(name: str) -> str:
    """A scheme's name as the reports have it."""
    try:
        return Scheme.parse(name).name
    except QschedError as error:
        raise ValueError(str(error)) from error


SchemeName = Annotated[str, AfterValidator(_canonical)]


class Quantization(Section):
    """`[quantization]`: the scheme, its backend, and the layers (patterns) treated otherwise.

    `skip`: None leaves the first and the last layer as they are, an empty list nothing.
    """

    scheme: SchemeName
    backend: str | None = None
    skip: tuple[str, ...] | None = None
    overrides: Mapping[str, SchemeName] = Field(default_factory=dict)
    group_size: int | None = None

    @model_validator(mode="after")
    def _exists(self) -> "Quantization":
        try:
            resolve(self.scheme, self.backend, self.overrides.values(), self.group_size)
        except QschedError as error:
            raise ValueError(str(error)) from error
        return self


class TermTable(Section):
    """One `[[objective.terms]]`; `log`: its logarithm counts."""

    scorer: Annotated[str, _accepted_by(scorer_entry)]
    weight: float = Field(default=1.0, allow_inf_nan=False)
    log: bool = False


class ObjectiveTable(Section):
    """`[objective]`: the terms of JAQ, one's own or a preset's, and their units."""

    preset: Literal["standardised", "plain", "clip", "clip-log", "hps"] = "standardised"
    terms: tuple[TermTable, ...] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _preset_terms(cls, table: Any) -> Any:
        """Writes a preset's terms out, so that the study says what it measured."""
        if not isinstance(table, Mapping):
            return table
        preset = table.get("preset", "standardised")
        known = PRESETS.get(preset)
        if known is None or "terms" in table:
            return table
        terms = [
            {"scorer": scorer, "weight": weight, "log": how == "log"}
            for scorer, weight, how in known
        ]
        return {**table, "terms": terms}

    @model_validator(mode="after")
    def _each_scorer_once(self) -> "ObjectiveTable":
        names = [term.scorer for term in self.terms]
        if len(set(names)) < len(names):
            raise ValueError(f"a scorer stands there twice: {', '.join(names)}")
        return self


class Search(Section):
    """`[search]`: the space, the sampler and the budget.

    `parametrisation`: "auto" is what repaired most at this width and number of steps.
    `stop_below`: a trial stops early when its chance to be the best falls below this; 0: never.
    `prior`: how much JAQ a vector costs at the edge of the box; it pulls towards the identity.
    """

    parametrisation: Literal["auto", *NAMES] = "ramp"  # type: ignore[valid-type]
    bounds: Annotated[tuple[float, float], _accepted_by(lambda pair: Bounds(*pair))] = (
        DEFAULT_BOUNDS.low,
        DEFAULT_BOUNDS.high,
    )
    sampler: Annotated[str, _accepted_by(check_sampler)] = "auto"
    trials: int = Field(default=48, ge=1, le=100_000)
    seed: Seed = 0
    stop_below: float = Field(default=0.0, ge=0, le=0.5)
    prior: float = Field(default=0.0, ge=0, allow_inf_nan=False)


class Prompts(Section):
    """`[prompts]`: captions in files or lists, and the seed of all noise.

    Without `held_out` the file of `calibration` is split, by a seeded order.
    """

    calibration: str | tuple[str, ...]
    held_out: str | tuple[str, ...] | None = None
    calibration_count: int | None = Field(default=None, ge=2)
    held_out_count: int | None = Field(default=None, ge=2)
    held_out_seeds: int = Field(default=2, ge=1, le=64)
    seed: Seed = 0


Limit = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Limits(Section):
    """`limits` of `[validation]`: the largest relative shift from full precision, up or down.

    Above what rounding does to the demo (bench/guards.py): at w8a8 and w4a8 none of the five moves
    by more than 1.3 %; at w4a4 contrast by -12 %, sharpness by -21 %, saturation by +3 %.
    """

    brightness: Limit = 0.15
    saturation: Limit = 0.15
    contrast: Limit = 0.15
    sharpness: Limit = 0.3
    diversity: Limit = 0.15


class Validation(Section):
    """`[validation]`: what the search never sees, and how much proof is asked for.

    `candidates`: so many of the best trials go through it; they share the 5 % of doubt. `limits`:
    of the guards against a cheated metric. `reference`: a folder of real images, or "demo" for the
    scenes that the demo model learned from, for FID's and KID's distance to them.
    """

    metrics: tuple[Annotated[str, _accepted_by(metric_entry)], ...]
    candidates: int = Field(default=3, ge=1, le=16)
    limits: Limits = Limits()
    reference: str | None = None


class Execution(Section):
    """`[execution]`: where and how fast; nothing here changes what a score means.

    `offload`: what waits in the computer's memory, whole models or single layers.
    """

    batch_size: int = Field(default=16, ge=1, le=1024)
    device: str = "auto"
    offload: Literal["none", "model", "sequential"] = "none"
    vae_slicing: bool = False
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

    @property
    def space(self) -> Parametrisation:
        """What is searched."""
        name, steps = self.search.parametrisation, self.sampling.steps
        if name == "auto":
            name = automatic(steps)
        return parametrisation(name, steps)

    @model_validator(mode="after")
    def _the_sampler_fits_the_space(self) -> "StudyFile":
        try:
            resolved(self.search.sampler, self.space.dimension)
        except QschedError as error:
            raise ValueError(f"search.sampler, search.parametrisation: {error}") from error
        return self

    @model_validator(mode="after")
    def _one_metric_is_independent(self) -> "StudyFile":
        searched = [term.scorer for term in self.objective.terms]
        if any(independent(name, searched) for name in self.validation.metrics):
            return self
        names = [name for name in METRICS if independent(name, searched)]
        raise ValueError(
            "validation.metrics: none is independent of what the search optimises; "
            f"add {' or '.join(names)}"
        )


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
    if not key:
        return rule
    here = f"{key} = {shown!r}; "
    return f"{key}: {rule}" if isinstance(shown, dict) else here + rule.removeprefix(here)


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
