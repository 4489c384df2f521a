"""Quantization of a network in place, for inference: which layers, how, and what it came to.

    report = quantize(pipeline.transformer, "w4a8", overrides={"proj_out": "w8a8"})
    print(report.summary())

`schemes` says what there is, a `backend` does it. A network that is too large to stand on a GPU in
full precision is loaded in 4 or 8 bits instead, by diffusers:

    with accelerate.init_empty_weights():
        layout = FluxTransformer2DModel.from_config(config)
    how = loading_config(layout, "nf4", torch.bfloat16)
    network = FluxTransformer2DModel.from_pretrained(..., dtype=..., quantization_config=how)
    report = finish_loading(network, "nf4", torch.bfloat16)
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from qsched.errors import QschedError, QuantizationError, in_one_line
from qsched.quantization.account import (
    LayerFound,
    LayerLeft,
    QuantizationReport,
    QuantizedLayer,
)
from qsched.quantization.backend import Backend, Converter, backend_named, backends
from qsched.quantization.layers import Layer, size_of, tensors_held, weights_of
from qsched.quantization.schemes import FIRST_AND_LAST, FULL, NONE, Scheme, resolve

__all__ = ["QuantizationReport", "finish_loading", "loading_config", "quantize"]

_MARK = "quantized_as"
"""The attribute of a converted layer that says in which scheme."""

_FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def quantize(
    module: nn.Module,
    scheme: str,
    *,
    backend: str | None = None,
    skip: Sequence[str] | None = None,
    overrides: Mapping[str, str] | None = None,
    group_size: int | None = None,
) -> QuantizationReport:
    """Quantize a network's Linear and Conv2d layers in place; says what was done.

    `backend`: a name of `backend.BACKENDS`, by default the first that has the scheme. `skip`:
    patterns (fnmatch, where ``*`` also matches dots) of names of layers to leave in full precision;
    None means the first and the last, as `schemes.FIRST_AND_LAST` knows them. `overrides`: pattern
    -> another scheme of the same backend, or none, for the layers it matches; the first pattern
    that matches counts; a given `skip` goes before it, the default one behind. `group_size`: see
    `schemes.group_size_for`.

    Layers keep their identity, hooks and place. Simulated layers that are tied stay tied, and an
    embedding tied to one of them keeps its full-precision weight. Left alone and reported are
    subclasses of Linear and Conv2d, whose forward may differ, those that the backend can't convert,
    and, unless it only simulates, tied layers and those that the network's class wants in float32
    (a T5 calculates with their weights' dtype).

    Scheme none without overrides touches nothing; of a network that somebody has quantized, by any
    library or by classes of their own, it reports what it finds.

    Raises QuantizationError, with the network unchanged, for schemes and backends that do not go
    together or are not installed; if the network is quantized already or has no layer that can be;
    if a pattern matches no layer; if weights are not plain finite floating point; or if a layer's
    forward was replaced (by an offloading hook, say: quantize first). And where a backend's own
    code fails, in the middle of its work.
    """
    plan = _Plan.of(scheme, backend, skip, overrides, group_size)
    if plan.idle and (found := tuple(_found(plan, module))):
        return _as_it_came(plan, module, found)
    layers = plan.layers(module)
    for name, layer in layers.items():
        if how := plan.quantized_as(layer):
            raise QuantizationError(
                f"{name or type(module).__name__} is quantized already ({how}); "
                "load the full-precision network again"
            )
    converter = plan.converter()
    chosen, left = plan.sort(module, layers, converter)
    return _convert(plan, module, layers, converter, chosen, left, torch.float32)


def loading_config(
    layout: nn.Module,
    scheme: str,
    dtype: torch.dtype,
    *,
    backend: str | None = None,
    skip: Sequence[str] | None = None,
    overrides: Mapping[str, str] | None = None,
) -> Any:
    """diffusers' ``quantization_config`` that loads a network straight into the scheme's bits.

    It needs a GPU, and `finish_loading` has to follow with the same arguments. `layout`: the
    network without its weights, on the meta device. `dtype`: what all the rest is loaded in. Raises
    QuantizationError as `quantize` does, and for a backend that diffusers can't load into.
    """
    plan = _Plan.of(scheme, backend, skip, overrides, None)
    if plan.scheme == NONE or not plan.backend.loads_straight:
        able = " or ".join(each.listed for each in backends() if each.loads_straight)
        raise QuantizationError(
            f"quantization scheme {plan.scheme.name} by {plan.backend.name}: diffusers can't load "
            f"into it; expected {able}; load without quantization_config"
        )
    layers = plan.layers(layout)
    chosen, _ = plan.sort(layout, layers, plan.converter())
    linear = [name for name, layer in layers.items() if isinstance(layer, nn.Linear)]
    spared = [name for name in linear if chosen.get(name) != plan.scheme]
    return plan.backend.loading_config(plan.scheme, dtype, spared)


def finish_loading(
    network: nn.Module,
    scheme: str,
    dtype: torch.dtype,
    *,
    backend: str | None = None,
    skip: Sequence[str] | None = None,
    overrides: Mapping[str, str] | None = None,
) -> QuantizationReport:
    """Completes a network that was loaded by `loading_config` with the same arguments.

    diffusers spares more layers than it is told to, and knows one scheme for all: what should be
    quantized and is not yet is converted in place. The report is that of `quantize`; the sizes
    before are those that the network would have had in `dtype`. Raises QuantizationError as
    `quantize` does, and if a layer was loaded in other bits than the arguments ask for.
    """
    plan = _Plan.of(scheme, backend, skip, overrides, None)
    layers, converter = plan.layers(network), plan.converter()
    chosen, left = plan.sort(network, layers, converter)
    for name, layer in layers.items():
        found, expected = plan.quantized_as(layer), chosen.get(name, NONE).name
        if found not in (None, expected):
            raise QuantizationError(
                f"{name} was loaded in {found}; expected {expected}: load the network with the "
                "loading_config of the same scheme, skip and overrides"
            )
        if found is not None:
            converter.settle(layer)
    return _convert(plan, network, layers, converter, chosen, left, dtype)


class _Idle(Converter):
    """For a plan in which nothing is to be done: needs no library."""

    def convert(self, layer: Layer, scheme: Scheme) -> None:
        raise AssertionError(f"nothing is to be converted, and {scheme} is asked for")


@dataclass(frozen=True)
class _Plan:
    """What was asked for, checked as far as that can be done without a network.

    `known`: the backends that are asked whether they have quantized a layer before.
    """

    scheme: Scheme
    backend: Backend
    skip: tuple[str, ...] | None
    overrides: Mapping[str, Scheme]
    group_size: int | None
    known: tuple[Backend, ...]

    @classmethod
    def of(
        cls,
        scheme: str,
        backend: str | None,
        skip: Sequence[str] | None,
        overrides: Mapping[str, str] | None,
        group_size: int | None,
    ) -> "_Plan":
        named = overrides or {}
        name, size = resolve(scheme, backend, named.values(), group_size)
        chosen = backend_named(name)
        return cls(
            Scheme.parse(scheme, name),
            chosen,
            None if skip is None else tuple(skip),
            {pattern: Scheme.parse(other, name) for pattern, other in named.items()},
            size,
            (chosen, *backends()),
        )

    def converter(self) -> Converter:
        """The backend's, its library imported now, unless nothing is to be done."""
        return _Idle() if self.idle else self.backend.converter(self.group_size)

    @property
    def idle(self) -> bool:
        """Whether nothing is to be done."""
        return {self.scheme, *self.overrides.values()} == {NONE}

    def quantized_as(self, layer: Layer) -> str | None:
        """In which scheme the layer is, or as what a backend knows its library's; None if plain."""
        mark: str | None = vars(layer).get(_MARK)
        return mark or next(filter(None, (each.quantized_as(layer) for each in self.known)), None)

    def layers(self, module: nn.Module) -> dict[str, Layer]:
        """The network's Linear and Conv2d layers by name. Raises QuantizationError if none is."""
        found = {name: layer for name, layer in module.named_modules() if isinstance(layer, Layer)}
        if all(self._unlike(layer) for layer in found.values()):
            raise QuantizationError(
                f"{type(module).__name__} has no Linear or Conv2d layer to quantize"
            )
        return found

    def sort(
        self, module: nn.Module, layers: Mapping[str, Layer], converter: Converter
    ) -> tuple[dict[str, Scheme], tuple[LayerLeft, ...]]:
        """The scheme of each layer that is to be quantized, and the others."""
        for pattern in (*(self.skip or ()), *self.overrides):
            if not any(fnmatchcase(name, pattern) for name in layers):
                raise QuantizationError(
                    f"quantization pattern {pattern!r} matches no layer; there are "
                    f"{len(layers)}, such as {', '.join(list(layers)[:3])}"
                )
        uses = Counter(id(layer.weight) for layer in layers.values())
        wide = tuple(getattr(module, "_keep_in_fp32_modules", None) or ())
        chosen, left = {}, []
        for name, layer in layers.items():
            scheme, reason = self._wanted(name)
            if scheme != NONE:
                reason = self._unlike(layer) or converter.obstacle(layer, scheme) or ""
                if not reason and not self.backend.simulates:
                    if uses[id(layer.weight)] > 1:
                        reason = "shares its weight"
                    elif any(f".{part}." in f".{name}." for part in wide):
                        reason = "spared by its class"
            if reason:
                left.append(LayerLeft(name, _kind(layer), reason))
            else:
                chosen[name] = scheme
        return chosen, tuple(left)

    def _unlike(self, layer: Layer) -> str | None:
        """Why its forward may not be that of a Linear or Conv2d."""
        plain = type(layer) in (nn.Linear, nn.Conv2d) or self.quantized_as(layer)
        return None if plain else f"a subclass, {type(layer).__name__}"

    def _wanted(self, name: str) -> tuple[Scheme, str]:
        """What the patterns say of a layer, and why if that is none."""
        if any(fnmatchcase(name, pattern) for pattern in self.skip or ()):
            return NONE, "skipped"
        for pattern, other in self.overrides.items():
            if fnmatchcase(name, pattern):
                return other, "none by override" if other == NONE else ""
        if self.skip is None and any(fnmatchcase(name, pattern) for pattern in FIRST_AND_LAST):
            return NONE, "first or last"
        return self.scheme, "none" if self.scheme == NONE else ""


def _found(plan: _Plan, module: nn.Module) -> Iterator[LayerFound]:
    """The layers that are no plain ones in floating point any more."""
    for name, layer in module.named_modules():
        if how := plan.quantized_as(layer) if isinstance(layer, Layer) else None:
            yield LayerFound(name, _kind(layer), how)
        elif how := _numbers(layer) or _own_class(layer):
            yield LayerFound(name, type(layer).__name__, how)


def _numbers(layer: nn.Module) -> str | None:
    """The kind of a layer's own tensors that are no plain floating point; None if all are."""
    for tensor in layer.parameters(recurse=False):
        if type(tensor) is not nn.Parameter:
            kind = getattr(tensor, "quant_type", None)  # GGUF's Q4_0 and the like
            return str(getattr(kind, "name", None) or kind or type(tensor).__name__)
        if tensor.dtype not in _FLOATING:
            return str(tensor.dtype).removeprefix("torch.")
    for buffer in layer.buffers(recurse=False):
        if buffer.dtype not in (*_FLOATING, torch.int64, torch.bool) and not buffer.is_complex():
            return str(buffer.dtype).removeprefix("torch.")
    return None


def _own_class(layer: nn.Module) -> str | None:
    own = isinstance(layer, Layer) and not type(layer).__module__.startswith("torch.nn.")
    return f"a subclass of {_kind(layer)}" if own else None  # type: ignore[arg-type]


def _as_it_came(
    plan: _Plan, module: nn.Module, found: tuple[LayerFound, ...]
) -> QuantizationReport:
    """The account of a network in which nothing is to be done."""
    came = {layer.name for layer in found}

    def held() -> Iterator[torch.Tensor]:
        for name, layer in module.named_modules():
            yield from tensors_held(layer)
            if name in came:
                yield from layer.buffers(recurse=False)

    size = size_of(held())
    return QuantizationReport(
        scheme=NONE,
        backend=plan.backend.name,
        group_size=None,
        quantized=(),
        left=(),
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        quantized_parameters=0,
        bytes_before=size,
        quantized_bytes_before=0,
        bytes_nominal=size,
        bytes_stored=size,
        found=found,
    )


def _kind(layer: Layer) -> str:
    return "Linear" if isinstance(layer, nn.Linear) else "Conv2d"


def _refuse_weight(name: str, layer: Layer) -> None:
    weight = layer.weight
    plain = type(weight) is nn.Parameter and weight.is_floating_point() and not weight.is_meta
    if not plain:
        raise QuantizationError(
            f"{name}.weight is a {type(weight).__name__} of {weight.dtype} on {weight.device}; "
            "expected plain floating point: load it in full precision, or skip this layer"
        )
    if not torch.isfinite(weight.abs().amax()):
        raise QuantizationError(f"{name}.weight is not finite; load the network again")
    if "forward" in vars(layer):
        raise QuantizationError(
            f"{name} has had its forward replaced, as CPU offloading does; quantize before that"
        )


def _convert(
    plan: _Plan,
    module: nn.Module,
    layers: Mapping[str, Layer],
    converter: Converter,
    chosen: Mapping[str, Scheme],
    left: tuple[LayerLeft, ...],
    dtype: torch.dtype,
) -> QuantizationReport:
    """Converts the chosen layers that are not yet; the account of all. `dtype`: of those that are,
    before."""
    todo = [name for name in chosen if not plan.quantized_as(layers[name])]
    for name in todo:
        _refuse_weight(name, layers[name])
    sizes = _sizes(plan, module, dtype)
    rounded = [layers[name] for name, how in chosen.items() if how.weight_bits < FULL]
    covered = {id(layer.weight): sizes[id(layer.weight)] for layer in rounded}
    for name in todo:
        _convert_layer(plan, converter, name, layers[name], chosen[name])
    for name, how in chosen.items():
        vars(layers[name])[_MARK] = how.name
    before, covered_before = _total(sizes.values()), _total(covered.values())
    now = {id(layers[name].weight): (layers[name], how) for name, how in chosen.items()}
    packed = sum(converter.nominal_bytes(*one) for one in now.values() if one[1].weight_bits < FULL)
    return QuantizationReport(
        scheme=plan.scheme,
        backend=plan.backend.name,
        group_size=plan.group_size,
        quantized=tuple(
            QuantizedLayer(name, _kind(layers[name]), how) for name, how in chosen.items()
        ),
        left=left,
        parameters=before[0],
        quantized_parameters=covered_before[0],
        bytes_before=before[1],
        quantized_bytes_before=covered_before[1],
        bytes_nominal=before[1] - covered_before[1] + packed,
        bytes_stored=size_of(held for one in module.modules() for held in converter.held(one)),
    )


def _convert_layer(
    plan: _Plan, converter: Converter, name: str, layer: Layer, scheme: Scheme
) -> None:
    """Whatever a backend's own code raises is one line; a device that is too small is not it."""
    try:
        converter.convert(layer, scheme)
    except (QschedError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise QuantizationError(
            f"{name}: quantization backend {plan.backend.name} failed at {scheme.name}: "
            f"{in_one_line(error)}; take another backend, or skip this layer"
        ) from error


def _sizes(plan: _Plan, module: nn.Module, dtype: torch.dtype) -> dict[int, tuple[int, int]]:
    """By parameter: the numbers in it, and their bytes in full precision."""
    sizes = {}
    for layer in module.modules():
        for key, parameter in layer.named_parameters(recurse=False):
            count, each = parameter.numel(), parameter.element_size()
            if key == "weight" and isinstance(layer, Layer) and plan.quantized_as(layer):
                count, each = weights_of(layer), dtype.itemsize
            sizes[id(parameter)] = (count, count * each)
    return sizes


def _total(sizes: Iterable[tuple[int, int]]) -> tuple[int, int]:
    held = list(sizes)
    return sum(count for count, _ in held), sum(size for _, size in held)
