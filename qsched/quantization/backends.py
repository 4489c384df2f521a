"""The backends that hold real integers, torchao and bitsandbytes. Each is imported when first used.

Both convert Linear layers only, in place: a layer stays the object it was, with its hooks, and its
weight becomes the library's own kind of tensor, on the device where it was.

| scheme | what it is | scales of weights; of activations | bits held for a weight |
|---|---|---|---|
| w8a8 | torchao Int8DynamicActivationInt8WeightConfig | channel; token | 8 |
| w4a8 | torchao Int8DynamicActivationIntxWeightConfig, int4 | 32 weights; token | 8 |
| w8 | torchao Int8WeightOnlyConfig | channel | 8 |
| w4 | torchao IntxWeightOnlyConfig, int4 | 32 weights | 8 |
| nf4, fp4 | bitsandbytes Linear4bit | 64 weights | 4 |
| int8 | bitsandbytes Linear8bitLt (LLM.int8) | channel; token | 8 |

torchao's int4 is kept in int8, as the paper ran it: its packed layouts want compiled kernels that
only some GPUs and versions have, while this one calculates the same on a CPU and on any GPU. In
float16 its w8a8 can overflow (it multiplies by the two scales one after the other): use bfloat16.

LLM.int8 calculates in float16, and a channel in which any number of the image exceeds 6 is left in
16 bits. bitsandbytes means any of the batch; here the layer is called image by image, so that no
image depends on its neighbours.
"""

import importlib
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from qsched.errors import QuantizationError
from qsched.libraries import quiet
from qsched.quantization.schemes import Scheme

OUTLIER_THRESHOLD = 6.0
"""LLM.int8's own, and the default of diffusers' configuration."""


class TorchAO:
    """The backend `torchao`. Raises QuantizationError if it is not installed, or too old."""

    name = "torchao"

    def __init__(self, group_size: int) -> None:
        self._group_size = group_size
        library = _imported("torchao.quantization")
        try:
            with quiet():
                self._configs = _torchao_configs(library, group_size)
        except (AttributeError, TypeError) as error:
            raise QuantizationError(
                f"quantization backend torchao: {error}; this version of torchao is not one that "
                "qsched knows; pip install 'qsched[gpu]'"
            ) from error
        self._quantize = library.quantize_

    def obstacle(self, layer: nn.Module, scheme: Scheme) -> str | None:
        """Why this layer can't be converted; None if it can."""
        if not isinstance(layer, nn.Linear):
            return "no convolutions in torchao"
        if scheme.weight_bits == 4 and layer.in_features % self._group_size:
            return f"inputs not divisible by {self._group_size}"
        return None

    def convert(self, layer: nn.Module, scheme: Scheme) -> None:
        """Quantizes the layer's weight."""
        self._quantize(layer, self._configs[scheme.name], filter_fn=lambda *_: True)

    def nominal_bytes(self, layer: nn.Module, scheme: Scheme) -> int:
        """Of a converted layer's weight, had its integers been packed; scales as they are held."""
        return _packed(layer, scheme)


