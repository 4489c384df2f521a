"""The models that qsched knows by name. Declarations only, no torch.

A study file names its model; this table says where the pipeline comes from and how it is sampled,
so that files are checked, listed and fingerprinted on machines without a GPU stack. A study may
override every field in its `[model]` and `[sampling]` tables. `models` loads what is declared here.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qsched.digests import Digest, whole
from qsched.documents import is_file, json_object, shown
from qsched.errors import DocumentError, ModelError

DEMO_FOLDER = Path(__file__).parents[1] / "demo"

TWIN_SIDE = 32
"""Height and width of the images of a tiny twin, in pixels."""

PARTS = ("transformer", "unet")
"""The names of the denoiser in a pipeline."""


@dataclass(frozen=True)
class Lora:
    """LoRA weights that are fused into the denoiser. `{steps}` in `file` is the number of steps."""

    source: str
    file: str
    revision: str | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class Hints:
    """What suits a model's study on one GPU with 48 GB; `qsched init` writes it down.

    `study`: its name; `{steps}` in it is the number of steps. `preset`: the paper's.
    """

    study: str
    steps: int
    preset: str
    batch_size: int
    held_out: int = 128
    held_out_seeds: int = 2


@dataclass(frozen=True)
class PipelineClass:
    """What is known of a diffusers pipeline class, whoever's weights it has.

    `linear_ends`: which of the denoiser's first and last layers are Linear, by name. `remarks`:
    sentences that a reader of an exported folder has to know.
    """

    linear_ends: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


_UNCHECKED = ("The images were scored without the safety checker: using it is up to you.",)

PIPELINES: Mapping[str, PipelineClass] = {
    "StableDiffusionPipeline": PipelineClass(remarks=_UNCHECKED),
    "LatentConsistencyModelPipeline": PipelineClass(remarks=_UNCHECKED),
    "StableDiffusionXLPipeline": PipelineClass(),
    "StableDiffusion3Pipeline": PipelineClass(linear_ends=("proj_out",)),
    "FluxPipeline": PipelineClass(linear_ends=("x_embedder", "proj_out")),
}
"""By the class's name; `twins` can make a tiny pipeline of each."""


@dataclass(frozen=True)
class ModelEntry:
    """A text-to-image model: where its diffusers pipeline comes from and how it is sampled.

    `source`: a diffusers folder, a hub repository (with its `revision`) or ``module:function``.
    `pipeline`: the diffusers class. `scheduler`: its class under "class" and what replaces the
    config that comes with it. `part`: the denoiser, the module that is called once per step and
    quantized. `steps`: what the checkpoint was distilled for. `call`: more arguments of the
    pipeline's own ``__call__``. `download_gb`, `gpu_gb`: what it takes, in decimal gigabytes; the
    second is an estimate for a small batch, weights in `dtype`, text encoders freed after use.
    `hints`: for its study; None for a model without a template.
    """

    name: str
    source: str
    description: str
    licence: str
    pipeline: str | None = None
    revision: str | None = None
    variant: str | None = None
    dtype: str = "float32"
    scheduler: Mapping[str, Any] | None = None
    lora: Lora | None = None
    part: str | None = None
    steps: tuple[int, ...] | None = None
    guidance_scale: float | None = None
    height: int | None = None
    width: int | None = None
    call: Mapping[str, Any] = field(default_factory=dict)
    gated: bool = False
    download_gb: float = 0.0
    gpu_gb: float = 0.0
    hints: Hints | None = None


_PCM_STEPS = (2, 4, 8, 16)
_SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
_SDXL_REVISION = "462165984030d82259a11f4367a4eed129e94a7b"
_PCM = "wangfuyun/PCM_Weights"
_PCM_REVISION = "39560fead4ce00f94db3cb8e93dd8fba90ec0be6"
_TCD = {  # as in the authors' own demonstration
    "class": "TCDScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "trailing",
}

