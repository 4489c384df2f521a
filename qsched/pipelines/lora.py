"""LoRA weights into a pipeline's networks, for good, and how many of a file's layers got there.

diffusers leaves out what it doesn't know with a warning at most; here, a file that doesn't fit is
an error.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from diffusers.utils import convert_state_dict_to_peft, convert_unet_state_dict_to_peft
from torch import nn

from qsched.errors import ModelError
from qsched.pipelines.failures import explained
from qsched.pipelines.interception import replaced
from qsched.pipelines.table import LoraTable
from qsched.pipelines.weights import file_of

ADAPTER = "qsched"

_HALVES = (".lora_A.", ".lora_B.", ".lokr_")
"""What follows a layer's name in PEFT's form of a file."""


@dataclass(frozen=True)
class FusedLora:
    """A LoRA that was fused: its file, and how many of its layers are in the pipeline."""

    file: str
    matched: int
    layers: int

    def __str__(self) -> str:
        return f"LoRA {self.file}: {self.matched} of {self.layers} layers"


def fuse(pipeline: DiffusionPipeline, table: LoraTable) -> FusedLora:
    """Adds a LoRA to the weights of the denoiser, and to those of text encoders if it has any.

    Raises ModelError, in one line, for a file that can't be had, or that was made for another
    network: none of its layers may be in this one, or only some of them unless `table.partial`.
    """
    file = file_of(table, "model.lora")
    kind: Any = type(pipeline).__name__
    if not hasattr(pipeline, "load_lora_weights"):
        raise ModelError(
            f"model.lora: {kind} can't load LoRA weights; fuse them in a function that builds the "
            "pipeline, and give that as model.name"
        )
    _refuse_unknown_kinds(file)
    listed: set[str] = set()
    alphas: dict[str, float] = {}
    with (
        _unlogged("diffusers.loaders"),
        explained(ModelError, f"model.lora: {file} can't be loaded into {kind}", _remedy(kind)),
        replaced(pipeline, "lora_state_dict", _watched(pipeline.lora_state_dict, listed, alphas)),
    ):
        pipeline.load_lora_weights(file.parent, weight_name=file.name, adapter_name=ADAPTER)
    reached = dict(_reached(pipeline))
    _require_match(file, table, kind, listed, reached.keys())
    _require_alphas(file, kind, alphas, reached)
    with explained(ModelError, f"model.lora: {file} can't be fused", _remedy(kind)):
        pipeline.fuse_lora(lora_scale=table.scale)
        pipeline.unload_lora_weights()
    return FusedLora(file.name, len(listed & reached.keys()), len(listed))


@contextmanager
def _unlogged(name: str) -> Iterator[None]:
    """While it lasts, these loggers are silent: what they say is said by an error, in one line."""
    loggers = [
        logging.getLogger(each) for each in logging.root.manager.loggerDict if each.startswith(name)
    ]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled


def _remedy(kind: str) -> str:
    try:
        import peft  # noqa: F401
    except ImportError:
        return "it needs peft: pip install 'qsched[gpu]'"
    return f"it may have been made for another network; take one made for {kind}, as safetensors"


def _refuse_unknown_kinds(file: Path) -> None:
    """Raises ModelError for tensors that diffusers leaves out: they would count for nothing."""
    if file.suffix != ".safetensors":
        return
    from safetensors import safe_open

    with (
        explained(ModelError, f"model.lora: {file} can't be loaded", "expected safetensors"),
        safe_open(file, "pt") as stream,
    ):
        names = list(stream.keys())
    for part, what in (("dora_scale", "a DoRA"), ("hada_w", "a LoHa"), ("lora_mid", "a LoCon")):
        if any(part in name for name in names):
            raise ModelError(
                f"model.lora: {file} is {what}, of which diffusers would use a part; expected a "
                "plain LoRA; fuse it with its own tool into a model folder"
            )


def _watched(
    convert: Callable[..., Any], listed: set[str], alphas: dict[str, float]
) -> Callable[..., Any]:
    """`lora_state_dict`; the layers that it makes of a file are put into `listed`, what they are to
    be multiplied with, times their rank, into `alphas`."""

    def converted(given: Any, **kwargs: Any) -> Any:
        output = convert(given, **kwargs)
        tensors, *others = output if isinstance(output, tuple) else (output,)
        listed.update(_layers(tensors))
        for each in (tensors, *others):
            if isinstance(each, Mapping):
                alphas.update(_alphas(each))
        return output

    return converted


def _layers(tensors: Mapping[str, Any]) -> set[str]:
    """The layers, with the component's name in front, whose weights these are, by any naming; but
    for those that change nothing."""
    found: dict[str, bool] = {}
    for name, tensor in tensors.items():
        peft = next((each for each in _in_peft(name, tensor) if _layer(each)), None)
        if peft is not None:
            layer = _flat(str(_layer(peft)))
            first = ".lora_A." in peft
            found[layer] = found.get(layer, False) or (not first and bool(tensor.any()))
        elif not name.endswith("alpha"):
            found[name.rpartition(".")[0]] = True
    return {layer for layer, changes in found.items() if changes}


def _alphas(values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if name.endswith(".alpha"):
            yield _flat(name.removesuffix(".alpha")), float(value)


def _flat(layer: str) -> str:
    """A layer's name without the level that CLIP text encoders have in some versions."""
    return layer.replace(".text_model.", ".", 1)


