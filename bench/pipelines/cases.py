"""What is compared: tiny twins of the catalog's models, and tiny pipelines of other classes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from diffusers import DiffusionPipeline

from qsched.pipelines import catalog
from qsched.pipelines.loading import load_model
from qsched.pipelines.table import Model, Sampling, sampling_of, with_entry
from tests.support.tiny.classes import CLASSES

STEPS = 2
NEGATIVE = {"negative_prompt": "bad"}

GUIDED: dict[str, dict[str, Any]] = {
    "FluxPipeline": {"true_cfg_scale": 4.0} | NEGATIVE,
    "QwenImagePipeline": {"true_cfg_scale": 4.0} | NEGATIVE,
    "StableDiffusionPipeline": {"guidance_scale": 4.0} | NEGATIVE,
    "StableDiffusionXLPipeline": {"guidance_scale": 4.0} | NEGATIVE,
    "StableDiffusion3Pipeline": {"guidance_scale": 4.0} | NEGATIVE,
    "ZImagePipeline": {"guidance_scale": 4.0} | NEGATIVE,
}
"""What guides classes of the catalog, whose models are distilled for none."""


@dataclass(frozen=True)
class Case:
    """`make`: always the same pipeline, anew."""

    name: str
    guided: bool
    make: Callable[[], DiffusionPipeline]
    sampling: Sampling


def cases() -> Iterator[Case]:
    """Each class with and without classifier-free guidance, where it has both."""
    yield from _of_catalog()
    for name, kind in CLASSES.items():
        for guided, call in ((False, kind.unguided), (True, kind.guided)):
            rest = dict(call)
            size = {key: rest.pop(key, 32) for key in ("height", "width")}
            scale = rest.pop("guidance_scale", None)
            yield Case(
                name,
                guided,
                kind.make,
                Sampling(steps=STEPS, guidance_scale=scale, call=rest, **size),
            )


def _of_catalog() -> Iterator[Case]:
    """The first model of each class as its entry says, and guided where the class can be."""
    models = {entry.pipeline: name for name, entry in reversed([*catalog.MODELS.items()])}
    for kind, name in sorted((str(kind), name) for kind, name in models.items() if kind):
        steps = (catalog.model_entry(name).steps or (STEPS,))[0]

        def make(name: str = name, steps: int = steps) -> DiffusionPipeline:
            model = with_entry(Model(name=name), steps)
            twin = model.model_copy(update={"twin": True, "dtype": "float32"})
            return load_model(twin).pipeline

        side = {"height": catalog.TWIN_SIDE, "width": catalog.TWIN_SIDE}
        sampling = sampling_of(name, Sampling(steps=steps)).model_copy(update=side)
        yield Case(kind, guided=False, make=make, sampling=sampling)
        if guidance := GUIDED.get(kind):
            call = {**sampling.call, **guidance}
            scale = call.pop("guidance_scale", sampling.guidance_scale)
            changed = {"call": call, "guidance_scale": scale}
            yield Case(kind, guided=True, make=make, sampling=sampling.model_copy(update=changed))
