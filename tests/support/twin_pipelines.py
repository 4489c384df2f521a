"""Tiny twins of every pipeline class of the catalog, as they are sampled; prompts for them."""

from collections.abc import Mapping
from typing import TypedDict, Unpack

from diffusers import DiffusionPipeline

from qsched.pipelines.catalog import TWIN_SIDE
from qsched.pipelines.loading import load_model
from qsched.pipelines.table import Model, Sampling, sampling_of, with_entry
from qsched.prompts import Prompt
from qsched.quantization.table import Quantization

CAPTIONS = ["a red owl", "blue fox", "cat", "dog on a log", "x", "y z", "moon"]


PROMPTS = [Prompt(caption, 11 * index + 3) for index, caption in enumerate(CAPTIONS)]


NO_CACHE: frozenset[str] = frozenset()


class Sampled(TypedDict, total=False):
    """What a study file may say in `[sampling]`."""

    steps: int
    guidance_scale: float
    sigmas: tuple[float, ...]
    call: Mapping[str, float]


CASES: dict[str, tuple[str, Sampled]] = {
    "SDXL, Euler ancestral injects noise": ("sdxl-turbo", {"steps": 4}),
    "SDXL in one step": ("sdxl-turbo", {"steps": 1}),
    "LCM injects noise, guidance embedded": ("lcm-dreamshaper", {"steps": 4}),
    "SD 1.5, LoRA, TCD": ("pcm-sd15", {"steps": 2}),
    "SD 1.5, LoRA, TCD, classifier-free guidance": (
        "pcm-sd15",
        {"steps": 4, "guidance_scale": 7.5},
    ),
    "SD 1.5, TCD that injects noise": ("pcm-sd15", {"steps": 4, "call": {"eta": 0.3}}),
    "SDXL, LoRA, TCD": ("pcm-sdxl", {"steps": 4}),
    "SDXL base, Euler, classifier-free guidance": ("sdxl-base", {"steps": 4}),
    "FLUX, flow matching": ("flux-schnell", {"steps": 4}),
    "SD3, flow matching": ("demo", {"steps": 4}),
    "SD3, own sigmas, classifier-free guidance": (
        "demo",
        {"steps": 4, "guidance_scale": 3.0, "sigmas": (1.0, 0.75, 0.5, 0.25)},
    ),
}


Case = tuple[DiffusionPipeline, Sampling]


def twin(name: str, quantization: Quantization | None = None, **sampling: Unpack[Sampled]) -> Case:
    """A tiny twin of a model of the catalog, and how it is sampled, in any number of steps."""
    settings = Sampling.model_validate(sampling)
    model = with_entry(Model(name=name, steps=(settings.steps,)), settings.steps)
    model = model.model_copy(update={"twin": True, "dtype": "float32"})
    side = {"height": TWIN_SIDE, "width": TWIN_SIDE}
    settings = sampling_of(name, settings).model_copy(update=side)
    return load_model(model, quantization).pipeline, settings
