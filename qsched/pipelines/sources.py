"""Where a pipeline comes from: a folder, the hub, a function or a twin.

What comes from the hub is fetched first, so the same code loads a repository, a local folder and a
twin. LoRA weights are fused, the declared scheduler takes its place, and a safety checker and a
watermark, which would spoil images that are only scored, are left out.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, SchedulerMixin

from qsched import hub
from qsched.errors import ModelError
from qsched.pipelines import catalog, twins
from qsched.pipelines.agreement import require_declared
from qsched.pipelines.failures import explained
from qsched.pipelines.lora import FusedLora, fuse
from qsched.pipelines.table import LoraTable, Model, source_of
from qsched.plugins import referenced
from qsched.quantization.quantize import loading_config
from qsched.quantization.table import Quantization


def assemble(
    model: Model, straight: Quantization | None = None
) -> tuple[DiffusionPipeline, tuple[FusedLora, ...]]:
    """The pipeline of a study's `[model]` on the CPU, and the LoRA weights that are fused into it.

    `straight`: how the denoiser is to be quantized while diffusers loads it, on a GPU;
    `quantize.finish_loading` has to follow. Raises ModelError if the pipeline can't be had.
    """
    pipeline = _pipeline(model, straight)
    _refuse_other_than_pipeline(model, pipeline)
    if model.scheduler is not None:
        pipeline.scheduler = _scheduler(pipeline, model.scheduler)
    fused = tuple(fuse(pipeline, _lora(table, pipeline, twin=model.twin)) for table in model.loras)
    for name in ("safety_checker", "watermark"):
        if getattr(pipeline, name, None) is not None:
            setattr(pipeline, name, None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, fused


def dtype_of(model: Model) -> torch.dtype:
    """The torch dtype of a model table."""
    found: torch.dtype = getattr(torch, model.dtype or "float32")
    return found


def _pipeline(model: Model, straight: Quantization | None) -> Any:
    source = source_of(model)
    if model.twin:
        return _from_folder(model, _twin_folder(model) / "pipeline", straight)
    if catalog.is_function(source):
        return _built(model, source)
    if catalog.is_folder(source):
        return _from_folder(model, Path(source), straight)
    if source.startswith(("/", ".", "~")) or Path(source).exists():
        raise ModelError(
            f"{model.name}: no model_index.json in {source}; expected a diffusers folder"
        )
    return _from_folder(model, _fetched(model, source), straight)


def _fetched(model: Model, source: str) -> Path:
    """The folder of a hub repository, from its cache or downloaded."""
    wanted = {"revision": model.revision, "variant": model.variant, "safety_checker": None}
    wanted = {key: value for key, value in wanted.items() if value or key == "safety_checker"}
    size = catalog.model_entry(model.name).download_gb
    try:
        return Path(DiffusionPipeline.download(source, local_files_only=True, **wanted))
    except (OSError, ValueError) as error:
        if hub.offline():
            raise ModelError(hub.explain(error, source, size)) from error
    try:
        return Path(DiffusionPipeline.download(source, **wanted))
    except (OSError, ValueError) as error:
        raise ModelError(hub.explain(error, source, size)) from error


def _from_folder(model: Model, folder: Path, straight: Quantization | None) -> Any:
    cannot = f"{model.name}: diffusers can't load {folder}"
    with explained(ModelError, cannot, "save it anew, or set model.dtype or model.variant"):
        return _loaded(model, folder, straight)


def _loaded(model: Model, folder: Path, straight: Quantization | None) -> Any:
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    # Components that the folder does without have to be passed as None: diffusers refuses a
    # Stable Diffusion 3 without T5 otherwise.
    given: dict[str, Any] = {name: None for name, value in index.items() if value == [None, None]}
    for name in ("safety_checker", "feature_extractor", "image_encoder"):
        if name in index:
            given[name] = None
    if "safety_checker" in given:
        given["requires_safety_checker"] = False
    if index.get("_class_name") == "StableDiffusionXLPipeline":
        given["add_watermarker"] = False
    _refuse_bits_without_a_gpu(model, folder, index)
    variant = model.variant if model.variant and any(folder.rglob(f"*.{model.variant}.*")) else None
    if straight is not None:
        part: str = model.part or next(name for name in catalog.PARTS if name in index)
        network_class = getattr(diffusers, index[part][1])
        given[part] = _in_bits(network_class, folder, part, model, variant, straight)
    return DiffusionPipeline.from_pretrained(
        folder, dtype=dtype_of(model), variant=variant, local_files_only=True, **given
    )


def _refuse_bits_without_a_gpu(model: Model, folder: Path, index: Mapping[str, Any]) -> None:
    """diffusers' loader of bitsandbytes' bits wants a GPU, and doesn't say for which part."""
    if torch.cuda.is_available() or torch.xpu.is_available():
        return
    for part, kind in index.items():
        config = folder / part / "config.json"
        if isinstance(kind, list) and kind[0] == "diffusers" and config.is_file():
            found = json.loads(config.read_text(encoding="utf-8")).get("quantization_config") or {}
            if found.get("quant_method") == "bitsandbytes":
                raise ModelError(
                    f"{model.name}: {part} is saved in bitsandbytes' bits, which diffusers loads "
                    "on a GPU only; run it on a machine with one"
                )


