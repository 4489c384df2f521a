"""Simulated quantization: Linear and Conv2d layers rounded to integers and back, on any device.

Weights and activations become the integers of the scheme and floating point again at once, so that
any width runs anywhere, with the errors of the real thing but neither its speed nor its memory.

For a group of numbers with largest magnitude m and a width of b bits, q = 2^(b-1) - 1 and
scale = m / q; a value x becomes scale * round(x / scale), one of the 2q + 1 multiples of scale in
[-m, m]. Symmetric, so zero stays zero. The groups are

- weights: one output channel, or `group_size` successive weights of one, counted along its inputs
  (of a Conv2d along in * kh * kw; the last group may be shorter), once;
- activations of a Linear: one token, that is one row of the last dimension;
- activations of a Conv2d: one image. (A scale for each pixel or input channel could not be taken
  out of the convolution's sum, so no integer kernel could use it.)

Activation scales are dynamic, computed from the values at hand, and never span two images: an
image does not depend on the others of its batch.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qsched.quantization.backend import Converter
from qsched.quantization.layers import Layer
from qsched.quantization.schemes import FULL, Scheme

_TINY = 1e-30  # stands in for the magnitude of a group of zeros; 127 / _TINY is finite in float32


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
        return f"{nn.Conv2d.extra_repr(self)}, scheme={self.scheme.name}"


class Rounding(Converter):
    """The backend `simulated` for one network; see the module. Tied weights stay tied."""

    def __init__(self, group_size: int | None = None) -> None:
        self._group_size = group_size
        self._rounded: dict[tuple[int, int], nn.Parameter] = {}
        """By the identity of the weight before, none of which is gone at the start, and bits."""

    def convert(self, layer: Layer, scheme: Scheme) -> None:
        """Makes it a layer of the simulated class, the same object for whatever refers to it."""
        key = (id(layer.weight), scheme.weight_bits)
        if key not in self._rounded:
            self._rounded[key] = _round_weight(layer.weight, scheme.weight_bits, self._group_size)
        layer.weight = self._rounded[key]
        layer.__class__ = SimulatedLinear if isinstance(layer, nn.Linear) else SimulatedConv2d
        assert isinstance(layer, SimulatedLinear | SimulatedConv2d)
        layer.scheme = scheme

    def nominal_bytes(self, layer: Layer, scheme: Scheme) -> int:
        """Of a converted layer's weight as packed integers, with a float32 scale for each group."""
        weight = layer.weight
        groups = -(-weight[0].numel() // _group_length(weight, self._group_size))
        return -(-weight.numel() * scheme.weight_bits // 8) + 4 * len(weight) * groups


def _group_length(weight: Tensor, group_size: int | None) -> int:
    columns = weight[0].numel()
    return columns if group_size is None else min(group_size, columns)


@torch.no_grad()
def _round_weight(weight: Tensor, bits: int, group_size: int | None) -> nn.Parameter:
    """(out, ...) -> the same, each group of a channel rounded by its own scale, in its dtype."""
    if bits >= FULL:
        return nn.Parameter(weight.detach(), requires_grad=False)
    top = 2 ** (bits - 1) - 1
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32)).flatten(1)
    columns, length = wide.shape[1], _group_length(weight, group_size)
    groups = F.pad(wide, (0, -columns % length)).view(len(wide), -1, length)
    scale = groups.abs().amax(-1, keepdim=True).clamp_(min=_TINY).div_(top)
    levels = (groups / scale).round_().clamp_(-top, top).mul_(scale)
    rounded = torch.empty_like(weight).copy_(levels.flatten(1)[:, :columns].view_as(weight))
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
