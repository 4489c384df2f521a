"""Where a pipeline comes from: a folder, a single file, the hub, a function or a twin.

What comes from the hub is fetched first, so the same code loads a repository, a local folder and a
twin. Weights of the denoiser's own take their place, LoRA weights are fused, the declared scheduler
is put in, and a safety checker and a watermark, which would spoil images that are only scored, are
left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, SchedulerMixin

from qsched import hub
from qsched.errors import HubError, ModelError
from qsched.files.documents import is_file
from qsched.pipelines import catalog, twins
from qsched.pipelines.agreement.settings import require_declared, require_text_to_image
from qsched.pipelines.failures import explained
from qsched.pipelines.folders import config_at, part_of
from qsched.pipelines.lora import FusedLora, fuse
from qsched.pipelines.table import LoraTable, Model, WeightsTable, source_of, twin_of
from qsched.pipelines.weights import PutWeights, network_of, twin_weights
from qsched.plugins import referenced
from qsched.quantization.quantize import loading_config
from qsched.quantization.table import Quantization
from qsched.signatures import of_class, of_diffusers


@dataclass(frozen=True)
class Assembled:
    """A pipeline on the CPU, and what was added to its own weights, in order."""

    pipeline: DiffusionPipeline
    added: tuple[PutWeights | FusedLora, ...] = ()


def assemble(model: Model, straight: Quantization | None = None) -> Assembled:
    """The pipeline of a study's `[model]` on the CPU.

    `straight`: how the denoiser is to be quantized while diffusers loads it, on a GPU;
    `quantize.finish_loading` has to follow. Raises ModelError if the pipeline can't be had.
    """
    found = _pipeline(model, straight)
    pipeline = found.pipeline
    if model.scheduler is not None:
        pipeline.scheduler = _scheduler(pipeline, model.scheduler)
    fused = tuple(fuse(pipeline, _lora(table, model)) for table in model.loras)
    for name in ("safety_checker", "watermark"):
        if getattr(pipeline, name, None) is not None:
            setattr(pipeline, name, None)
    pipeline.set_progress_bar_config(disable=True)
    return Assembled(pipeline, found.added + fused)


def dtype_of(model: Model) -> torch.dtype:
    """The torch dtype of a model table."""
    found: torch.dtype = getattr(torch, model.dtype or "float32")
    return found


def _pipeline(model: Model, straight: Quantization | None) -> Assembled:
    source = source_of(model)
    if model.twin:
        return _from_folder(model, _twin_folder(model) / "pipeline", straight)
    if catalog.is_function(source):
        return _built(model, source)
    if catalog.is_checkpoint(source):
        return _from_file(model, source)
    if catalog.is_folder(source):
        return _from_folder(model, Path(source), straight)
    if source.startswith(("/", ".", "~")) or Path(source).exists():
        raise ModelError(
            f"{model.name}: no model_index.json in {source}; expected a diffusers folder"
        )
    return _from_folder(model, _fetched(model, source), straight)


def _fetched(model: Model, source: str) -> Path:
    """The folder of a hub repository, from its cache or downloaded; without the weights of the
    denoiser where others take their place."""
    wanted = {"revision": model.revision, "variant": model.variant}
    wanted = {key: value for key, value in wanted.items() if value}
    own = model.part if model.weights else None
    left_out = dict.fromkeys(filter(None, ("safety_checker", own)))
    size = catalog.model_entry(model.name).download_gb

    def downloaded(**how: Any) -> Path:
        folder = Path(DiffusionPipeline.download(source, **how, **wanted, **left_out))
        if own:
            hub.fetch_file(source, f"{own}/config.json", revision=model.revision)
        return folder

    try:
        return downloaded(local_files_only=True)
    except (OSError, ValueError, HubError) as error:
        if hub.offline():
            raise ModelError(hub.explain(error, source, size)) from error
    try:
        return downloaded()
    except (OSError, ValueError, HubError) as error:
        raise ModelError(hub.explain(error, source, size)) from error


def _from_folder(model: Model, folder: Path, straight: Quantization | None) -> Assembled:
    cannot = f"{model.name}: diffusers can't load {folder}"
    with explained(ModelError, cannot, "save it anew, or set model.dtype or model.variant"):
        return _loaded(model, folder, straight)


def _loaded(model: Model, folder: Path, straight: Quantization | None) -> Assembled:
    index = _index(folder)
    given, added = _given(model, folder, index)
    _refuse_bits_without_a_gpu(model, folder, index)
    variant = model.variant if model.variant and any(folder.rglob(f"*.{model.variant}.*")) else None
    if straight is not None:
        part = _part(model, index)
        network_class = getattr(diffusers, index[part][1])
        given[part] = _in_bits(network_class, folder, part, model, variant, straight)
    pipeline = DiffusionPipeline.from_pretrained(
        folder, dtype=dtype_of(model), variant=variant, local_files_only=True, **given
    )
    return Assembled(pipeline, added)


def _index(folder: Path) -> dict[str, Any]:
    """A model index. Raises ModelError if it is of a class that can't be calibrated."""
    index = config_at(folder / "model_index.json")
    if (kind := of_diffusers(str(index.get("_class_name")))) is not None:
        require_text_to_image(kind)
    return index


def _part(model: Model, index: Mapping[str, Any]) -> str:
    """The denoiser's name. Raises ModelError if nothing tells it."""
    part = model.part or part_of(index)
    if part is None or not isinstance(index.get(part), list):
        raise ModelError(f"{model.name}: its index has no {part or 'denoiser'}; set model.part")
    return part


