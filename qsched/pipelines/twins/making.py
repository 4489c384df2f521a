"""Twins are made once, with a fixed seed, and kept in the user's cache."""

import functools
import hashlib
import inspect
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from qsched.errors import ModelError
from qsched.libraries import quiet
from qsched.pipelines.twins import (
    ernie,
    flux,
    hunyuan,
    krea,
    qwen,
    sana,
    stable_diffusion,
    z_image,
)
from qsched.pipelines.twins.lora import save_lora

TWINS: Mapping[str, Callable[[Path], Any]] = {
    "StableDiffusionPipeline": stable_diffusion.stable_diffusion,
    "LatentConsistencyModelPipeline": stable_diffusion.latent_consistency,
    "StableDiffusionXLPipeline": stable_diffusion.stable_diffusion_xl,
    "StableDiffusion3Pipeline": stable_diffusion.stable_diffusion_3,
    "StableDiffusion3Pipeline-t5": stable_diffusion.stable_diffusion_3_5,
    "FluxPipeline": flux.flux,
    "FluxPipeline-guided": functools.partial(flux.flux, guided=True),
    "Flux2KleinPipeline": flux.flux_2_klein,
    "ZImagePipeline": z_image.z_image,
    "QwenImagePipeline": qwen.qwen_image,
    "QwenImage21Pipeline": qwen.qwen_image_21,
    "Krea2Pipeline": krea.krea_2,
    "ErnieImagePipeline": ernie.ernie_image,
    "SanaSprintPipeline": sana.sana_sprint,
    "HunyuanImagePipeline": hunyuan.hunyuan_image,
}
"""What builds each twin, by its pipeline's class; a word behind it tells apart those of a class
whose networks differ. It may leave files of tokenizers in the folder that it is given."""


def made(name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name` of the cache, written by `make(folder)` where it isn't there yet.

    Written beside its place and then renamed, so other processes see all of it or nothing. Torch's
    random numbers are seeded by `name` meanwhile, and go on afterwards as if nothing had happened.
    """
    place = _cache(make) / name
    if place.is_dir():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_seed(name))
            make(unfinished)
        unfinished.rename(place)
    except OSError:
        if not place.is_dir():  # another process may have been faster
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return place


def pipeline_twin(pipeline: str, *, lora: bool = False) -> Path:
    """A folder with `pipeline`/, the twin of this name, mostly a diffusers pipeline class, and with
    `lora`/ beside it, `twin.safetensors`, if asked for.

    Raises ModelError for a class that has no twin.
    """
    if pipeline not in TWINS:
        raise ModelError(f"no twin of {pipeline}; there are twins of {', '.join(TWINS)}")

    def make(folder: Path) -> None:
        torch.manual_seed(_seed(pipeline))  # the same network with and without LoRA
        with quiet(), tempfile.TemporaryDirectory() as words:
            twin = TWINS[pipeline](Path(words))
            twin.save_pretrained(folder / "pipeline")
            if lora:
                save_lora(twin, folder / "lora")

    return made(f"{pipeline}-lora" if lora else pipeline, make)


def _seed(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big")


def _cache(make: Callable[[Path], None]) -> Path:
    """Where twins are kept; another place for other code that makes them, and other libraries."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.blake2b(digest_size=6)
    own = sorted(Path(__file__).parent.glob("*.py"))
    for source in (*own, Path(inspect.getsourcefile(make) or __file__)):
        digest.update(source.read_bytes())
    for package in ("torch", "diffusers", "transformers"):
        digest.update(version(package).encode())
    return base / "qsched" / "twins" / digest.hexdigest()
