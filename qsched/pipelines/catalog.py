"""The models that qsched knows by name. Declarations only, no torch.

A study file names its model; this table says where the pipeline comes from and how it is sampled,
so that files are checked, listed and fingerprinted on machines without a GPU stack. A study may
override every field in its `[model]` and `[sampling]` tables. `sources` loads what is declared
here.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qsched.digests import Digest, whole
from qsched.errors import DocumentError, ModelError
from qsched.files.documents import is_file, json_object, shown
from qsched.files.documents import is_folder as is_directory

DEMO_FOLDER = Path(__file__).parents[1] / "demo"

TWIN_SIDE = 32
"""Height and width of the images of a tiny twin, in pixels."""

PARTS = ("transformer", "unet")
"""The names of the denoiser in a pipeline."""

GUIDANCE = ("guidance_scale", "true_cfg_scale", "distilled_guidance_scale")
"""The arguments of pipelines that may set guidance."""


@dataclass(frozen=True)
class Lora:
    """LoRA weights that are fused into the denoiser. `{steps}` in `file` is the number of steps."""

    source: str
    file: str
    revision: str | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class Weights:
    """Weights that take the place of the denoiser's own. `{steps}` in `file` is the number of
    steps."""

    source: str
    file: str
    revision: str | None = None


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
    "Flux2KleinPipeline": PipelineClass(linear_ends=("x_embedder", "proj_out")),
    "ZImagePipeline": PipelineClass(
        linear_ends=("all_x_embedder.2-1", "all_final_layer.2-1.linear")
    ),
    "QwenImagePipeline": PipelineClass(linear_ends=("img_in", "proj_out")),
    "QwenImage21Pipeline": PipelineClass(
        linear_ends=("img_in", "proj_out"),
        remarks=("Images have a fourth channel, transparency; they were scored on white.",),
    ),
    "Krea2Pipeline": PipelineClass(linear_ends=("img_in", "final_layer.linear")),
    "ErnieImagePipeline": PipelineClass(linear_ends=("final_linear",)),
    "SanaSprintPipeline": PipelineClass(linear_ends=("proj_out",)),
    "HunyuanImagePipeline": PipelineClass(linear_ends=("proj_out",)),
}
"""By the class's name; `twins` can make a tiny pipeline of each."""