def _given(
    model: Model, folder: Path, index: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[PutWeights, ...]]:
    """Components that the loader is given: None for those that the folder does without, or that
    would spoil images, and the denoiser where its weights are a file of their own."""
    # Diffusers refuses a Stable Diffusion 3 without T5 otherwise.
    given: dict[str, Any] = {name: None for name, value in index.items() if value == [None, None]}
    for name in ("safety_checker", "feature_extractor", "image_encoder"):
        if name in index:
            given[name] = None
    if "safety_checker" in given:
        given["requires_safety_checker"] = False
    if index.get("_class_name") == "StableDiffusionXLPipeline":
        given["add_watermarker"] = False
    if model.weights is None:
        return given, ()
    part = _part(model, index)
    table = _twin_weights(model) if model.twin else model.weights
    network_class = getattr(diffusers, index[part][1])
    given[part], put = network_of(table, network_class, folder / part, dtype_of(model))
    return given, (put,)


def _from_file(model: Model, source: str) -> Assembled:
    """A single file, laid out as its authors did, with the configs and tokenizers of another
    model."""
    layout, file = _layout(model), _checkpoint(model, source)
    cannot = f"{model.name}: diffusers can't load {file} as {layout}"
    remedy = "copy it again, or set model.config to a model of the same architecture"
    with explained(ModelError, cannot, remedy):
        index = _index(layout)
        kind: Any = getattr(diffusers, model.pipeline or index["_class_name"])
        if not hasattr(kind, "from_single_file"):
            raise ModelError(f"{source}: diffusers loads no single file of a {kind.__name__}")
        given, added = _given(model, layout, index)
        pipeline = kind.from_single_file(
            str(file), config=str(layout), dtype=dtype_of(model), local_files_only=True, **given
        )
    _require_whole(pipeline, file)
    return Assembled(pipeline, added)


def _checkpoint(model: Model, source: str) -> Path:
    """The file itself, from the hub if it isn't here. A pickle is read as weights only."""
    if source.lower().endswith(".gguf"):
        raise ModelError(
            f"{source}: a GGUF file holds one network, not a pipeline; name a function that builds "
            "the pipeline, with diffusers' from_single_file and GGUFQuantizationConfig"
        )
    remote = catalog.file_in_repository(source)
    if remote is None:
        if not is_file(Path(source)):
            raise ModelError(f"{source}: no such file; correct model.name or model.source")
        return Path(source)
    try:
        return hub.fetch_file(*remote, revision=model.revision)
    except HubError as error:
        raise ModelError(f"{model.name}: {error}") from error


def _layout(model: Model) -> Path:
    """The folder of `model.config`."""
    if model.config is None:
        raise ModelError(catalog.CONFIG_MISSING)
    entry = catalog.layout_named(model.config)
    if catalog.is_folder(entry.source):
        return Path(entry.source)
    try:
        return hub.fetch_layout(entry.source, revision=entry.revision)
    except HubError as error:
        raise ModelError(f"model.config: {error}") from error


def _require_whole(pipeline: Any, file: Path) -> None:
    """Raises ModelError for weights that the file didn't have; diffusers leaves them empty."""
    for name, component in pipeline.components.items():
        if isinstance(component, torch.nn.Module):
            empty = [key for key, value in component.state_dict().items() if value.is_meta]
            if empty:
                raise ModelError(
                    f"{file} has not all of {name}: {len(empty)} tensors are missing, among them "
                    f"{empty[0]!r}; set model.config to a model of the same architecture"
                )


def _refuse_bits_without_a_gpu(model: Model, folder: Path, index: Mapping[str, Any]) -> None:
    """diffusers' loader of bitsandbytes' bits wants a GPU, and doesn't say for which part."""
    if torch.cuda.is_available() or torch.xpu.is_available():
        return
    for part, kind in index.items():
        config = folder / part / "config.json"
        if isinstance(kind, list) and kind[0] == "diffusers" and config.is_file():
            found = config_at(config).get("quantization_config") or {}
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


def _built(model: Model, source: str) -> Assembled:
    build = referenced(source, "model", ModelError).value
    expected = "expected a function without arguments that returns a diffusers pipeline"
    with explained(ModelError, f"model {source!r}", expected):
        pipeline = build()
    if not isinstance(pipeline, DiffusionPipeline):
        raise ModelError(
            f"{model.name}: returned {type(pipeline).__name__}; expected a DiffusionPipeline"
        )
    require_text_to_image(of_class(type(pipeline)))
    if model.weights is not None:
        raise ModelError(f"model.weights: {source} builds its pipeline itself; load them there")
    return Assembled(pipeline)


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


def _lora(table: LoraTable, model: Model) -> LoraTable:
    """The LoRA, or that of the model's twin."""
    if not model.twin:
        return table
    folder = _twin_folder(model) / "lora"
    return table.model_copy(update={"source": str(folder), "file": twins.LORA})


def _twin_weights(model: Model) -> WeightsTable:
    """The denoiser's weights of the twin, in a file of the same kind."""
    file = f"twin{Path(model.weights.file).suffix}" if model.weights else ""
    return WeightsTable(source=str(twin_weights(str(twin_of(model)))), file=file)


def _twin_folder(model: Model) -> Path:
    name = twin_of(model)
    if name is None:
        raise ModelError(f"{model.name} has no twin; set model.pipeline to its diffusers class")
    return twins.pipeline_twin(name, lora=bool(model.loras))