MODELS: Mapping[str, ModelEntry] = {
    entry.name: entry
    for entry in (
        ModelEntry(
            name="demo",
            source=str(DEMO_FOLDER / "pipeline"),
            description="emoji scenes, 64 x 64 pixels; ships with qsched",
            licence="Apache-2.0; trained on Noto Emoji (Apache-2.0) and Twemoji (CC-BY 4.0)",
            pipeline="StableDiffusion3Pipeline",
            part="transformer",
            steps=(1, 2, 4),
            guidance_scale=0.0,
            height=64,
            width=64,
            call={"max_sequence_length": 0},
        ),
        ModelEntry(
            name="sdxl-turbo",
            source="stabilityai/sdxl-turbo",
            revision="71153311d3dbb46851df1931d3ca6e939de83304",
            variant="fp16",
            description="SDXL-Turbo, distilled by adversarial diffusion distillation",
            licence="Stability AI Community License; commercial use has conditions",
            pipeline="StableDiffusionXLPipeline",
            dtype="float16",
            scheduler={
                "class": "EulerAncestralDiscreteScheduler",
                "timestep_spacing": "trailing",
            },
            part="unet",
            steps=(1, 4),
            guidance_scale=0.0,
            height=512,
            width=512,
            download_gb=6.9,
            gpu_gb=10.0,
            hints=Hints("sdxl-turbo", 4, "hps", batch_size=8),
        ),
        ModelEntry(
            name="lcm-dreamshaper",
            source="SimianLuo/LCM_Dreamshaper_v7",
            revision="a85df6a8bd976cdd08b4fd8f3b73f229c9e54df5",
            description="LCM, a latent consistency model of Dreamshaper v7",
            licence="MIT",
            pipeline="LatentConsistencyModelPipeline",
            scheduler={"class": "LCMScheduler"},
            part="unet",
            steps=(1, 2, 4, 8),
            guidance_scale=8.0,
            height=768,
            width=768,
            download_gb=4.3,
            gpu_gb=10.0,
            hints=Hints("lcm-{steps}step", 4, "clip", batch_size=4),
        ),
        ModelEntry(
            name="pcm-sd15",
            source="stable-diffusion-v1-5/stable-diffusion-v1-5",
            revision="451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
            variant="fp16",
            description="PCM, a phased consistency LoRA on Stable Diffusion 1.5 (small guidance)",
            licence="CreativeML Open RAIL-M; the LoRA states none",
            pipeline="StableDiffusionPipeline",
            dtype="float16",
            scheduler=_TCD,
            lora=Lora(
                _PCM, "sd15/pcm_sd15_smallcfg_{steps}step_converted.safetensors", _PCM_REVISION
            ),
            part="unet",
            steps=_PCM_STEPS,
            guidance_scale=0.0,
            height=512,
            width=512,
            download_gb=2.3,
            gpu_gb=4.0,
            hints=Hints("pcm-sd15-{steps}step", 8, "clip", batch_size=8),
        ),
        ModelEntry(
            name="pcm-sdxl",
            source=_SDXL,
            revision=_SDXL_REVISION,
            variant="fp16",
            description="PCM, a phased consistency LoRA on SDXL (small guidance)",
            licence="CreativeML Open RAIL++-M; the LoRA states none",
            pipeline="StableDiffusionXLPipeline",
            dtype="float16",
            scheduler=_TCD,
            lora=Lora(
                _PCM, "sdxl/pcm_sdxl_smallcfg_{steps}step_converted.safetensors", _PCM_REVISION
            ),
            part="unet",
            steps=_PCM_STEPS,
            guidance_scale=0.0,
            height=1024,
            width=1024,
            download_gb=7.3,
            gpu_gb=12.0,
            hints=Hints("pcm-sdxl-{steps}step", 4, "clip", batch_size=4),
        ),
        ModelEntry(
            name="flux-schnell",
            source="black-forest-labs/FLUX.1-schnell",
            revision="741f7c3ce8b383c54771c7003378a50191e9efe9",
            description="FLUX.1 [schnell], a 12-billion-parameter flow-matching transformer",
            licence="Apache-2.0",
            pipeline="FluxPipeline",
            dtype="bfloat16",
            scheduler={"class": "FlowMatchEulerDiscreteScheduler", "shift": 1.0},
            part="transformer",
            steps=(1, 2, 3, 4),
            guidance_scale=0.0,
            height=1024,
            width=1024,
            call={"max_sequence_length": 256},
            gated=True,
            download_gb=33.7,
            gpu_gb=36.0,
            hints=Hints("flux-schnell", 4, "hps", batch_size=2, held_out=64, held_out_seeds=1),
        ),
        ModelEntry(
            name="sdxl-base",
            source=_SDXL,
            revision=_SDXL_REVISION,
            variant="fp16",
            description="SDXL base with its own scheduler, the paper's reference",
            licence="CreativeML Open RAIL++-M",
            pipeline="StableDiffusionXLPipeline",
            dtype="float16",
            part="unet",
            guidance_scale=5.0,
            height=1024,
            width=1024,
            download_gb=6.9,
            gpu_gb=12.0,
        ),
    )
}

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def model_entry(name: str) -> ModelEntry:
    """The entry of a known model, or one made for a diffusers folder, a hub repository or
    ``module:function``.

    Raises ModelError for any other name, with the names that exist.
    """
    if name in MODELS:
        return MODELS[name]
    path = is_folder(name) or name.startswith((".", "/", "~"))
    if path or ":" in name or _REPOSITORY.fullmatch(name):
        return ModelEntry(name=name, source=name, description="your own", licence="yours")
    raise ModelError(
        f"model.name = {name!r}; expected one of {', '.join(MODELS)}, a folder with a "
        "model_index.json, a hub repository 'owner/name', or 'module:function' that returns a "
        "diffusers pipeline"
    )