@dataclass(frozen=True)
class ModelEntry:
    """A text-to-image model: where its diffusers pipeline comes from and how it is sampled.

    `source`: a diffusers folder, a hub repository (with its `revision`), a single file of either
    or ``module:function``. `pipeline`: the diffusers class. `scheduler`: its class under "class"
    and what replaces the config that comes with it. `part`: the denoiser, the module that is called
    once per step and quantized. `weights`: the denoiser's, where they aren't the pipeline's own.
    `steps`: what the checkpoint was distilled for. `timesteps`: those that it is drawn at, by the
    number of steps. `call`: more arguments of the pipeline's own ``__call__``; `call_at`: what of
    it is another at a number of steps; None among them is passed as None. `download_gb`, `gpu_gb`:
    what it takes, in decimal gigabytes; the second is an estimate for a small batch, weights in
    `dtype`, text encoders freed after use. `hints`: for its study; None for a model without a
    template. `twin`: the name of its tiny twin, where it isn't that of the class.
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
    weights: Weights | None = None
    part: str | None = None
    steps: tuple[int, ...] | None = None
    timesteps: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    guidance_scale: float | None = None
    height: int | None = None
    width: int | None = None
    call: Mapping[str, Any] = field(default_factory=dict)
    call_at: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    gated: bool = False
    download_gb: float = 0.0
    gpu_gb: float = 0.0
    hints: Hints | None = None
    twin: str | None = None

    @property
    def guidance(self) -> tuple[str, float] | None:
        """The argument by which it is guided and its value; None if it is left to the pipeline."""
        given = {**self.call, "guidance_scale": self.guidance_scale}
        return next(((key, given[key]) for key in GUIDANCE if given.get(key) is not None), None)


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
}
_SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
_SD15_REVISION = "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"
_LIGHTNING = "ByteDance/SDXL-Lightning"
_LIGHTNING_REVISION = "c9a24f48e1c025556787b0c58dd67a091ece2e44"
_HYPER = "ByteDance/Hyper-SD"
_HYPER_REVISION = "bc08d970a87c74c71209491d64e3525845698863"
_DMD2 = "tianweiy/DMD2"
_DMD2_REVISION = "be22767697a1f3ca656b73c776e15fa335c86c6c"
_FLOW = {"class": "FlowMatchEulerDiscreteScheduler"}
_QWEN_LIGHTNING = {  # the shift of 3 that they were distilled with, whatever the image's size
    **_FLOW,
    "base_image_seq_len": 256,
    "max_image_seq_len": 8192,
    "base_shift": math.log(3),
    "max_shift": math.log(3),
    "shift": 1.0,
    "shift_terminal": None,
    "time_shift_type": "exponential",
    "use_dynamic_shifting": True,
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
            source=_SD15,
            revision=_SD15_REVISION,
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
            name="sdxl-lightning",
            source=_SDXL,
            revision=_SDXL_REVISION,
            variant="fp16",
            description="SDXL-Lightning, progressive adversarial distillation of SDXL",
            licence="CreativeML Open RAIL++-M",
            pipeline="StableDiffusionXLPipeline",
            dtype="float16",
            scheduler={"class": "EulerDiscreteScheduler", "timestep_spacing": "trailing"},
            weights=Weights(
                _LIGHTNING, "sdxl_lightning_{steps}step_unet.safetensors", _LIGHTNING_REVISION
            ),
            part="unet",
            steps=(2, 4, 8),
            guidance_scale=0.0,
            height=1024,
            width=1024,
            download_gb=6.9,
            gpu_gb=12.0,
            hints=Hints("sdxl-lightning-{steps}step", 4, "clip", batch_size=4),
        ),
        ModelEntry(
            name="sdxl-lightning-1step",
            source=_SDXL,
            revision=_SDXL_REVISION,
            variant="fp16",
            description="SDXL-Lightning of one step, which predicts the image: an experiment",
            licence="CreativeML Open RAIL++-M",
            pipeline="StableDiffusionXLPipeline",
            dtype="float16",
            scheduler={
                "class": "EulerDiscreteScheduler",
                "timestep_spacing": "trailing",
                "prediction_type": "sample",
            },
            weights=Weights(
                _LIGHTNING, "sdxl_lightning_1step_unet_x0.safetensors", _LIGHTNING_REVISION
            ),
            part="unet",
            steps=(1,),
            guidance_scale=0.0,
            height=1024,
            width=1024,
            download_gb=6.9,
            gpu_gb=12.0,
            hints=Hints("sdxl-lightning-{steps}step", 1, "clip", batch_size=4),
        ),
        ModelEntry(
            name="hyper-sdxl",
            source=_SDXL,
            revision=_SDXL_REVISION,
            variant="fp16",
            description="Hyper-SD, trajectory-segmented consistency LoRA on SDXL",
            licence="CreativeML Open RAIL++-M; the LoRA as its page states it",
            pipeline="StableDiffusionXLPipeline",
            dtype="float16",
            scheduler={"class": "DDIMScheduler", "timestep_spacing": "trailing"},
            lora=Lora(_HYPER, "Hyper-SDXL-{steps}steps-lora.safetensors", _HYPER_REVISION),
            part="unet",
            steps=(2, 4, 8),
            guidance_scale=0.0,
            height=1024,
            width=1024,
            download_gb=7.7,
            gpu_gb=12.0,
            hints=Hints("hyper-sdxl-{steps}step", 4, "clip", batch_size=4),
        ),
        ModelEntry(
            name="hyper-sdxl-1step",
            source=_SDXL,
            revision=_SDXL_REVISION,
            variant="fp16",
            description="Hyper-SD of one step, an SDXL network of its own",
            licence="CreativeML Open RAIL++-M; the network as its page states it",
            pipeline="StableDiffusionXLPipeline",
            dtype="float16",
            scheduler={"class": "LCMScheduler"},
            weights=Weights(_HYPER, "Hyper-SDXL-1step-Unet.safetensors", _HYPER_REVISION),
            part="unet",
            steps=(1,),
            timesteps={1: (800,)},
            guidance_scale=0.0,
            height=1024,
            width=1024,
            download_gb=12.1,
            gpu_gb=12.0,
            hints=Hints("hyper-sdxl-{steps}step", 1, "clip", batch_size=4),
        ),
        ModelEntry(
            name="dmd2-sdxl",
            source=_SDXL,
            revision=_SDXL_REVISION,
            variant="fp16",
            description="DMD2, distribution matching distillation of SDXL",
            licence="CC BY-NC 4.0: noncommercial; SDXL CreativeML Open RAIL++-M",
            pipeline="StableDiffusionXLPipeline",
            dtype="float16",
            scheduler={"class": "LCMScheduler"},
            weights=Weights(_DMD2, "dmd2_sdxl_4step_unet_fp16.bin", _DMD2_REVISION),
            part="unet",
            steps=(4,),
            timesteps={4: (999, 749, 499, 249)},
            guidance_scale=0.0,
            height=1024,
            width=1024,
            download_gb=6.9,
            gpu_gb=12.0,
            hints=Hints("dmd2-sdxl-{steps}step", 4, "clip", batch_size=4),
        ),
        ModelEntry(
            name="dmd2-sdxl-1step",
            source=_SDXL,
            revision=_SDXL_REVISION,
            variant="fp16",
            description="DMD2 of one step",
            licence="CC BY-NC 4.0: noncommercial; SDXL CreativeML Open RAIL++-M",
            pipeline="StableDiffusionXLPipeline",
            dtype="float16",
            scheduler={"class": "LCMScheduler"},
            weights=Weights(_DMD2, "dmd2_sdxl_1step_unet_fp16.bin", _DMD2_REVISION),
            part="unet",
            steps=(1,),
            timesteps={1: (399,)},
            guidance_scale=0.0,
            height=1024,
            width=1024,
            download_gb=6.9,
            gpu_gb=12.0,
            hints=Hints("dmd2-sdxl-{steps}step", 1, "clip", batch_size=4),
        ),
        ModelEntry(
            name="lcm-lora-sdxl",
            source=_SDXL,
            revision=_SDXL_REVISION,
            variant="fp16",
            description="LCM-LoRA, latent consistency on SDXL",
            licence="CreativeML Open RAIL++-M",
            pipeline="StableDiffusionXLPipeline",
            dtype="float16",
            scheduler={"class": "LCMScheduler"},
            lora=Lora(
                "latent-consistency/lcm-lora-sdxl",
                "pytorch_lora_weights.safetensors",
                "a18548dd4956b174ec5b0d78d340c8dae0a129cd",
            ),
            part="unet",
            steps=(2, 4, 8),
            guidance_scale=0.0,
            height=1024,
            width=1024,
            download_gb=7.3,
            gpu_gb=12.0,
            hints=Hints("lcm-lora-sdxl-{steps}step", 4, "clip", batch_size=4),
        ),
        ModelEntry(
            name="lcm-lora-sd15",
            source=_SD15,
            revision=_SD15_REVISION,
            variant="fp16",
            description="LCM-LoRA, latent consistency on Stable Diffusion 1.5",
            licence="CreativeML Open RAIL-M; the LoRA Open RAIL++-M",
            pipeline="StableDiffusionPipeline",
            dtype="float16",
            scheduler={"class": "LCMScheduler"},
            lora=Lora(
                "latent-consistency/lcm-lora-sdv1-5",
                "pytorch_lora_weights.safetensors",
                "cf2fced511dbe7e26c8d1d397e728fbab875db4b",
            ),
            part="unet",
            steps=(2, 4, 8),
            guidance_scale=0.0,
            height=512,
            width=512,
            download_gb=2.3,
            gpu_gb=4.0,
            hints=Hints("lcm-lora-sd15-{steps}step", 4, "clip", batch_size=8),
        ),
        ModelEntry(
            name="sd-turbo",
            source="stabilityai/sd-turbo",
            revision="b261bac6fd2cf515557d5d0707481eafa0485ec2",
            variant="fp16",
            description="SD-Turbo, adversarial diffusion distillation of Stable Diffusion 2.1",
            licence="Stability AI Community License; commercial use has conditions",
            pipeline="StableDiffusionPipeline",
            dtype="float16",
            scheduler={"class": "EulerDiscreteScheduler", "timestep_spacing": "trailing"},
            part="unet",
            steps=(1, 4),
            guidance_scale=0.0,
            height=512,
            width=512,
            download_gb=2.6,
            gpu_gb=4.0,
            hints=Hints("sd-turbo", 4, "clip", batch_size=8),
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
            name="flux-dev-hyper",
            source="black-forest-labs/FLUX.1-dev",
            revision="3de623fc3c33e44ffbe2bad470d0f45bccf2eb21",
            description="Hyper-FLUX, an 8-step LoRA on FLUX.1 [dev]",
            licence="FLUX.1 [dev] Non-Commercial License; the LoRA as its page states it",
            pipeline="FluxPipeline",
            dtype="bfloat16",
            scheduler=_FLOW,
            lora=Lora(
                _HYPER,
                "Hyper-FLUX.1-dev-{steps}steps-lora.safetensors",
                _HYPER_REVISION,
                scale=0.125,
            ),
            part="transformer",
            steps=(8, 16),
            guidance_scale=3.5,
            height=1024,
            width=1024,
            gated=True,
            download_gb=35.1,
            gpu_gb=37.0,
            hints=Hints("flux-dev-hyper", 8, "hps", batch_size=2, held_out=64, held_out_seeds=1),
            twin="FluxPipeline-guided",
        ),
        ModelEntry(
            name="flux2-klein-4b",
            source="black-forest-labs/FLUX.2-klein-4B",
            revision="e7b7dc27f91deacad38e78976d1f2b499d76a294",
            description="FLUX.2 [klein] 4B, distilled to four steps and without guidance",
            licence="Apache-2.0",
            pipeline="Flux2KleinPipeline",
            dtype="bfloat16",
            scheduler=_FLOW,
            part="transformer",
            steps=(4,),
            guidance_scale=1.0,
            height=1024,
            width=1024,
            download_gb=16.0,
            gpu_gb=19.0,
            hints=Hints("flux2-klein-4b", 4, "hps", batch_size=4),
        ),
        ModelEntry(
            name="flux2-klein-9b",
            source="black-forest-labs/FLUX.2-klein-9B",
            revision="92196c8e11f7b6cf2b7493e037d8c5345c559216",
            description="FLUX.2 [klein] 9B, distilled to four steps and without guidance",
            licence="FLUX Non-Commercial License",
            pipeline="Flux2KleinPipeline",
            dtype="bfloat16",
            scheduler=_FLOW,
            part="transformer",
            steps=(4,),
            guidance_scale=1.0,
            height=1024,
            width=1024,
            gated=True,
            download_gb=34.7,
            gpu_gb=38.0,
            hints=Hints("flux2-klein-9b", 4, "hps", batch_size=2, held_out=64, held_out_seeds=1),
        ),
        ModelEntry(
            name="z-image-turbo",
            source="Tongyi-MAI/Z-Image-Turbo",
            revision="f332072aa78be7aecdf3ee76d5c247082da564a6",
            description="Z-Image-Turbo, a 6-billion-parameter transformer in eight steps",
            licence="Apache-2.0",
            pipeline="ZImagePipeline",
            dtype="bfloat16",
            scheduler=_FLOW,
            part="transformer",
            steps=(8,),
            guidance_scale=0.0,
            height=1024,
            width=1024,
            download_gb=32.9,
            gpu_gb=24.0,
            hints=Hints("z-image-turbo", 8, "hps", batch_size=4, held_out=64, held_out_seeds=1),
        ),
        ModelEntry(
            name="qwen-image-lightning",
            source="Qwen/Qwen-Image",
            revision="75e0b4be04f60ec59a75f475837eced720f823b6",
            description="Qwen-Image-Lightning, a LoRA of four or eight steps on Qwen-Image",
            licence="Apache-2.0, the LoRA as well",
            pipeline="QwenImagePipeline",
            dtype="bfloat16",
            scheduler=_QWEN_LIGHTNING,
            lora=Lora(
                "lightx2v/Qwen-Image-Lightning",
                "Qwen-Image-Lightning-{steps}steps-V2.0-bf16.safetensors",
                "e74da8d4e71a54b341de86aa9f8d2509165aa513",
            ),
            part="transformer",
            steps=(4, 8),
            height=1024,
            width=1024,
            call={"true_cfg_scale": 1.0},
            download_gb=58.6,
            gpu_gb=62.0,
            hints=Hints(
                "qwen-image-{steps}step", 4, "hps", batch_size=2, held_out=64, held_out_seeds=1
            ),
        ),
        ModelEntry(
            name="qwen-image-2.1-lightning",
            source="Qwen/Qwen-Image-2.1",
            revision="790c92633540aa0cb11d9abf19eb46d861714758",
            description="Qwen-Image-2.1-Lightning, a 4-step LoRA on Qwen-Image-2.1",
            licence="Qwen Research License; the LoRA as its page states it",
            pipeline="QwenImage21Pipeline",
            dtype="bfloat16",
            scheduler={**_FLOW, "shift_terminal": None},
            lora=Lora("lightx2v/Qwen-Image-2.1-Lightning", "pytorch_lora_weights.safetensors"),
            part="transformer",
            steps=(4,),
            height=1024,
            width=1024,
            call={"true_cfg_scale": 1.0, "use_kv_cache": False},
            download_gb=33.1,
            gpu_gb=37.0,
            hints=Hints("qwen-image-2.1", 4, "hps", batch_size=2, held_out=64, held_out_seeds=1),
        ),
        ModelEntry(
            name="krea-2-turbo",
            source="krea/Krea-2-Turbo",
            revision="98e0fe118d17c9e3547fbb2e25acdbae2cadf7c7",
            description="Krea 2 Turbo, a 13-billion-parameter transformer in eight steps",
            licence="Krea 2 Community License; commercial use has conditions",
            pipeline="Krea2Pipeline",
            dtype="bfloat16",
            scheduler=_FLOW,
            part="transformer",
            steps=(8,),
            guidance_scale=0.0,
            height=1024,
            width=1024,
            gated=True,
            download_gb=35.5,
            gpu_gb=39.0,
            hints=Hints("krea-2-turbo", 8, "hps", batch_size=2, held_out=64, held_out_seeds=1),
        ),
        ModelEntry(
            name="sd35-large-turbo",
            source="stabilityai/stable-diffusion-3.5-large-turbo",
            revision="ec07796fc06b096cc56de9762974a28f4c632eda",
            description="Stable Diffusion 3.5 Large Turbo, distilled adversarially",
            licence="Stability AI Community License; commercial use has conditions",
            pipeline="StableDiffusion3Pipeline",
            dtype="bfloat16",
            scheduler=_FLOW,
            part="transformer",
            steps=(4,),
            guidance_scale=0.0,
            height=1024,
            width=1024,
            gated=True,
            download_gb=27.6,
            gpu_gb=30.0,
            hints=Hints("sd35-large-turbo", 4, "hps", batch_size=4, held_out=64),
            twin="StableDiffusion3Pipeline-t5",
        ),
        ModelEntry(
            name="ernie-image-turbo",
            source="baidu/ERNIE-Image-Turbo",
            revision="bc68c81e2a1730a394d5fc9fae70713dee940140",
            description="ERNIE-Image-Turbo, an 8-billion-parameter transformer in eight steps",
            licence="Apache-2.0",
            pipeline="ErnieImagePipeline",
            dtype="bfloat16",
            scheduler=_FLOW,
            part="transformer",
            steps=(8,),
            guidance_scale=1.0,
            height=1024,
            width=1024,
            call={"use_pe": False},
            download_gb=31.0,
            gpu_gb=34.0,
            hints=Hints("ernie-image-turbo", 8, "hps", batch_size=2, held_out=64, held_out_seeds=1),
        ),
        ModelEntry(
            name="sana-sprint",
            source="Efficient-Large-Model/Sana_Sprint_1.6B_1024px_diffusers",
            revision="19683c58b7ea290e55cedd8950ae1d86ada7ef96",
            description="SANA-Sprint 1.6B, continuous-time consistency with linear attention",
            licence="as its page states it; the Gemma terms of its text encoder",
            pipeline="SanaSprintPipeline",
            dtype="bfloat16",
            scheduler={"class": "SCMScheduler"},
            part="transformer",
            steps=(1, 2, 4),
            guidance_scale=4.5,
            height=1024,
            width=1024,
            call={"use_resolution_binning": False, "intermediate_timesteps": None},
            call_at={2: {"intermediate_timesteps": 1.3}},
            download_gb=9.7,
            gpu_gb=12.0,
            hints=Hints("sana-sprint-{steps}step", 4, "hps", batch_size=8),
        ),
        ModelEntry(
            name="hunyuan-image-2.1-distilled",
            source="hunyuanvideo-community/HunyuanImage-2.1-Distilled-Diffusers",
            description="HunyuanImage-2.1-Distilled, 17 billion parameters, in eight steps",
            licence="Tencent Hunyuan Community License; not for the EU, the UK and South Korea",
            pipeline="HunyuanImagePipeline",
            dtype="bfloat16",
            scheduler=_FLOW,
            part="transformer",
            steps=(8,),
            height=2048,
            width=2048,
            call={"distilled_guidance_scale": 3.25},
            download_gb=54.0,
            gpu_gb=60.0,
            hints=Hints("hunyuan-image-2.1", 8, "hps", batch_size=1, held_out=64, held_out_seeds=1),
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

PICKLES = (".ckpt", ".pt", ".pth", ".bin")
"""Endings of what torch saved; read as weights only, since such a file may hold code."""

CHECKPOINTS = (".safetensors", *PICKLES, ".gguf")
"""Endings of single files with weights."""


CONFIG_MISSING = (
    "model.config is missing: a single file has no configs and tokenizers; set it to a model of "
    "the same architecture, such as 'sdxl-base', a diffusers folder, or 'owner/name@revision'"
)


def model_entry(name: str) -> ModelEntry:
    """The entry of a known model, or one made for a diffusers folder, a single file, a hub
    repository or ``module:function``.

    Raises ModelError for any other name, with the names that exist.
    """
    if name in MODELS:
        return MODELS[name]
    path = is_folder(name) or is_checkpoint(name) or name.startswith((".", "/", "~"))
    if path or ":" in name or _REPOSITORY.fullmatch(name):
        return ModelEntry(name=name, source=name, description="your own", licence="yours")
    raise ModelError(
        f"model.name = {name!r}; expected one of {', '.join(MODELS)}, a folder with a "
        "model_index.json, a .safetensors file, a hub repository 'owner/name', or "
        "'module:function' that returns a diffusers pipeline"
    )


def layout_named(name: str) -> ModelEntry:
    """The entry of the model whose configs and tokenizers count: as `model_entry`, and a hub
    repository at a revision as "owner/name@revision"."""
    if is_folder(name):
        return model_entry(name)
    name, _, revision = name.partition("@")
    entry = model_entry(name)
    return replace(entry, revision=revision) if revision else entry


def is_folder(source: str) -> bool:
    """Whether a source is a diffusers folder on this machine."""
    return is_file(Path(source) / "model_index.json")


def is_checkpoint(source: str) -> bool:
    """Whether a source is a single file, here or in a hub repository (owner/name/file)."""
    return source.lower().endswith(CHECKPOINTS) and not is_directory(Path(source))


def file_in_repository(source: str) -> tuple[str, str] | None:
    """The repository and the file's name in it of a single file on the hub; None for one here."""
    owner, _, rest = source.partition("/")
    name, _, file = rest.partition("/")
    here = is_file(Path(source)) or not _REPOSITORY.fullmatch(f"{owner}/{name}")
    return None if here or not file else (f"{owner}/{name}", file)


