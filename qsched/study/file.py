"""A study file: the rooms' tables in one, and the rules between them."""

import re
from typing import Self

from pydantic import Field, ValidationInfo, model_validator

from qsched.errors import QschedError
from qsched.evidence.table import Validation
from qsched.pictures.table import Gallery
from qsched.pipelines.agreement.settings import averages
from qsched.pipelines.table import Execution, Model, Sampling
from qsched.prompts import Prompts
from qsched.quantization.table import Quantization
from qsched.schedule.parametrisations import Parametrisation, automatic, parametrisation
from qsched.scoring.catalog import HELD_OUT, independent
from qsched.scoring.table import ObjectiveTable
from qsched.search.catalog import resolved
from qsched.search.table import Search
from qsched.tables import Section, is_stored

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


def is_name(name: object) -> bool:
    """Whether a study may have this name: it is part of paths and of commands."""
    return isinstance(name, str) and re.fullmatch(NAME, name) is not None


class StudyFile(Section):
    """The tables of a study file, as written."""

    name: str = Field(pattern=NAME)
    model: Model
    sampling: Sampling
    quantization: Quantization
    objective: ObjectiveTable
    search: Search = Search()
    prompts: Prompts
    validation: Validation
    execution: Execution = Execution()
    gallery: Gallery = Gallery()

    @property
    def space(self) -> Parametrisation:
        """What is searched."""
        name, steps = self.search.parametrisation, self.sampling.steps
        if name == "auto":
            name = automatic(steps, averages=averages(self.model))
        return parametrisation(name, steps)

    @model_validator(mode="after")
    def _the_sampler_fits_the_space(self) -> Self:
        try:
            resolved(self.search.sampler, self.space.dimension)
        except QschedError as error:
            raise ValueError(f"search.sampler, search.parametrisation: {error}") from error
        return self

    @model_validator(mode="after")
    def _one_metric_is_independent(self, info: ValidationInfo) -> Self:
        if is_stored(info):
            return self
        searched = [term.scorer for term in self.objective.terms]
        if any(independent(name, searched) for name in self.validation.metrics):
            return self
        names = [name for name in HELD_OUT if independent(name, searched)]
        raise ValueError(
            "validation.metrics: none is independent of what the search optimises; "
            f"add {' or '.join(names)}"
        )
