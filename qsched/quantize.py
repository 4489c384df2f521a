"""Quantization of a network's Linear and Conv2d layers, and the account of what it covered.

    report = quantize(pipeline.transformer, "w4a8", overrides={"proj_out": "w8a8"})
    print(report.summary())

The scheme is *simulated*: weights and activations are rounded to the integers of the scheme and
turned back into floating point at once, so that any width runs on any device, with the errors of
the real thing but neither its speed nor its memory.

For a tensor group with largest magnitude m and a width of b bits, q = 2^(b-1) - 1 and
scale = m / q; a value x becomes scale * round(x / scale), one of the 2q + 1 multiples of scale in
[-m, m]. Symmetric, so zero stays zero. The groups are

- weights: one output channel, once, when the network is quantized;
- activations of a Linear: one token, that is one row of the last dimension;
- activations of a Conv2d: one image. (A scale for each pixel or input channel could not be taken
  out of the convolution's sum, so no integer kernel could use it.)

Activation scales are dynamic, computed from the values at hand, and never span two images: an
image does not depend on the others of its batch.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qsched.errors import QuantizationError

FULL = 16
"""The width that stands for "left as it is", whatever the network's own dtype."""

_TINY = 1e-30  # stands in for the magnitude of a group of zeros; 127 / _TINY is finite in float32


@dataclass(frozen=True)
class Scheme:
    """Bits of weights and activations, by a name such as ``w4a8``; 16 bits are left as they are."""

    name: str
    weight_bits: int
    activation_bits: int

    def __post_init__(self) -> None:
        for bits in (self.weight_bits, self.activation_bits):
            if not 2 <= bits <= FULL:
                raise QuantizationError(f"{self.name}: {bits} bits; expected 2 to {FULL}")

    @classmethod
    def parse(cls, name: str) -> "Scheme":
        """The scheme of this name. Raises QuantizationError, which lists those that exist."""
        scheme = SCHEMES.get(name.strip().lower())
        if scheme is None:
            raise QuantizationError(
                f"quantization scheme {name!r}; expected one of {', '.join(SCHEMES)}"
            )
        return scheme


SCHEMES: Mapping[str, Scheme] = {"none": Scheme("none", FULL, FULL)} | {
    f"w{weight}a{activation}": Scheme(f"w{weight}a{activation}", weight, activation)
    for weight in (8, 4)
    for activation in (FULL, 8, 4)
}


@dataclass(frozen=True)
class QuantizedLayer:
    """One layer that was quantized: its dotted name, ``Linear`` or ``Conv2d``, and how."""

    name: str
    kind: str
    scheme: Scheme


@dataclass(frozen=True)
class QuantizationReport:
    """What `quantize` did to a network.

    `skipped`: the Linear and Conv2d layers left in full precision. `parameters`: all of the
    network's; `quantized_parameters`: those now rounded, which are weights and never biases.
    `bytes_before`: of all parameters as they were loaded. `bytes_nominal`: the same with the
    quantized ones as packed integers and one float32 scale per output channel. `bytes_stored`: what
    this backend really holds.
    """

    scheme: Scheme
    backend: str
    quantized: tuple[QuantizedLayer, ...]
    skipped: tuple[str, ...]
    parameters: int
    quantized_parameters: int
    bytes_before: int
    bytes_nominal: int
    bytes_stored: int

    @property
    def share(self) -> float:
        """Quantized parameters as a share of all, in [0, 1]."""
        return self.quantized_parameters / self.parameters

    def summary(self) -> str:
        """All of it in one line."""
        size = f"{_short(self.parameters)} parameters"
        if not self.quantized:
            return f"{self.scheme.name}: nothing quantized; {size}, {_short(self.bytes_before)}B"
        kinds = Counter(layer.kind for layer in self.quantized)
        others = Counter(
            layer.scheme.name for layer in self.quantized if layer.scheme != self.scheme
        )
        layers = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        exceptions = "".join(f", {count} of them {name}" for name, count in others.items())
        left = ", ".join(self.skipped[:4]) or "nothing"
        if len(self.skipped) > 4:
            left += f" and {len(self.skipped) - 4} more"
        return (
            f"{self.scheme.name} ({self.backend}): {self.share:.1%} of {size} in "
            f"{layers}{exceptions}; {_short(self.bytes_before)}B -> "
            f"{_short(self.bytes_nominal)}B nominal, {_short(self.bytes_stored)}B stored; "
            f"left alone: {left}"
        )


