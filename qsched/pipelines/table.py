"""`[model]`, `[sampling]` and `[execution]` of a study file, and what each leaves out."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator, model_validator

from qsched.digests import Digest, whole
from qsched.errors import ConfigError, ModelError
from qsched.files.documents import is_file, is_folder, located
from qsched.pipelines import catalog
from qsched.pipelines.folders import quantized_by, stored_dtype
from qsched.plugins import Origin, referenced
from qsched.quantization.backend import Backend, backend_named
from qsched.quantization.schemes import backend_for
from qsched.tables import (
    ONE,
    SEVERAL,
    Place,
    Section,
    accepted_by,
    checked,
    is_stored,
    one_or_several,
)

OWN_KEYS: Mapping[str, str] = {
    "num_inference_steps": "set sampling.steps",
    **{key: f"set sampling.{key}" for key in ("guidance_scale", "height", "width")},
    **{key: f"set sampling.{key}" for key in ("sigmas", "timesteps")},
    "prompt": "set prompts.calibration and prompts.held_out",
    **dict.fromkeys(
        ("prompt_2", "prompt_3", "prompt_4"), "a caption goes to every text encoder; leave it out"
    ),
    "generator": "each image has its own, seeded by prompts.seed; leave it out",
    "latents": "the noise is drawn by each image's own seed; leave it out",
    "num_images_per_prompt": "set prompts.held_out_seeds, or more captions",
    "output_type": "images are scored as arrays; leave it out",
    "return_dict": "leave it out",
    **dict.fromkeys(
        (
            *("callback", "callback_steps", "callback_on_step_end"),
            "callback_on_step_end_tensor_inputs",
        ),
        "a study file can't hold code; leave it out",
    ),
    **dict.fromkeys(
        ("cross_attention_kwargs", "joint_attention_kwargs", "attention_kwargs"),
        "a LoRA is fused before; set model.lora.scale",
    ),
    **dict.fromkeys(
        ("denoising_end", "denoising_start"), "steps would never run; set sampling.steps"
    ),
}
"""Arguments of pipelines that are no keys of `sampling.call`, and what to do instead."""

LOCAL = "local"
"""The launcher of this machine."""


class LoraTable(Section):
    """`[model.lora]`: LoRA weights, fused before the network is quantized.

    `partial`: whether it is enough that some of the file's layers are in the network.
    """

    source: Place
    file: Place
    revision: str | None = None
    scale: float = Field(default=1.0, allow_inf_nan=False)
    partial: bool = Field(default=False, exclude_if=lambda partial: not partial)


Loras = Annotated[
    Annotated[LoraTable, Tag(ONE)] | Annotated[tuple[LoraTable, ...], Tag(SEVERAL)],
    Discriminator(one_or_several),
]
"""`[model.lora]`, or several as `[[model.lora]]`."""


class WeightsTable(Section):
    """`[model.weights]`: a file that takes the place of the denoiser's own weights."""

    source: Place
    file: Place
    revision: str | None = None


class Model(Section):
    """`[model]`: which pipeline, in which precision. What is left out comes from the catalog.

    `config`: for a single file, the model whose configs and tokenizers it lacks; on the hub at a
    revision as "owner/name@revision". `part`: the denoiser's name in the pipeline.
    `full_precision`: the model that validation compares with, where `name` is quantized already.
    `twin`: a tiny pipeline of the same class with random weights takes its place.
    """

    name: Annotated[Place, accepted_by(catalog.model_entry)]
    source: Place | None = None
    revision: str | None = None
    variant: str | None = None
    pipeline: str | None = None
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    config: Annotated[Place, accepted_by(catalog.layout_named)] | None = None
    part: Annotated[str, Field(pattern=r"^[A-Za-z]\w*$")] | None = None
    steps: tuple[Annotated[int, Field(ge=1, le=64)], ...] | None = None
    scheduler: Mapping[str, Any] | None = None
    lora: Loras | None = None
    weights: WeightsTable | None = None
    text_encoders: Literal["int8"] | None = None
    vae_tiling: bool = False
    attention: str | None = None
    compile: bool = False
    full_precision: Annotated[Place, accepted_by(catalog.model_entry)] | None = None
    twin: bool = False

    @property
    def loras(self) -> tuple[LoraTable, ...]:
        """The LoRA weights, in the order in which they are fused."""
        if self.lora is None:
            return ()
        return self.lora if isinstance(self.lora, tuple) else (self.lora,)

    def with_loras(self, change: Callable[[LoraTable], Mapping[str, Any]]) -> "Model":
        """The same model with some values of each LoRA changed."""
        if not self.loras:
            return self
        changed = tuple(lora.model_copy(update=change(lora)) for lora in self.loras)
        several = isinstance(self.lora, tuple)
        return self.model_copy(update={"lora": changed if several else changed[0]})

    @model_validator(mode="after")
    def _scheduler_has_a_class(self) -> "Model":
        if self.scheduler is not None and not isinstance(self.scheduler.get("class"), str):
            raise ValueError(
                'scheduler has no class; expected { class = "EulerDiscreteScheduler", ... }'
            )
        return self


