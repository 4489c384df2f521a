"""Where a study runs: devices by name, and what a value depends on of them."""

import platform

import torch

from qsched.errors import ModelError
from qsched.pipelines import catalog
from qsched.pipelines.table import Execution, Model


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
