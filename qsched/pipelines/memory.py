"""A device's memory: smaller batches where it is too little, how much was used, how to free it."""

import gc
import resource
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from qsched.errors import GenerationError

MEMORY_REMEDIES = (
    "set execution.offload = 'model', model.text_encoders = 'int8', execution.vae_slicing = true "
    "or model.vae_tiling = true, or take a smaller execution.batch_size or image"
)
"""What to do where a device has too little memory."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_batches(
    items: Sequence[Item],
    size: int,
    work: Callable[[Sequence[Item]], Result],
    *,
    doing: str,
    on_halved: Callable[[int], None] = lambda size: None,
) -> Iterator[Result]:
    """`work(batch)` for all items, `size` at a time, in their order.

    Where a device runs out of memory, that batch and those that follow are half as large;
    `on_halved(size)` is told first. Raises GenerationError where one item is too much; `doing`:
    what is done to it, as in "is scored".
    """
    start = 0
    while start < len(items):
        batch = items[start : start + size]
        try:
            result = work(batch)
        except torch.OutOfMemoryError:
            if size == 1:
                raise GenerationError(
                    f"out of memory while one image {doing}; {MEMORY_REMEDIES}"
                ) from None
        else:
            yield result
            start += len(batch)
            continue
        # Here, where the exception no longer holds the tensors of the attempt.
        size //= 2
        on_halved(size)


def free_memory() -> None:
    """What nothing refers to any more leaves the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class PeakMemory:
    """The most memory that was in use since the last look, in decimal gigabytes."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __call__(self) -> float:
        """On a GPU what torch allocated since the last call; else the process's peak so far."""
        if self._device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return round(peak / 1e9, 3)
