"""`[quantization]` of a study file."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, Field, ValidationInfo, model_validator

from qsched.errors import QschedError
from qsched.quantization.backend import Backend, backend_named
from qsched.quantization.schemes import Scheme, resolve
from qsched.tables import Section, accepted_by, is_stored


def _canonical(name: str, so_far: ValidationInfo) -> str:
    """A scheme's name as the reports have it; the backend's own names are known too."""
    if is_stored(so_far) or "backend" not in so_far.data:
        return name  # it is the canonical one; the backend's problem comes first
    try:
        return Scheme.parse(name, so_far.data["backend"]).name
    except QschedError as error:
        raise ValueError(str(error)) from error


SchemeName = Annotated[str, AfterValidator(_canonical)]


class Quantization(Section):
    """`[quantization]`: the backend, its scheme, and the layers (patterns) treated otherwise.

    `skip`: None leaves the first and the last layer as they are, an empty list nothing.
    """

    backend: Annotated[str, accepted_by(backend_named)] | None = None
    scheme: SchemeName
    skip: tuple[str, ...] | None = None
    overrides: Mapping[str, SchemeName] = Field(default_factory=dict)
    group_size: int | None = None

    @model_validator(mode="after")
    def _exists(self, info: ValidationInfo) -> "Quantization":
        if is_stored(info):
            return self
        try:
            self.resolved()
        except QschedError as error:
            raise ValueError(str(error)) from error
        return self

    def resolved(self) -> tuple[Backend, int | None]:
        """The backend that quantizes, and how many weights share a scale; see `schemes.resolve`."""
        name, size = resolve(self.scheme, self.backend, self.overrides.values(), self.group_size)
        return backend_named(name), size
