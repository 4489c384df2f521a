"""A model table -> a diffusers pipeline, quantized and placed on its device, ready to sample.

The order matters: LoRA weights are fused into the full-precision network, which is then quantized,
and only then moved, offloaded or compiled.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline

from qsched.errors import ModelError
from qsched.libraries import quiet
from qsched.pipelines import catalog
from qsched.pipelines.agreement.kinds import denoisers
from qsched.pipelines.devices import MEMORY_REMEDIES, device_for
from qsched.pipelines.failures import explained
from qsched.pipelines.lora import FusedLora
from qsched.pipelines.sources import assemble, dtype_of
from qsched.pipelines.table import Execution, Model, model_named, source_of
from qsched.pipelines.weights import PutWeights
from qsched.quantization.quantize import QuantizationReport, finish_loading, quantize
from qsched.quantization.table import Quantization
from qsched.signatures import of_class


@dataclass(frozen=True)
class Loaded:
    """A pipeline that is ready to sample, its denoiser, what quantization covered of it, and what
    was added to its own weights before."""

    pipeline: DiffusionPipeline
    network: torch.nn.Module
    report: QuantizationReport | None
    device: torch.device
    added: tuple[PutWeights | FusedLora, ...] = ()

    @property
    def summary(self) -> str:
        """The denoiser's quantization, and what was added to it before, in one line."""
        network = f"{type(self.network).__name__} as it was loaded"
        return "; ".join([self.report.summary() if self.report else network, *map(str, self.added)])


def load_pipeline(
    name: str,
    *,
    steps: int | None = None,
    dtype: str | None = None,
    device: str | torch.device = "auto",
) -> DiffusionPipeline:
    """The pipeline of a known model, a diffusers folder, a hub repository or ``module:function``.

    `steps`: which of a model's LoRA weights, where it has some for each number. `dtype`: float32,
    float16 or bfloat16, by default the model's own. `device`: a torch device or "auto". Raises
    ModelError if it can't be had.
    """
    entry = catalog.model_entry(name)
    table = model_named(name, steps or (entry.steps or (1,))[-1], dtype)
    return load_model(table, execution=Execution(device=str(device))).pipeline


def load_model(
    model: Model,
    quantization: Quantization | None = None,
    *,
    execution: Execution | None = None,
) -> Loaded:
    """The pipeline of a study's `[model]`, its denoiser quantized as `[quantization]` says.

    The progress bar is off, and so are a safety checker and a watermark, which would spoil images
    that are only scored. Raises ModelError if the model can't be had or does not fit,
    QuantizationError if the scheme can't be applied.
    """
    execution = execution or Execution()
    device = device_for(model, execution)
    with quiet(), _fitting(model):
        straight = _straight(model, quantization, device)
        assembled = assemble(model, quantization if straight else None)
        pipeline = assembled.pipeline
        network = denoiser(pipeline, model.part)
        if execution.offload == "none":
            network.to(device)  # quantizing is fast where the network will be
        report = _quantized(network, quantization, dtype_of(model) if straight else None)
        if model.text_encoders is not None:
            for encoder in text_encoders(pipeline).values():
                quantize(encoder, model.text_encoders)
        _place(pipeline, model, execution, device)
    return Loaded(pipeline, network, report, device, assembled.added)


def denoiser(pipeline: DiffusionPipeline, part: str | None = None) -> torch.nn.Module:
    """The network that the pipeline calls once per step: its `part`, or the one that it has.

    Raises ModelError if there is none.
    """
    names = (part,) if part else (*catalog.PARTS, *denoisers(of_class(type(pipeline))))
    for name in names:
        module = getattr(pipeline, name, None)
        if isinstance(module, torch.nn.Module):
            return module
    raise ModelError(
        f"{type(pipeline).__name__} has no {' or '.join(names)}; set model.part in the study file"
    )


def text_encoders(pipeline: DiffusionPipeline) -> dict[str, torch.nn.Module]:
    """The pipeline's text encoders by name."""
    return {
        name: module
        for name, module in pipeline.components.items()
        if name.startswith("text_encoder") and isinstance(module, torch.nn.Module)
    }


def _straight(model: Model, quantization: Quantization | None, device: torch.device) -> bool:
    """Whether diffusers can load the denoiser into the bits of its scheme at once.

    It saves memory: the full-precision network is never whole. It takes a GPU, since diffusers
    refuses without one, a diffusers folder, and no LoRA, which has to be fused first. All else is
    quantized after it was loaded, by the same layers.
    """
    if quantization is None or quantization.scheme == "none":
        return False
    source = source_of(model)
    if device.type != "cuda" or model.loras or model.weights:
        return False
    if catalog.is_function(source) or catalog.is_checkpoint(source):
        return False
    backend, _ = quantization.resolved()
    return backend.loads_straight


def _quantized(
    network: torch.nn.Module, table: Quantization | None, loaded_in: torch.dtype | None
) -> QuantizationReport | None:
    """`loaded_in`: the dtype of the rest of a network that was loaded straight into its bits."""
    if table is None:
        return None
    if loaded_in is not None:
        return finish_loading(
            network,
            table.scheme,
            loaded_in,
            backend=table.backend,
            skip=table.skip,
            overrides=table.overrides,
        )
    return quantize(
        network,
        table.scheme,
        backend=table.backend,
        skip=table.skip,
        overrides=table.overrides,
        group_size=table.group_size,
    )


def _place(
    pipeline: DiffusionPipeline, model: Model, execution: Execution, device: torch.device
) -> None:
    """Options that save memory or time, then the device."""
    network: Any = denoiser(pipeline, model.part)
    vae: Any = getattr(pipeline, "vae", None)
    for key, wanted, enable in (
        ("execution.vae_slicing", execution.vae_slicing, "enable_slicing"),
        ("model.vae_tiling", model.vae_tiling, "enable_tiling"),
    ):
        if wanted:
            with explained(ModelError, f"{key}: {type(vae).__name__}", f"leave {key} out"):
                getattr(vae, enable)()
    if model.attention is not None:
        doing = f"model.attention = {model.attention!r}"
        with explained(ModelError, doing, "leave model.attention out"):
            network.set_attention_backend(model.attention)
    if execution.offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    elif execution.offload == "sequential":
        pipeline.enable_sequential_cpu_offload(device=device)
    else:
        pipeline.to(device)
    if model.compile:  # block by block, so that the network's own forward can be intercepted
        network.compile_repeated_blocks()


@contextmanager
def _fitting(model: Model) -> Iterator[None]:
    """A device that is too small is an error in words."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"{model.name} doesn't fit into the GPU's memory; {MEMORY_REMEDIES}"
        ) from error
