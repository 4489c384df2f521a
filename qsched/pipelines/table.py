"""`[model]`, `[sampling]` and `[execution]` of a study file, and what each leaves out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from qsched.errors import ConfigError
from qsched.pipelines import catalog
from qsched.pipelines.folders import quantized_by, stored_dtype
from qsched.quantization.backend import Backend, backend_named
from qsched.quantization.schemes import backend_for
from qsched.tables import Section, accepted_by

LOCAL = "local"
"""The launcher of this machine."""


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

    name: Annotated[str, accepted_by(catalog.model_entry)]
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
    full_precision: Annotated[str, accepted_by(catalog.model_entry)] | None = None
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


class Execution(Section):
    """`[execution]`: where and how fast; nothing here changes what a score means.

    `offload`: what waits in the computer's memory, whole models or single layers. `launcher`: what
    starts the workers of `qsched run`, by a name of `service.launchers`.
    """

    batch_size: int = Field(default=16, ge=1, le=1024)
    device: str = "auto"
    offload: Literal["none", "model", "sequential"] = "none"
    vae_slicing: bool = False
    allow_mixed_hardware: bool = False
    launcher: str = LOCAL


def with_entry(model: Model, steps: int) -> Model:
    """`model` with what it leaves out filled in from its entry in the catalog.

    The place of a model that ships with qsched is left open, since it differs between machines.
    Raises ConfigError if the checkpoint was distilled for other numbers of steps.
    """
    entry = catalog.model_entry(model.name)
    allowed = _first(model.steps, entry.steps)
    if allowed and steps not in allowed:
        raise ConfigError(
            f"sampling.steps = {steps}; {model.name} was trained for "
            f"{', '.join(map(str, allowed))} steps; take one of these, or set model.steps"
        )
    lora = model.lora
    if lora is None and entry.lora is not None:
        lora = LoraTable(
            source=entry.lora.source,
            file=entry.lora.file,
            revision=entry.lora.revision,
            scale=entry.lora.scale,
        )
    if lora is not None:
        lora = lora.model_copy(update={"file": lora.file.replace("{steps}", str(steps))})
    on_disk = model.source is None and catalog.is_folder(entry.source)
    return model.model_copy(
        update={
            "source": model.source or (None if on_disk else entry.source),
            "revision": model.revision or (None if model.source else entry.revision),
            "variant": model.variant or (None if model.source else entry.variant),
            "pipeline": _first(
                model.pipeline, entry.pipeline, catalog.class_in(model.source or "")
            ),
            "dtype": _first(
                model.dtype,
                None if model.name in catalog.MODELS else stored_dtype(source_of(model)),
                entry.dtype,
            ),
            "part": _first(model.part, entry.part),
            "steps": allowed,
            "scheduler": _first(model.scheduler, entry.scheduler),
            "lora": lora,
        }
    )


def model_named(name: str, steps: int, dtype: str | None = None) -> Model:
    """The complete table of a model by its name alone. Raises ModelError for one that isn't known,
    ConfigError for steps that it wasn't distilled for."""
    catalog.model_entry(name)
    return with_entry(Model.model_validate({"name": name, "dtype": dtype}), steps)


def placed(model: Model, folder: Path) -> Model:
    """`model` with its local folders found from `folder`, where the study file is."""

    def local(source: str) -> str:
        path = folder / Path(source).expanduser()
        return str(path.resolve()) if path.is_dir() else source

    changes: dict[str, Any] = {}
    if model.source is not None:
        changes["source"] = local(model.source)
    elif model.name not in catalog.MODELS and ":" not in model.name:
        changes["source"] = local(model.name)
    if model.lora is not None:
        changes["lora"] = model.lora.model_copy(update={"source": local(model.lora.source)})
    return model.model_copy(update=changes)


def source_of(model: Model) -> str:
    """Where the pipeline is: a folder, a hub repository or ``module:function``."""
    return model.source or catalog.model_entry(model.name).source


def weights_of(model: Model) -> str:
    """What tells this model's weights from others."""
    table = model.lora
    lora = catalog.Lora(table.source, table.file, table.revision, table.scale) if table else None
    return catalog.weights_identity(source_of(model), model.revision, lora)


def packages_of_model(model: Model) -> tuple[str, ...]:
    """The distributions that make a model's images."""
    lora = ("peft",) if model.lora else ()
    encoders = backend_of_encoders(model)
    bits = None if model.twin else quantized_by(source_of(model))
    own = (*(encoders.packages if encoders else ()), *([bits] if bits else []))
    return ("torch", "diffusers", "transformers", *lora, *own)


def backend_of_encoders(model: Model) -> Backend | None:
    """What quantizes the text encoders, if anything does."""
    scheme = model.text_encoders
    return backend_named(backend_for(scheme, None)) if scheme else None


def sampling_of(name: str, sampling: Sampling) -> Sampling:
    """`sampling` with what it leaves out filled in from the entry of the model `name`."""
    entry = catalog.model_entry(name)
    return sampling.model_copy(
        update={
            "guidance_scale": _first(sampling.guidance_scale, entry.guidance_scale),
            "height": _first(sampling.height, entry.height),
            "width": _first(sampling.width, entry.width),
            "call": {**entry.call, **sampling.call},
        }
    )


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
