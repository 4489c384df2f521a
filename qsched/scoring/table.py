"""`[objective]` of a study file."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from qsched.scoring.catalog import PRESETS, scorer_entry
from qsched.tables import Section, accepted_by


class TermTable(Section):
    """One `[[objective.terms]]`; `log`: its logarithm counts."""

    scorer: Annotated[str, accepted_by(scorer_entry)]
    weight: float = Field(default=1.0, allow_inf_nan=False)
    log: bool = False


class ObjectiveTable(Section):
    """`[objective]`: the terms of JAQ, one's own or a preset's, and their units."""

    preset: Literal["standardised", "plain", "clip", "clip-log", "hps"] = "standardised"
    terms: tuple[TermTable, ...] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _preset_terms(cls, table: Any) -> Any:
        """Writes a preset's terms out, so that the study says what it measured."""
        if not isinstance(table, Mapping):
            return table
        preset = table.get("preset", "standardised")
        known = PRESETS.get(preset) if isinstance(preset, str) else None
        if known is None or "terms" in table:
            return table
        terms = [
            {"scorer": scorer, "weight": weight, "log": how == "log"}
            for scorer, weight, how in known
        ]
        return {**table, "terms": terms}

    @model_validator(mode="after")
    def _each_scorer_once(self) -> "ObjectiveTable":
        names = [term.scorer for term in self.terms]
        if len(set(names)) < len(names):
            raise ValueError(f"a scorer stands there twice: {', '.join(names)}")
        return self