def _in_bits(
    network_class: Any,
    folder: Path,
    part: str,
    model: Model,
    variant: str | None,
    straight: Quantization,
) -> Any:
    """The denoiser, loaded by diffusers in the bits of its scheme."""
    from accelerate import init_empty_weights

    with init_empty_weights():
        layout = network_class.from_config(network_class.load_config(folder, subfolder=part))
    how = loading_config(
        layout,
        straight.scheme,
        dtype_of(model),
        backend=straight.backend,
        skip=straight.skip,
        overrides=straight.overrides,
    )
    return network_class.from_pretrained(
        folder,
        subfolder=part,
        dtype=dtype_of(model),
        variant=variant,
        quantization_config=how,
        local_files_only=True,
    )


def _built(model: Model, source: str) -> Any:
    build = referenced(source, "model", ModelError).value
    expected = "expected a function without arguments that returns a diffusers pipeline"
    with explained(ModelError, f"model {source!r}", expected):
        return build()


def _refuse_other_than_pipeline(model: Model, pipeline: Any) -> None:
    if not isinstance(pipeline, DiffusionPipeline):
        raise ModelError(
            f"{model.name}: returned {type(pipeline).__name__}; expected a DiffusionPipeline"
        )


def _scheduler(pipeline: DiffusionPipeline, declared: Any) -> Any:
    """The declared scheduler: the config that came with the pipeline, changed where it says so."""
    arguments = dict(declared)
    name = arguments.pop("class")
    kind = getattr(diffusers, name, None)
    if not isinstance(kind, type) or not issubclass(kind, SchedulerMixin):
        raise ModelError(f"model.scheduler.class = {name!r}; expected a scheduler of diffusers")
    require_declared(kind, declared)
    chosen: Any = kind
    keys = [f"model.scheduler.{key}" for key in arguments]
    with explained(ModelError, f"model.scheduler: {name}", "change model.scheduler", keys):
        return chosen.from_config(pipeline.scheduler.config, **arguments)


def _lora(table: LoraTable, pipeline: DiffusionPipeline, *, twin: bool) -> LoraTable:
    """The LoRA, or that of the pipeline's twin."""
    if not twin:
        return table
    folder = twins.pipeline_twin(type(pipeline).__name__, lora=True) / "lora"
    return table.model_copy(update={"source": str(folder), "file": "twin.safetensors"})


def _twin_folder(model: Model) -> Path:
    if model.pipeline is None:
        raise ModelError(f"{model.name} has no twin; set model.pipeline to its diffusers class")
    return twins.pipeline_twin(model.pipeline, lora=bool(model.loras))