class Sampling(Section):
    """`[sampling]`: how the pipeline is called. What is left out comes from the model's entry.

    `none`: the arguments that are passed as None, which TOML has no word for.
    """

    steps: int = Field(ge=1, le=64)
    guidance_scale: float | None = Field(default=None, ge=0, le=50)
    height: int | None = Field(default=None, ge=8, le=4096)
    width: int | None = Field(default=None, ge=8, le=4096)
    sigmas: tuple[float, ...] | None = None
    timesteps: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    call: Mapping[str, Any] = Field(default_factory=dict)
    none: tuple[str, ...] | None = None

    @field_validator("call", "none")
    @classmethod
    def _no_key_of_qsched(cls, given: Any, info: ValidationInfo) -> Any:
        """Stored studies keep what version 0.1 let them have."""
        for key in () if is_stored(info) else given or ():
            if key in OWN_KEYS or key.endswith(("_embeds", "_mask")):
                instead = OWN_KEYS.get(key, "a study file can't hold tensors; leave it out")
                raise ValueError(f"{key} is reserved for qsched; {instead}")
        return given

    @model_validator(mode="after")
    def _one_negative_prompt(self, info: ValidationInfo) -> "Sampling":
        for key, value in {} if is_stored(info) else self.call.items():
            if key.startswith("negative_prompt") and not isinstance(value, str):
                raise ValueError(f"call.{key} = {value!r}; expected one text for all captions")
        return self

    @model_validator(mode="after")
    def _nothing_is_said_twice(self) -> "Sampling":
        for key in self.none or ():
            if key in self.call:
                raise ValueError(f"none: {key} has a value in call; take one of them out")
        return self

    @model_validator(mode="after")
    def _one_number_a_step(self) -> "Sampling":
        for name in ("sigmas", "timesteps"):
            given = getattr(self, name)
            if given is not None and len(given) != self.steps:
                raise ValueError(f"{name} has {len(given)} numbers; expected one a step")
        return self

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of the pipeline's ``__call__`` that are the same in every batch."""
        named = {
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "height": self.height,
            "width": self.width,
            "sigmas": list(self.sigmas) if self.sigmas else None,
            "timesteps": list(self.timesteps) if self.timesteps else None,
        }
        given = {key: value for key, value in named.items() if value is not None}
        # TOML has lists only; where a pipeline takes a list, it takes a tuple as well.
        call = {key: tuple(v) if isinstance(v, list) else v for key, v in self.call.items()}
        return given | call | dict.fromkeys(self.none or ())


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
    if model.lora is None and entry.lora is not None:
        own = LoraTable(
            source=entry.lora.source,
            file=entry.lora.file,
            revision=entry.lora.revision,
            scale=entry.lora.scale,
        )
        model = model.model_copy(update={"lora": own})
    if model.weights is None and entry.weights is not None:
        model = model.model_copy(update={"weights": WeightsTable(**asdict(entry.weights))})

    def numbered(file: str) -> str:
        return file.replace("{steps}", str(steps))

    model = model.with_loras(lambda lora: {"file": numbered(lora.file)})
    if model.weights is not None:
        own_weights = model.weights.model_copy(update={"file": numbered(model.weights.file)})
        model = model.model_copy(update={"weights": own_weights})
    on_disk = model.source is None and catalog.is_folder(entry.source)
    return model.model_copy(
        update={
            "source": model.source or (None if on_disk else entry.source),
            "revision": model.revision or (None if model.source else entry.revision),
            "variant": model.variant or (None if model.source else entry.variant),
            "pipeline": _first(
                model.pipeline,
                entry.pipeline,
                catalog.class_in(layout_of(model)),
                catalog.layout_named(model.config).pipeline if model.config else None,
            ),
            "dtype": _first(
                model.dtype,
                None if model.name in catalog.MODELS else stored_dtype(source_of(model)),
                entry.dtype,
            ),
            "part": _first(model.part, entry.part),
            "steps": allowed,
            "scheduler": _first(model.scheduler, entry.scheduler),
        }
    )


