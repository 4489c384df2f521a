"""What images are really drawn with, defaults of the pipeline's class and folder counted in.

    effective(model, sampling).words     # "guidance 5 (its own), 1024 x 1024 pixels, ..."

Read from diffusers' source and the folder's files, so it takes no torch; what neither tells is the
pipeline's own, in words.
"""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qsched.errors import ModelError
from qsched.pipelines import catalog
from qsched.pipelines.agreement.settings import unread
from qsched.pipelines.folders import contents
from qsched.pipelines.table import Model, Sampling, layout_of
from qsched.signatures import of_diffusers

OWN = "the pipeline's own"

FEW_STEPS = 8
"""Up to here a model was distilled, mostly to be drawn without guidance."""


@dataclass(frozen=True)
class Effective:
    """`guidance`: None where the pipeline takes none, or where nothing tells; `guidance_open`: the
    study leaves it to a default that draws with guidance, or that isn't known. `size`: width and
    height in pixels. `scheduler`: its class. None: the pipeline's own, whatever that is.
    """

    guidance: float | None
    guidance_open: bool
    size: tuple[int, int] | None
    scheduler: str | None
    dtype: str

    @property
    def guidance_in_words(self) -> str:
        """0.0, or a default with whose it is."""
        if self.guidance is None:
            return OWN
        return f"{self.guidance} ({OWN})" if self.guidance_open else str(self.guidance)

    @property
    def size_in_words(self) -> str:
        """512 x 512."""
        return f"{self.size[0]} x {self.size[1]}" if self.size else OWN

    @property
    def words(self) -> str:
        """All of it in one line."""
        guidance, size = f"guidance {self.guidance_in_words}", f"size {self.size_in_words}"
        return f"{guidance}, {size}, scheduler {self.scheduler or OWN}, {self.dtype}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON; null is the pipeline's own."""
        width, height = self.size or (None, None)
        return {
            "guidance_scale": self.guidance,
            "width": width,
            "height": height,
            "scheduler": self.scheduler,
            "dtype": self.dtype,
        }


def effective(model: Model, sampling: Sampling) -> Effective:
    """What a study's complete tables come to."""
    kind = of_diffusers(model.pipeline) if model.pipeline else None
    defaults = kind.parameters("__call__") if kind else {}
    given, source = sampling.arguments(), layout_of(model)
    found = None
    with suppress(ModelError):  # a report is written without the model's files, too
        found = contents(Path(source)) if catalog.is_folder(source) and not model.twin else None

    def value(key: str) -> Any:
        default = defaults[key].default if key in defaults else None
        return given.get(key, default)

    set_to = [given[key] for key in catalog.GUIDANCE if given.get(key) is not None]
    guidance = set_to[0] if set_to else value("guidance_scale")
    own, left_open = found.side if found else None, not set_to
    takes_it = kind is None or "guidance_scale" in defaults
    width, height = value("width") or own, value("height") or own
    scheduler = str(model.scheduler["class"]) if model.scheduler else None
    return Effective(
        guidance=guidance,
        guidance_open=left_open and takes_it and (kind is None or (guidance or 0.0) > 1.0),
        size=(width, height) if width and height else None,
        scheduler=scheduler or (found.scheduler if found else None),
        dtype=model.dtype or "float32",
    )


def warnings(model: Model, sampling: Sampling) -> list[str]:
    """What is allowed and mostly a mistake, one line each."""
    drawn, found = effective(model, sampling), list(unread(model, sampling))
    if sampling.steps > FEW_STEPS or not drawn.guidance_open:
        return found
    own = f"{model.pipeline} draws with {drawn.guidance:g}" if drawn.guidance else f"{OWN} counts"
    return [
        *found,
        f"sampling.guidance_scale is left open: {own}; models of few steps are mostly drawn "
        "without guidance; set it, to 0.0 if so",
    ]
