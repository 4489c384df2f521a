"""The backend `torchao`: Linear layers with integer weights, as the paper ran them.

| scheme | torchao's configuration | scales of weights; of activations | bits held for a weight |
|---|---|---|---|
| w8a8 | Int8DynamicActivationInt8WeightConfig | channel; token | 8 |
| w4a8 | Int8DynamicActivationIntxWeightConfig, int4 | 32 weights; token | 8 |
| w8 | Int8WeightOnlyConfig | channel | 8 |
| w4 | IntxWeightOnlyConfig, int4 | 32 weights | 8 |

A layer stays the object it was, with its hooks, and its weight becomes torchao's own kind of
tensor, on the device where it was. int4 is kept in int8, as the paper ran it: its packed layouts
want compiled kernels that only some GPUs and versions have, while this one calculates the same on
a CPU and on any GPU. In float16 its w8a8 can overflow (it multiplies by the two scales one after
the other): use bfloat16.
"""

from types import ModuleType
from typing import TYPE_CHECKING, Any

from qsched.errors import QuantizationError
from qsched.libraries import quiet
from qsched.quantization.backend import Backend, Converter, Snippet
from qsched.quantization.schemes import FULL, Scheme

if TYPE_CHECKING:
    from qsched.quantization.layers import Layer

GROUP = 32
"""The 4-bit weights that share a scale unless another size is asked for."""

_SNIPPETS = {
    "w8a8": "Int8DynamicActivationInt8WeightConfig(set_inductor_config=False, version=2)",
    "w8": "Int8WeightOnlyConfig(set_inductor_config=False, version=2)",
    "w4a8": "Int8DynamicActivationIntxWeightConfig(\n"
    "    weight_dtype=torch.int4, weight_granularity=PerGroup({group}), version=2\n)",
    "w4": "IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup({group}), version=2)",
}


class TorchAO(Backend):
    """Groups of any size for 4 bits, a scale for each channel for 8."""

    description = "the paper's own; integer kernels where torchao has them"
    schemes = (
        Scheme("w8a8", 8, 8),
        Scheme("w4a8", 4, 8),
        Scheme("w8", 8, FULL),
        Scheme("w4", 4, FULL),
    )
    packages = ("torchao",)
    modules = ("torchao",)
    extra = "gpu"
    scales = "a scale for each channel"

    def group_size(self, scheme: Scheme, asked: int | None) -> int | None:
        """A multiple of nothing: layers whose inputs it does not divide stay as they are."""
        return asked or GROUP if scheme.weight_bits == 4 else super().group_size(scheme, asked)

    def converter(self, group_size: int | None) -> "_Converter":
        """Raises QuantizationError if torchao is not installed, or of another time."""
        library = self.library("torchao.quantization")
        group = group_size or GROUP
        try:
            with quiet():  # of deprecations in its own code
                return _Converter(library, _configs(library, group), group)
        except (AttributeError, TypeError) as error:
            raise QuantizationError(
                f"quantization backend {self.name}: {error}; this version of torchao is not one "
                f"that qsched knows; {self.remedy}"
            ) from error

    def quantized_as(self, layer: "Layer") -> str | None:
        """The kind of tensor."""
        kind = type(layer.weight)
        return kind.__name__ if kind.__module__.startswith("torchao.") else None

    def snippet(self, network: str, scheme: Scheme, group_size: int | None) -> Snippet:
        """Its configuration by name, and `quantize_`."""
        config = _SNIPPETS[scheme.name].format(group=group_size)
        names = ["quantize_", config.partition("(")[0], *(["PerGroup"] if group_size else [])]
        divided = (f"layer.in_features % {group_size} == 0",) if group_size else ()
        return Snippet(
            imports=tuple(f"from torchao.quantization import {name}" for name in names),
            rules=("type(layer) is torch.nn.Linear", *divided),
            lines=(f"config = {config}", f"quantize_({network}, config, filter_fn=wanted)"),
        )


class _Converter(Converter):
    """`configs`: torchao's, by the scheme's name."""

    def __init__(self, library: ModuleType, configs: dict[str, Any], group_size: int) -> None:
        self._library = library
        self._configs = configs
        self._group_size = group_size

    def obstacle(self, layer: "Layer", scheme: Scheme) -> str | None:
        """A convolution, or inputs that the groups don't divide."""
        from torch import nn

        if not isinstance(layer, nn.Linear):
            return "no convolutions in torchao"
        if scheme.weight_bits == 4 and layer.in_features % self._group_size:
            return f"inputs not divisible by {self._group_size}"
        return None

    def convert(self, layer: "Layer", scheme: Scheme) -> None:
        """Quantizes the layer's weight."""
        self._library.quantize_(layer, self._configs[scheme.name], filter_fn=lambda *_: True)


def _configs(library: ModuleType, group_size: int) -> dict[str, Any]:
    import torch

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