def model_named(name: str, steps: int, dtype: str | None = None) -> Model:
    """The complete table of a model by its name alone. Raises ModelError for one that isn't known,
    ConfigError for steps that it wasn't distilled for."""
    catalog.model_entry(name)
    return with_entry(checked(Model, {"name": name, "dtype": dtype}), steps)


def placed(model: Model, folder: Path) -> Model:
    """`model` with its local folders and files found from `folder`, where the study file is."""

    def local(source: str) -> str:
        path = located(source, folder)
        return str(path.resolve()) if is_folder(path) or is_file(path) else source

    changes: dict[str, Any] = {
        key: local(named)
        for key, named in (("config", model.config), ("full_precision", model.full_precision))
        if named is not None and named not in catalog.MODELS
    }
    if model.source is not None:
        changes["source"] = local(model.source)
    elif model.name not in catalog.MODELS and ":" not in model.name:
        changes["source"] = local(model.name)
    if model.weights is not None:
        place = {"source": local(model.weights.source)}
        changes["weights"] = model.weights.model_copy(update=place)
    model = model.with_loras(lambda lora: {"source": local(lora.source)})
    return model.model_copy(update=changes)


def source_of(model: Model) -> str:
    """Where the pipeline is: a folder, a single file, a hub repository or ``module:function``."""
    return model.source or catalog.model_entry(model.name).source


def layout_of(model: Model) -> str:
    """Where the configs and tokenizers of the pipeline are: at its source, but for a single
    file."""
    if model.config is None or not catalog.is_checkpoint(source_of(model)):
        return source_of(model)
    entry = catalog.layout_named(model.config)
    return f"{entry.source}@{entry.revision}" if entry.revision else entry.source


def twin_of(model: Model) -> str | None:
    """The name of the tiny twin of a model; None where its class isn't known."""
    entry = catalog.model_entry(model.name)
    return (entry.twin if model.pipeline == entry.pipeline else None) or model.pipeline


def weights_of(model: Model, digest: Digest = whole) -> str:
    """What tells this model's weights from others, by a digest of the files that are here."""
    loras = [
        catalog.Lora(table.source, table.file, table.revision, table.scale) for table in model.loras
    ]
    source, weights = source_of(model), None
    if model.weights is not None:
        weights = catalog.Weights(**model.weights.model_dump())
    return catalog.weights_identity(
        source,
        model.revision,
        *loras,
        weights=weights,
        layout=layout_of(model) if catalog.is_checkpoint(source) else None,
        digest=digest,
    )


def origins_of_model(model: Model) -> dict[str, Origin | None]:
    """{module:function: where its code comes from} of functions that build the pipelines."""
    names = [model.full_precision] if model.full_precision else []
    names += [] if model.twin else [source_of(model)]
    return {
        name: referenced(name, "model", ModelError).origin
        for name in names
        if catalog.is_function(name)
    }


def packages_of_model(model: Model) -> tuple[str, ...]:
    """The distributions that make a model's images."""
    lora = ("peft",) if model.loras else ()
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
    own = {**entry.call, **entry.call_at.get(sampling.steps, {})}
    absent = {key for key, value in own.items() if value is None} - sampling.call.keys()
    none = (*(sampling.none or ()), *sorted(absent - set(sampling.none or ())))
    return sampling.model_copy(
        update={
            "guidance_scale": _first(sampling.guidance_scale, entry.guidance_scale),
            "height": _first(sampling.height, entry.height),
            "width": _first(sampling.width, entry.width),
            "timesteps": _first(sampling.timesteps, entry.timesteps.get(sampling.steps)),
            "call": {
                key: value for key, value in {**own, **sampling.call}.items() if key not in none
            },
            "none": none or None,
        }
    )


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