def _layer(name: str) -> str | None:
    return next((name.partition(half)[0] for half in _HALVES if half in name), None)


def _in_peft(name: str, tensor: Any) -> Iterator[str]:
    """The name, and what diffusers makes of it: one way for UNets, another for text encoders."""
    yield name
    for to_peft in (convert_unet_state_dict_to_peft, convert_state_dict_to_peft):
        with suppress(ValueError):  # a naming that it doesn't know
            yield from to_peft({name: tensor})


def _reached(pipeline: DiffusionPipeline) -> Iterator[tuple[str, Any]]:
    """The layers of all components that the adapter changes, by their names."""
    for component, network in pipeline.components.items():
        if isinstance(network, nn.Module):
            for name, layer in network.named_modules():
                parts = (
                    getattr(layer, part, {}) for part in getattr(layer, "adapter_layer_names", ())
                )
                halves = [part[ADAPTER] for part in parts if ADAPTER in part]
                # Where nothing of the file got in, it is as PEFT makes it: its second half is 0.
                if halves and all(_any(half) for half in halves):
                    yield _flat(f"{component}.{name}"), layer


def _any(half: Any) -> bool:
    """Whether a half of an adapter was filled, and with anything but zeros."""
    return any(not each.is_meta and bool(each.any()) for each in half.parameters())


def _require_alphas(
    file: Path, kind: str, alphas: Mapping[str, float], reached: Mapping[str, Any]
) -> None:
    """Raises ModelError where diffusers left out what a layer's weights are multiplied with."""
    for name in sorted(alphas.keys() & reached.keys()):
        layer = reached[name]
        rank, used = layer.r[ADAPTER], layer.scaling[ADAPTER]
        if not layer.use_rslora.get(ADAPTER) and abs(used * rank - alphas[name]) > 1e-3 * rank:
            raise ModelError(
                f"model.lora: {file} has alpha = {alphas[name]:g} for {name} of rank {rank}, and "
                f"{kind} loads it with {used * rank:g}; expected the file's; save it in PEFT's "
                "naming (lora_A, lora_B), or without alpha"
            )


def _require_match(
    file: Path, table: LoraTable, kind: str, listed: set[str], reached: Set[str]
) -> None:
    """Raises ModelError unless the layers of the file are in the pipeline, its denoiser first."""
    missing = sorted(listed - reached)
    first = f"{missing[0]!r}" if missing else "none at all"
    matched = sorted(listed & reached)
    if not matched:
        raise ModelError(
            f"model.lora: none of the {len(listed)} layers of {file} is in {kind}, among them "
            f"{first}; take one made for {kind}"
        )
    if all(name.startswith("text_encoder") for name in matched):
        raise ModelError(
            f"model.lora: {file} reaches {len(matched)} layers of text encoders and none of the "
            "denoiser, which is what a study calibrates; take a file with weights of the denoiser"
        )
    if missing and not table.partial:
        raise ModelError(
            f"model.lora: {len(missing)} of the {len(listed)} layers of {file} are not in {kind}, "
            f"among them {first}; take one made for {kind}, or set model.lora.partial = true"
        )