class SimulatedLinear(nn.Linear):
    """A Linear whose weight is already rounded, and which rounds its input token by token."""

    scheme: Scheme

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features), both in the input's dtype."""
        rounded = _round_activations(input, self.scheme.activation_bits, dim=(-1,))
        return F.linear(rounded, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, scheme={self.scheme.name}"


class SimulatedConv2d(nn.Conv2d):
    """A Conv2d whose weight is already rounded, and which rounds its input image by image."""

    scheme: Scheme

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W'), both in the input's dtype."""
        rounded = _round_activations(input, self.scheme.activation_bits, dim=(-3, -2, -1))
        result: Tensor = self._conv_forward(rounded, self.weight, self.bias)
        return result

    def extra_repr(self) -> str:
        return f"{nn.Conv2d.extra_repr(self)}, scheme={self.scheme.name}"  # type: ignore[no-untyped-call]


Layer = nn.Linear | nn.Conv2d


def quantize(
    module: nn.Module,
    scheme: str | Scheme,
    *,
    skip: Sequence[str] = (),
    overrides: Mapping[str, str | Scheme] | None = None,
) -> QuantizationReport:
    """Quantize a network's Linear and Conv2d layers in place, for inference; says what was done.

    `skip`: patterns (fnmatch, where ``*`` also matches dots) of names of layers to leave in full
    precision. `overrides`: pattern -> another scheme for the layers it matches, such as 8 bits for
    the first and last layer; the first pattern that matches counts, and `skip` goes before all.
    Layers keep their identity, hooks and place. Tied layers stay tied; an embedding tied to one of
    them keeps its full-precision weight. Subclasses of Linear and Conv2d, whose forward may differ,
    are left alone and reported as skipped.

    Raises QuantizationError, with the network unchanged, if it is quantized already, has no layer
    that can be, if a pattern matches no layer, if weights are not plain finite floating point, or
    if a layer's forward was replaced (by an offloading hook, say: quantize first).
    """
    scheme = _as_scheme(scheme)
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, Layer)}
    _refuse_unfit(module, layers)
    by_pattern = {pattern: _as_scheme(other) for pattern, other in (overrides or {}).items()}
    for pattern in (*skip, *by_pattern):
        if not any(fnmatchcase(name, pattern) for name in layers):
            raise QuantizationError(
                f"quantization pattern {pattern!r} matches no layer; there are "
                f"{len(layers)}, such as {', '.join(list(layers)[:3])}"
            )

    planned = {
        name: _planned(name, scheme, skip, by_pattern)
        for name, layer in layers.items()
        if type(layer) in (nn.Linear, nn.Conv2d)
    }
    planned = {name: chosen for name, chosen in planned.items() if chosen != SCHEMES["none"]}
    for name in planned:
        _refuse_weight(name, layers[name])

    total, before = _size(module.parameters())
    covered, saved = _coverage((layers[name], chosen) for name, chosen in planned.items())
    ties = {name: id(layers[name].weight) for name in planned}
    rounded: dict[tuple[int, int], nn.Parameter] = {}  # weights done, so that tied ones stay tied
    for name, chosen in planned.items():
        key = (ties[name], chosen.weight_bits)
        if key not in rounded:
            rounded[key] = _round_weight(layers[name].weight, chosen.weight_bits)
        _simulate(layers[name], chosen, rounded[key])
    return QuantizationReport(
        scheme=scheme,
        backend="simulated",
        quantized=tuple(
            QuantizedLayer(name, "Linear" if isinstance(layers[name], nn.Linear) else "Conv2d", how)
            for name, how in planned.items()
        ),
        skipped=tuple(name for name in layers if name not in planned),
        parameters=total,
        quantized_parameters=covered,
        bytes_before=before,
        bytes_nominal=before - saved,
        bytes_stored=_size(module.parameters())[1],
    )


def _planned(
    name: str, scheme: Scheme, skip: Iterable[str], overrides: Mapping[str, Scheme]
) -> Scheme:
    if any(fnmatchcase(name, pattern) for pattern in skip):
        return SCHEMES["none"]
    matching = (other for pattern, other in overrides.items() if fnmatchcase(name, pattern))
    return next(matching, scheme)


def _refuse_unfit(module: nn.Module, layers: Mapping[str, Layer]) -> None:
    for name, layer in layers.items():
        if isinstance(layer, SimulatedLinear | SimulatedConv2d):
            raise QuantizationError(
                f"{name or type(module).__name__} is quantized already ({layer.scheme.name}); "
                "load the full-precision network again"
            )
    if not any(type(layer) in (nn.Linear, nn.Conv2d) for layer in layers.values()):
        raise QuantizationError(
            f"{type(module).__name__} has no Linear or Conv2d layer to quantize"
        )


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


def _simulate(layer: Layer, scheme: Scheme, weight: nn.Parameter) -> None:
    """Make it a layer of the simulated class, the same object for whatever refers to it."""
    layer.weight = weight
    layer.__class__ = SimulatedLinear if isinstance(layer, nn.Linear) else SimulatedConv2d
    assert isinstance(layer, SimulatedLinear | SimulatedConv2d)
    layer.scheme = scheme


@torch.no_grad()
def _round_weight(weight: Tensor, bits: int) -> nn.Parameter:
    """(out, ...) -> the same, each output channel rounded by its own scale, in the same dtype."""
    if bits >= FULL:
        return nn.Parameter(weight.detach(), requires_grad=False)
    top = 2 ** (bits - 1) - 1
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    scale = wide.abs().flatten(1).amax(1).clamp_(min=_TINY).div_(top)
    scale = scale.view(-1, *[1] * (weight.dim() - 1))
    rounded = (wide / scale).round_().clamp_(-top, top).mul_(scale).to(weight.dtype)
    return nn.Parameter(rounded, requires_grad=False)


@torch.no_grad()
def _round_activations(x: Tensor, bits: int, dim: tuple[int, ...]) -> Tensor:
    """x with one scale for each group over `dim`, in the same dtype.

    The inner loop of every sampling step, so few passes over few buffers: of the ways to find the
    largest magnitude, abs().amax() is by far the fastest on a CPU. No value can exceed q by more
    than rounding, so nothing is clamped. NaN and infinity make their whole group NaN.
    """
    if bits >= FULL:
        return x
    top = 2 ** (bits - 1) - 1
    magnitude = x.abs()
    largest = magnitude.amax(dim, keepdim=True).float().clamp_(min=_TINY)
    if x.dtype == torch.float32:
        levels = torch.mul(x, top / largest, out=magnitude)
    else:
        levels = x * (top / largest)  # float32 for half precision
    return levels.round_().mul_(largest.div_(top)).to(x.dtype)


def _as_scheme(scheme: str | Scheme) -> Scheme:
    return scheme if isinstance(scheme, Scheme) else Scheme.parse(scheme)


def _size(parameters: Iterable[Tensor]) -> tuple[int, int]:
    """Number of parameters, and their bytes; a shared one counts once."""
    held = list(parameters)
    return sum(p.numel() for p in held), sum(p.numel() * p.element_size() for p in held)


def _coverage(plan: Iterable[tuple[Layer, Scheme]]) -> tuple[int, int]:
    """Number of parameters that the plan rounds, and the bytes it saves nominally."""
    widths = {layer.weight: scheme.weight_bits for layer, scheme in plan}
    widths = {weight: bits for weight, bits in widths.items() if bits < FULL}
    packed = sum(-(-weight.numel() * bits // 8) for weight, bits in widths.items())
    scales = sum(4 * len(weight) for weight in widths)
    parameters, before = _size(widths)
    return parameters, before - packed - scales


def _short(number: int) -> str:
    """4600000 -> "4.6 M"; for counts and, with a B behind it, bytes."""
    for unit, factor in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= factor:
            return f"{number / factor:.1f} {unit}"
    return f"{number} "
