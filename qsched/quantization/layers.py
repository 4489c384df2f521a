"""What Linear and Conv2d layers hold: how many weights, in how many bytes."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

Layer = nn.Linear | nn.Conv2d
"""What can be quantized."""


def weights_of(layer: Layer) -> int:
    """The number of weights, whatever they are packed in."""
    if isinstance(layer, nn.Linear):
        return layer.in_features * layer.out_features
    return layer.weight.numel()


def tensors_held(module: nn.Module) -> Iterator[Tensor]:
    """The plain tensors behind a module's own parameters."""
    for parameter in module.parameters(recurse=False):
        yield from plain(parameter)


def plain(tensor: Any) -> Iterator[Tensor]:
    """The plain tensors that a tensor consists of: itself, unless it is a wrapper around others."""
    if is_traceable_wrapper_subclass(tensor):
        for name in tensor.__tensor_flatten__()[0]:
            yield from plain(getattr(tensor, name))
    else:
        yield tensor


def size_of(tensors: Iterator[Tensor]) -> int:
    """Bytes that these plain tensors hold; memory that several share counts once."""
    sizes: dict[tuple[torch.device, int], int] = {}
    for tensor in tensors:
        place = (tensor.device, tensor.data_ptr() or id(tensor))
        sizes[place] = max(sizes.get(place, 0), tensor.nbytes)
    return sum(sizes.values())
