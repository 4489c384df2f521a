"""Where a study runs: devices by name, what a value depends on of them, and their memory."""

import gc
import platform
import resource
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from qsched.errors import GenerationError, ModelError
from qsched.pipelines import catalog
from qsched.pipelines.table import Execution, Model

MEMORY_REMEDIES = (
    "set execution.offload = 'model', model.text_encoders = 'int8', execution.vae_slicing = true "
    "or model.vae_tiling = true, or take a smaller execution.batch_size or image"
)
"""What to do where a device has too little memory."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def device_for(model: Model, execution: Execution) -> torch.device:
    """Where a study runs. Raises ModelError where there is no such device."""
    if execution.device == "auto":
        device = best_device()
        needed = catalog.model_entry(model.name).gpu_gb
        if device.type == "cpu" and needed and not model.twin:
            raise ModelError(
                f"{model.name} needs a GPU with about {needed:.0f} GB and torch finds none here; "
                "qsched doctor says why, --twin tries the study with a tiny model, and "
                "execution.device = 'cpu' runs it all the same, slowly"
            )
    else:
        try:
            device = torch.device(execution.device)
        except RuntimeError as error:
            raise ModelError(
                f"execution.device = {execution.device!r}; expected 'auto', 'cpu' or 'cuda:0'"
            ) from error
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ModelError(
                f"execution.device = {execution.device!r} and torch finds no GPU here; "
                "qsched doctor says why"
            )
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise ModelError(
                f"execution.device = {execution.device!r}; there are {torch.cuda.device_count()} "
                "GPUs here, counted from cuda:0"
            )
    if execution.offload != "none" and device.type != "cuda":
        raise ModelError(
            f"execution.offload = {execution.offload!r} moves parts between a GPU and the "
            "computer's memory, and there is no GPU here; set it to 'none'"
        )
    return device


def best_device() -> torch.device:
    """The first GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def hardware(device: torch.device) -> dict[str, str]:
    """What a value depends on beside the study: the device's model and torch's version."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {"device": f"{device.type} {name}", "torch": torch.__version__}


def gpus() -> list[str]:
    """All GPUs that torch sees here, by name; CUDA_VISIBLE_DEVICES hides some."""
    return [f"cuda:{index}" for index in range(torch.cuda.device_count())]


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