def repository_of(source: str) -> str | None:
    """The hub repository, owner/name, that a source is in; None for what lies elsewhere."""
    if is_checkpoint(source):
        found = file_in_repository(source)
        return found[0] if found else None
    here = is_folder(source) or is_function(source)
    return source if not here and _REPOSITORY.fullmatch(source) else None


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
    return ":" in source and not is_folder(source) and not is_checkpoint(source)


def weights_identity(
    source: str,
    revision: str | None,
    *loras: Lora,
    weights: Weights | None = None,
    layout: str | None = None,
    digest: Digest = whole,
) -> str:
    """What tells one set of weights from another: a digest of the folder's files, or of the single
    file, or the repository with its revision, or the function's name; that of the denoiser's own
    `weights`, of each LoRA, and of the `layout` of a single file likewise.

    Raises ModelError for a file that can't be read.
    """
    try:
        here = is_folder(source) or is_file(Path(source))
        terms = [digest(Path(source)) if here else _at(source, revision)]
        if layout is not None:
            terms.append(f"layout {digest(Path(layout)) if is_folder(layout) else layout}")
        if weights is not None:
            terms.append(f"denoiser {_identity(weights, digest)}")
        terms += [f"{lora.scale:g} * {_identity(lora, digest)}" for lora in loras]
    except OSError as error:
        raise ModelError(f"{error.filename}: {error.strerror}; make it readable") from error
    return " + ".join(terms)


def _identity(file: Lora | Weights, digest: Digest) -> str:
    here = Path(file.source) / file.file
    return digest(here) if is_file(here) else f"{_at(file.source, file.revision)}/{file.file}"


def _at(source: str, revision: str | None) -> str:
    return f"{source}@{revision}" if revision else source
