"""What a calibration changes: two coefficients a step, and schedulers that are scaled by them.

`coefficients` is the frozen value, `parametrisations` the map between it and a search vector,
`step` the scaled step itself, `preconditioning` puts it into any diffusers scheduler, `mixed` does
so image by image of a batch, and `standalone` writes such a scheduler as one file for plain
diffusers. Begin with `coefficients`.
"""

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    """`Preconditioned<Stock>` classes: saved pipelines and pickles name them by this package.

    diffusers looks for SchedulerMixin in the module of a scheduler that it loads in a pipeline.
    """
    if name.startswith("Preconditioned") or name == "SchedulerMixin":
        return getattr(importlib.import_module(f"{__name__}.preconditioning"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
