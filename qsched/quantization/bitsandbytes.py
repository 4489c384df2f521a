"""The backend `bitsandbytes`: Linear layers of 4 or 8 bits that really are that small.

| scheme | layer | scales of weights; of activations | bits held for a weight |
|---|---|---|---|
| nf4, fp4 | Linear4bit: levels of a normal distribution, or floating point | 64 weights | 4 |
| int8 | Linear8bitLt: LLM.int8 (Dettmers et al. 2022) | channel; token | 8 |

A layer stays the object it was, with its hooks, and becomes one of the library's, on the device
where it was.

LLM.int8 calculates in float16, and a channel in which any number of the image exceeds 6 is left in
16 bits. bitsandbytes means any of the batch; here the layer is called image by image, so that no
image depends on its neighbours.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

from qsched.quantization.backend import Backend, Converter, Snippet
from qsched.quantization.schemes import FULL, Scheme

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from qsched.quantization.layers import Layer

OUTLIER_THRESHOLD = 6.0
"""LLM.int8's own, and the default of diffusers' configuration."""

_FOUR_BITS = """\
for name, layer in list({network}.named_modules()):
    if wanted(layer, name):
        how = {{"compress_statistics": False, "quant_type": "{scheme}"}}
        few = bnb.nn.Linear4bit(
            layer.in_features, layer.out_features, layer.bias is not None,
            compute_dtype=layer.weight.dtype, device="meta", **how,
        )
        weight = bnb.nn.Params4bit(layer.weight.data, requires_grad=False, module=few, **how)
        few.weight = weight.to(device)
        few.support_avx512bf16_for_cpu = False  # on a CPU too, calculate in the network's dtype
        few.bias = layer.bias
        {network}.set_submodule(name, few.eval())"""

_EIGHT_BITS = """\
for name, layer in list({network}.named_modules()):
    if wanted(layer, name):
        few = bnb.nn.Linear8bitLt(
            layer.in_features, layer.out_features, layer.bias is not None,
            has_fp16_weights=False, threshold={threshold}, device="meta",
        )
        few.weight = bnb.nn.Int8Params(layer.weight.data, requires_grad=False).to(device)
        few.bias = layer.bias
        {network}.set_submodule(name, few.eval())"""


class BitsAndBytes(Backend):
    """Blocks of 64 weights for 4 bits, a scale for each channel for 8."""

    description = "4-bit weights in blocks of 64, or LLM.int8"
    schemes = (Scheme("nf4", 4, FULL), Scheme("fp4", 4, FULL), Scheme("int8", 8, 8))
    packages = ("bitsandbytes",)
    modules = ("bitsandbytes",)
    extra = "gpu"
    scales = "blocks of 64 weights"
    loads_straight = True

    def converter(self, group_size: int | None) -> "_Converter":
        """Raises QuantizationError if bitsandbytes is not installed."""
        return _Converter(self.library("bitsandbytes.nn"))

    def quantized_as(self, layer: "Layer") -> str | None:
        """The scheme's name."""
        weight = layer.weight
        if type(weight).__module__.startswith("bitsandbytes."):
            return str(getattr(weight, "quant_type", "int8"))
        return None

    def loading_config(self, scheme: Scheme, dtype: "torch.dtype", spared: Sequence[str]) -> Any:
        """diffusers also spares every layer whose last name is among those of `spared`: Flux's
        `proj_out` means that of each single block too."""
        self.library("bitsandbytes")
        from diffusers import BitsAndBytesConfig

        if scheme.name == "int8":
            return BitsAndBytesConfig(
                load_in_8bit=True,
                llm_int8_threshold=OUTLIER_THRESHOLD,
                llm_int8_skip_modules=list(spared),
            )
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=scheme.name,
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_use_double_quant=False,
            llm_int8_skip_modules=list(spared),
        )

    def snippet(self, network: str, scheme: Scheme, group_size: int | None) -> Snippet:
        """Each layer replaced by one of the library's, whose weight is quantized on its way to the
        device."""
        loop = _EIGHT_BITS if scheme.name == "int8" else _FOUR_BITS
        code = loop.format(network=network, scheme=scheme.name, threshold=OUTLIER_THRESHOLD)
        return Snippet(
            imports=("import bitsandbytes as bnb",),
            rules=("type(layer) is torch.nn.Linear",),
            lines=tuple(code.splitlines()),
            on_device=False,
        )


