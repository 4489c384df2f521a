"""What passes through the parts of a pipeline: taken apart by image, put together, recognised.

`generator` replaces a pipeline's methods for a while and keeps what they return, image by image, in
the computer's memory.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor

Row = list[tuple[torch.device | None, Any]]
"""One image's share of a pipeline method's output: for each part its value, on the CPU, and the
device it belongs to; None for what all images share."""


def rows(output: Any, count: int) -> list[Row]:
    """`output` (a tensor, or a tuple of tensors and shared values) taken apart by image.

    Tensors of `count` rows belong to the images, but for lists of places, (L, 3), as FLUX has them
    for tokens and patches, which all images share.
    """
    parts = output if isinstance(output, tuple) else (output,)

    def per_image(part: Any) -> bool:
        if not isinstance(part, Tensor) or not part.ndim or len(part) != count:
            return False
        return not (part.ndim == 2 and part.shape[1] == 3)

    return [
        [
            (part.device, part[index].to("cpu", copy=True)) if per_image(part) else (None, part)
            for part in parts
        ]
        for index in range(count)
    ]


def joined(apart: Sequence[Row]) -> Any:
    """What `rows` took apart, for other images in another order."""
    parts = tuple(
        torch.stack([row[part][1] for row in apart]).to(device) if device is not None else value
        for part, (device, value) in enumerate(apart[0])
    )
    return parts if len(parts) > 1 else parts[0]


def input_digests(arguments: Mapping[str, Any]) -> list[bytes]:
    """A digest of the denoiser's inputs for each row of its batch.

    The first tensor is the sample; its length is the number of rows (twice the images under
    classifier-free guidance). Tensors of that length count row by row, all else counts for every
    row.
    """
    leaves = list(_leaves(arguments))
    count = len(next(value for _, value in leaves if isinstance(value, Tensor) and value.ndim))
    shared = hashlib.blake2b(digest_size=20)
    rows = []
    for name, value in leaves:
        if isinstance(value, Tensor) and value.ndim and len(value) == count:
            rows.append(_bytes(value).reshape(count, -1))
            shared.update(f"{name}:{value.dtype}:{tuple(value.shape[1:])};".encode())
        elif isinstance(value, Tensor):
            shared.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
            shared.update(_bytes(value.reshape(-1)).numpy().data)
        else:
            shared.update(f"{name}={value!r};".encode())
    digests = []
    for index in range(count):
        digest = shared.copy()
        for row in rows:
            digest.update(row[index].numpy().data)
        digests.append(digest.digest())
    return digests


def _leaves(arguments: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested arguments, such as SDXL's added_cond_kwargs, with their names."""
    return chain.from_iterable(
        _leaves(value, f"{prefix}{name}.")
        if isinstance(value, Mapping)
        else ((f"{prefix}{name}", value),)
        for name, value in arguments.items()
    )


def _bytes(tensor: Tensor) -> Tensor:
    """The memory of a tensor of at least one dimension as uint8 on the CPU."""
    # A copy, since a single expanded element has stride 0 and yet counts as contiguous.
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format).view(torch.uint8)


@contextmanager
def replaced(owner: object, name: str, replacement: Callable[..., Any]) -> Iterator[None]:
    """An instance's method replaced for a while; an earlier replacement is put back."""
    own = vars(owner)
    before = own.get(name)
    object.__setattr__(owner, name, replacement)
    try:
        yield
    finally:
        if before is None:
            object.__delattr__(owner, name)
        else:
            object.__setattr__(owner, name, before)
