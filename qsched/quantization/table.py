"""`[quantization]` of a study file."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from qsched.errors import QschedError
from qsched.quantization.schemes import Scheme, resolve
from qsched.tables import Section


def _canonical(name: str) -> str:
    """A scheme's name as the reports have it."""
    try:
        return Scheme.parse(name).name
    except QschedError as error:
        raise ValueError(str(error)) from error


SchemeName = Annotated[str, AfterValidator(_canonical)]


class Quantization(Section):
    """`[quantization]`: the scheme, its backend, and the layers (patterns) treated otherwise.

    `skip`: None leaves the first and the last layer as they are, an empty list nothing.
    """

    scheme: SchemeName
    backend: str | None = None
    skip: tuple[str, ...] | None = None
    overrides: Mapping[str, SchemeName] = Field(default_factory=dict)
    group_size: int | None = None

    @model_validator(mode="after")
    def _exists(self) -> "Quantization":
        try:
            resolve(self.scheme, self.backend, self.overrides.values(), self.group_size)
        except QschedError as error:
            raise ValueError(str(error)) from error
        return self