class _Converter(Converter):
    """`library`: bitsandbytes.nn."""

    def __init__(self, library: ModuleType) -> None:
        self._nn = library

    def obstacle(self, layer: "Layer", scheme: Scheme) -> str | None:
        """A convolution."""
        from torch import nn

        return None if isinstance(layer, nn.Linear) else "no convolutions in bitsandbytes"

    def convert(self, layer: Any, scheme: Scheme) -> None:
        """Makes it a Linear4bit or Linear8bitLt whose weight is quantized."""
        weight = layer.weight.detach()
        shape = (layer.in_features, layer.out_features, layer.bias is not None)
        if scheme.name == "int8":
            plain = self._nn.Linear8bitLt(
                *shape, has_fp16_weights=False, threshold=OUTLIER_THRESHOLD, device="meta"
            )
            # Only what comes from the CPU is quantized on its way to a device.
            held = self._nn.Int8Params(weight.cpu(), requires_grad=False).to(weight.device)
        else:
            how = {"compress_statistics": False, "quant_type": scheme.name}
            plain = self._nn.Linear4bit(*shape, compute_dtype=weight.dtype, device="meta", **how)
            held = self._nn.Params4bit(weight, requires_grad=False, module=plain, **how)
            held = held.to(weight.device)
        own = vars(layer)
        own.update({key: value for key, value in vars(plain).items() if key not in own})
        layer.__class__ = type(plain)
        layer.weight = held
        self.settle(layer)

    def settle(self, layer: Any) -> None:
        """Makes it run on any CPU and move with its network."""
        if isinstance(layer, self._nn.Linear4bit):
            # On CPUs that know bfloat16 it would repack itself, calculate in bfloat16, and fail
            # unless the number of outputs is a multiple of 32.
            layer.support_avx512bf16_for_cpu = False
        else:
            layer.__class__ = _image_by_image(self._nn.Linear8bitLt)
            if layer.weight.CB is not None:
                layer.init_8bit_state()

    def held(self, module: "nn.Module") -> "Iterator[Tensor]":
        """Scales and tables too, which the library keeps beside its integers."""
        from torch import Tensor

        yield from super().held(module)
        for parameter in module.parameters(recurse=False):
            state = getattr(parameter, "quant_state", None)
            # 4 bits: a state of the weight, perhaps nested. 8 bits: the weight, the layer once it
            # ran.
            for holder in (
                state,
                getattr(state, "state2", None),
                parameter,
                getattr(module, "state", 0),
            ):
                for name in ("absmax", "code", "offset", "CB", "SCB"):
                    value = getattr(holder, name, None)
                    if isinstance(value, Tensor):
                        yield value


@cache
def _image_by_image(linear: Any) -> type:
    """bitsandbytes' Linear8bitLt as qsched needs it.

    It calculates image by image: LLM.int8 takes outlying columns out of the whole batch, so an
    image would depend on its neighbours. Its integers and scales follow when the network around it
    is moved or offloaded: it has them in a place of its own that nn.Module does not know of.
    """
    import torch
    from torch import nn

    def forward(layer: Any, x: "Tensor") -> "Tensor":
        if x.ndim < 2 or len(x) == 1:
            alone: Tensor = linear.forward(layer, x)
            return alone
        return torch.cat([linear.forward(layer, row) for row in x.split(1)])

    def _apply(layer: Any, fn: "Callable[[Tensor], Tensor]", recurse: bool = True) -> Any:
        nn.Linear._apply(layer, fn, recurse)
        layer.state.CB = layer.weight.data
        layer.state.SCB = layer.state.SCB.to(layer.weight.device)
        return layer

    return type(linear.__name__, (linear,), {"_apply": _apply, "forward": forward})
