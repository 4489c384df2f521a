"""A model's name -> a diffusers pipeline that is ready to sample."""

import importlib
import json
import logging
import platform
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline

from qsched.catalog import ModelEntry, model_entry
from qsched.errors import ModelError

PARTS = ("transformer", "unet")


def load_pipeline(
    name: str, *, dtype: str = "float32", device: str | torch.device = "auto"
) -> DiffusionPipeline:
    """The pipeline of a known model, a diffusers folder or ``module:function``, ready to sample.

    Its progress bar is off, and so is a safety checker, which would blacken images that are only
    scored. `dtype`: float32, float16 or bfloat16. `device`: a torch device or "auto". Raises
    ModelError if it can't be had.
    """
    entry = model_entry(name)
    where = best_device() if device == "auto" else torch.device(device)
    pipeline = _built(entry) if ":" in entry.source else _from_folder(entry, getattr(torch, dtype))
    if not isinstance(pipeline, DiffusionPipeline):
        raise ModelError(
            f"{name}: returned {type(pipeline).__name__}; expected a DiffusionPipeline"
        )
    if getattr(pipeline, "safety_checker", None) is not None:
        pipeline.safety_checker = None
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(where)


def denoiser(pipeline: DiffusionPipeline, part: str | None = None) -> torch.nn.Module:
    """The network that the pipeline calls once per step: its `part`, or the one that it has.

    Raises ModelError if there is none.
    """
    names = (part,) if part else PARTS
    for name in names:
        module = getattr(pipeline, name, None)
        if isinstance(module, torch.nn.Module):
            return module
    raise ModelError(
        f"{type(pipeline).__name__} has no {' or '.join(names)}; set model.part in the study file"
    )


def best_device() -> torch.device:
    """The first GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def hardware(device: torch.device) -> dict[str, str]:
    """What a value depends on beside the study: the device's model and torch's version."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {"device": f"{device.type} {name}", "torch": torch.__version__}


def _from_folder(entry: ModelEntry, dtype: torch.dtype) -> Any:
    if not (Path(entry.source) / "model_index.json").is_file():
        raise ModelError(f"{entry.name}: no model_index.json in {entry.source}; reinstall qsched")
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    index = json.loads((Path(entry.source) / "model_index.json").read_text(encoding="utf-8"))
    absent = {name: None for name, value in index.items() if value == [None, None]}
    try:
        # Components that the folder does without have to be passed as None: diffusers refuses a
        # Stable Diffusion 3 without T5 otherwise.
        return DiffusionPipeline.from_pretrained(
            entry.source, dtype=dtype, local_files_only=True, **absent
        )
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{entry.name}: diffusers can't load {entry.source}: {error}") from error


def _built(entry: ModelEntry) -> Any:
    module, _, function = entry.source.partition(":")
    try:
        return getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError) as error:
        raise ModelError(
            f"model.name = {entry.name!r}: {error}; expected an importable module and a function "
            "without arguments that returns a diffusers pipeline"
        ) from error