class BitsAndBytes:
    """The backend `bitsandbytes`. Raises QuantizationError if it is not installed."""

    name = "bitsandbytes"

    def __init__(self) -> None:
        self._nn = _imported("bitsandbytes.nn")

    def obstacle(self, layer: nn.Module, scheme: Scheme) -> str | None:
        """Why this layer can't be converted; None if it can."""
        return None if isinstance(layer, nn.Linear) else "no convolutions in bitsandbytes"

    def convert(self, layer: nn.Module, scheme: Scheme) -> None:
        """Makes it a Linear4bit or Linear8bitLt whose weight is quantized."""
        assert isinstance(layer, nn.Linear)
        weight = layer.weight.detach()
        shape = (layer.in_features, layer.out_features, layer.bias is not None)
        if scheme.name == "int8":
            plain: Any = self._nn.Linear8bitLt(
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
        """Makes a quantized layer, whoever made it, run on any CPU and move with its network."""
        if isinstance(layer, self._nn.Linear4bit):
            # On CPUs that know bfloat16 it would repack itself, calculate in bfloat16, and fail
            # unless the number of outputs is a multiple of 32.
            layer.support_avx512bf16_for_cpu = False
        else:
            layer.__class__ = _image_by_image(self._nn.Linear8bitLt)
            if layer.weight.CB is not None:
                layer.init_8bit_state()

    def nominal_bytes(self, layer: nn.Module, scheme: Scheme) -> int:
        """Of a converted layer's weight at its nominal width; scales as they are held."""
        return _packed(layer, scheme)


def diffusers_config(scheme: Scheme, dtype: torch.dtype, skip: Sequence[str] = ()) -> Any:
    """diffusers' configuration to load a network straight into `nf4`, `fp4` or `int8` on a GPU.

        Model.from_pretrained(..., dtype=dtype, quantization_config=config)

    `skip`: full names of the layers to load in full precision. diffusers also spares every layer
    whose last name is among them (Flux's `proj_out` means that of each single block too); so
    `quantize.finish_loading` converts those afterwards. Raises QuantizationError without
    bitsandbytes.
    """
    _imported("bitsandbytes")
    from diffusers import BitsAndBytesConfig

    if scheme.name == "int8":
        return BitsAndBytesConfig(
            load_in_8bit=True,
            llm_int8_threshold=OUTLIER_THRESHOLD,
            llm_int8_skip_modules=list(skip),
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=scheme.name,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_use_double_quant=False,
        llm_int8_skip_modules=list(skip),
    )


@cache
def _image_by_image(linear: Any) -> type:
    """bitsandbytes' Linear8bitLt as qsched needs it.

    It calculates image by image: LLM.int8 takes outlying columns out of the whole batch, so an
    image would depend on its neighbours. Its integers and scales follow when the network around it
    is moved or offloaded: it has them in a place of its own that nn.Module does not know of.
    """

    def forward(layer: Any, x: Tensor) -> Tensor:
        if x.ndim < 2 or len(x) == 1:
            alone: Tensor = linear.forward(layer, x)
            return alone
        return torch.cat([linear.forward(layer, row) for row in x.split(1)])  # type: ignore[no-untyped-call]

    def _apply(layer: Any, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        nn.Linear._apply(layer, fn, recurse)  # type: ignore[no-untyped-call]
        layer.state.CB = layer.weight.data
        layer.state.SCB = layer.state.SCB.to(layer.weight.device)
        return layer

    return type(linear.__name__, (linear,), {"_apply": _apply, "forward": forward})


def quantized_as(layer: nn.Module) -> str | None:
    """How a backend of this module has quantized the layer: bitsandbytes' scheme, or torchao's kind
    of tensor. None if none has."""
    weight = getattr(layer, "weight", None)
    if type(weight).__module__.startswith("torchao."):
        return type(weight).__name__
    if type(weight).__module__.startswith("bitsandbytes."):
        return str(getattr(weight, "quant_type", "int8"))
    return None


def tensors_held(layer: nn.Module) -> Iterator[Tensor]:
    """The plain tensors behind a module's own parameters; those of a quantized weight begin with
    its integers, and its scales and tables follow. Some may come twice."""
    for parameter in layer.parameters(recurse=False):
        yield from _plain(parameter)
        state = getattr(parameter, "quant_state", None)
        # 4 bits: a state of the weight, perhaps nested. 8 bits: the weight, the layer once it ran.
        for holder in (
            state,
            getattr(state, "state2", None),
            parameter,
            getattr(layer, "state", 0),
        ):
            for name in ("absmax", "code", "offset", "CB", "SCB"):
                value = getattr(holder, name, None)
                if isinstance(value, Tensor):
                    yield value


def size_of(tensors: Iterator[Tensor]) -> int:
    """Bytes that these plain tensors hold; memory that several share counts once."""
    sizes: dict[tuple[torch.device, int], int] = {}
    for tensor in tensors:
        place = (tensor.device, tensor.data_ptr() or id(tensor))
        sizes[place] = max(sizes.get(place, 0), tensor.nbytes)
    return sum(sizes.values())


def _torchao_configs(library: ModuleType, group_size: int) -> dict[str, Any]:
    int4, group = torch.int4, library.PerGroup(group_size)  # type: ignore[attr-defined]
    # set_inductor_config changes settings of the whole process, once even float32 products.
    plain = {"set_inductor_config": False, "version": 2}
    return {
        "w8a8": library.Int8DynamicActivationInt8WeightConfig(**plain),
        "w4a8": library.Int8DynamicActivationIntxWeightConfig(
            weight_dtype=int4, weight_granularity=group, version=2
        ),
        "w8": library.Int8WeightOnlyConfig(**plain),
        "w4": library.IntxWeightOnlyConfig(weight_dtype=int4, granularity=group, version=2),
    }


def _plain(tensor: Any) -> Iterator[Tensor]:
    if is_traceable_wrapper_subclass(tensor):
        for name in tensor.__tensor_flatten__()[0]:
            yield from _plain(getattr(tensor, name))
    else:
        yield tensor


def _packed(layer: nn.Module, scheme: Scheme) -> int:
    assert isinstance(layer, nn.Linear)
    integers = next(_plain(layer.weight))
    bias: Tensor | None = layer.bias
    scales = size_of(tensors_held(layer)) - integers.nbytes - (0 if bias is None else bias.nbytes)
    return scales + -(-layer.in_features * layer.out_features * scheme.weight_bits // 8)


def _imported(name: str) -> ModuleType:
    """The library. Its log is kept to errors: it speaks of optional kernels, and bitsandbytes says
    at every call of an 8-bit layer that it calculates in float16."""
    package = name.partition(".")[0]
    logging.getLogger(package).setLevel(logging.ERROR)
    try:
        with quiet():
            return importlib.import_module(name)
    except ImportError as error:
        raise QuantizationError(
            f"quantization backend {package} can't be imported: {error}; pip install 'qsched[gpu]'"
        ) from error