def is_folder(source: str) -> bool:
    """Whether a source is a diffusers folder on this machine."""
    return is_file(Path(source) / "model_index.json")


def class_in(folder: str) -> str | None:
    """The pipeline class that a diffusers folder names; None for what is no folder.

    Raises ModelError for a model_index.json that can't be read, or names none.
    """
    if not is_folder(folder):
        return None
    place = Path(folder) / "model_index.json"
    expected = "expected the index of a pipeline, as save_pretrained writes it"
    try:
        name = json_object(place).get("_class_name")
    except DocumentError as error:
        raise ModelError(f"{place}: {error}; {expected}") from error
    name = name[-1] if isinstance(name, list) and name else name
    if not isinstance(name, str) or not name.isidentifier():
        raise ModelError(f"{place}: _class_name = {shown(name)}; {expected}")
    return name


def is_function(source: str) -> bool:
    """Whether a source names a function that builds the pipeline."""
    return ":" in source and not is_folder(source)


def weights_identity(
    source: str, revision: str | None, *loras: Lora, digest: Digest = whole
) -> str:
    """What tells one set of weights from another: a digest of the folder's files, or the
    repository with its revision, or the function's name; that of each LoRA likewise.

    Raises ModelError for a file that can't be read.
    """
    try:
        own = digest(Path(source)) if is_folder(source) else _at(source, revision)
        terms = [f"{lora.scale:g} * {_identity(lora, digest)}" for lora in loras]
    except OSError as error:
        raise ModelError(f"{error.filename}: {error.strerror}; make it readable") from error
    return " + ".join([own, *terms])


def _identity(lora: Lora, digest: Digest) -> str:
    file = Path(lora.source) / lora.file
    return digest(file) if file.is_file() else f"{_at(lora.source, lora.revision)}/{lora.file}"


def _at(source: str, revision: str | None) -> str:
    return f"{source}@{revision}" if revision else source
