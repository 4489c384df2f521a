"""What goes through validation beside the identity: a study's best trials, and its controls.

A control is a companion study of the same database, derived from the study's definition and named
after it, such as `demo.full-precision`. It is created, worked, resumed and repeated like any other.
"""

import logging
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from qsched.errors import StudyError
from qsched.pipelines.table import Model, model_named, weights_of
from qsched.proof.outcome import Control
from qsched.service.status import Candidate
from qsched.service.stored_study import StoredStudy, create, load
from qsched.study.study import Study

FULL_PRECISION, GRID = "full-precision", "grid"
ALL = "all"
GRID_SIDE, GRID_BOUNDS = 10, (0.8, 1.2)
"""The official search: its box, and the number of points that it takes by default."""

logger = logging.getLogger(__name__)


def candidates(study: StoredStudy, count: int) -> list[Candidate]:
    """The best `count` finished trials by value, the earlier one among equals, with distinct
    coefficients; the identity is none of them."""
    best: dict[Any, Candidate] = {}
    valued = [slot for slot in study.finished() if slot.value is not None]
    for slot in sorted(valued, key=lambda slot: (-(slot.value or 0.0), slot.number)):
        found = study.candidate(slot)
        if len(best) < count and not found.coefficients.is_identity:
            best.setdefault(found.coefficients, found)
    return list(best.values())


def phrases(study: Study) -> dict[str, str]:
    """{control: what it is, in words} of the controls that a study can have.

    Each term of the objective alone is one: `alignment` (the first, TC) and `quality` (the second,
    IQ) where there are two, else by the scorer's name.
    """
    found = {}
    if not _is_full_precision(study):
        found[FULL_PRECISION] = "the same search on full precision"
    if len(study.scorers) > 1:
        for name, scorer in _terms(study).items():
            found[name] = f"the same search by {scorer} alone"
    found[GRID] = f"the official grid, {GRID_SIDE} x {GRID_SIDE} ramps in {list(GRID_BOUNDS)}"
    return found


def chosen(study: Study, names: Collection[str]) -> list[str]:
    """`names` of controls, `all` for each; in the order of the report. Raises StudyError for one
    that the study can't have, with those that it can."""
    known = phrases(study)
    odd = [name for name in names if name not in (*known, ALL)]
    if odd:
        why = ""
        if FULL_PRECISION in odd and _is_full_precision(study):
            why = "; the study is on full precision itself"
        raise StudyError(
            f"--controls: {', '.join(odd)}; expected some of {', '.join(known)}, or all{why}"
        )
    return [name for name in known if name in names or ALL in names]


def definition(study: Study, name: str, trials: int) -> Study:
    """The companion study of a control. `trials`: the study's budget; the grid has its own."""
    search = study.tables.search.model_dump() | {"trials": trials}
    changes: dict[str, Any] = {"name": f"{study.name}.{name}"}
    weights = study.weights
    if name == FULL_PRECISION:
        changes["quantization"] = {"scheme": "none"}
        if study.tables.model.full_precision is not None:
            model = full_precision(study.tables.model, study.tables.sampling.steps)
            changes["model"], weights = model.model_dump(), weights_of(model)
    elif name == GRID:
        search |= {
            "parametrisation": "ramp",
            "bounds": GRID_BOUNDS,
            "sampler": "grid",
            "prompts_per_trial": None,
            "trials": GRID_SIDE**2 + 1,
            "stop_below": 0.0,
            "prior": 0.0,
        }
    else:
        objective = study.tables.objective.model_dump()
        scorer = _terms(study)[name]
        objective["terms"] = [term for term in objective["terms"] if term["scorer"] == scorer]
        changes["objective"] = objective
    return replace(study.with_tables(changes | {"search": search}), weights=weights)


def companion(study: StoredStudy, name: str, accept: Collection[str] = ()) -> StoredStudy:
    """A control's study, created or resumed with the study's own budget; `accept` as there. Raises
    StudyError."""
    budget = study.status().budget
    return create(study.storage, definition(study.definition, name, budget), accept=accept)


def ready(study: StoredStudy) -> list[Control]:
    """The controls whose search is done. One of another definition is left out, with a warning."""
    controls = []
    stored = set(study.storage.study_names())
    for name, what in phrases(study.definition).items():
        wanted = definition(study.definition, name, 1)
        if wanted.name not in stored:
            continue
        found = load(study.storage, wanted.name)
        own = study.definition
        there = replace(found.definition, file=own.file, allowed=own.allowed, allow=own.allow)
        if there.fingerprint(read=False) != wanted.fingerprint(read=False):
            logger.warning(
                "study %r is left out: it is no control of %r as this one is now; delete it, and "
                "make it again with --controls %s",
                *(wanted.name, study.name, name),
            )
            continue
        status = found.status()
        if status.complete and status.best is not None:
            control = Control(name, what, wanted.name, status.best, name == FULL_PRECISION)
            controls.append(control)
    return controls


def full_precision(model: Model, steps: int) -> Model:
    """The model to compare with: another one where the study's is quantized already."""
    if model.full_precision is None:
        return model
    return model_named(model.full_precision, steps, model.dtype).model_copy(
        update={"twin": model.twin}
    )


def _is_full_precision(study: Study) -> bool:
    return study.tables.quantization.scheme == "none" and study.tables.model.full_precision is None


def _terms(study: Study) -> Mapping[str, str]:
    """{name of the control: scorer}."""
    if len(study.scorers) == 2:
        return dict(zip(("alignment", "quality"), study.scorers, strict=True))
    return {
        "".join(each if each.isalnum() or each in ".-" else "-" for each in scorer): scorer
        for scorer in study.scorers
    }
