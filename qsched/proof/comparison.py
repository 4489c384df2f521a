"""Studies beside the first of them on the same held-out prompts: paired differences. No torch.

What is compared are the stored values of single images, so nothing is drawn or scored anew. JAQ is
recomputed for all studies as the first one defines it, in the units of its search.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qsched.errors import StudyError
from qsched.evidence.table import FRECHET, KID
from qsched.proof import outcome
from qsched.proof.outcome import JAQ, Proof
from qsched.service.stored_study import StoredStudy
from qsched.statistics import Interval, Values, paired_interval
from qsched.study.study import Study

SETS = ("full_precision", "identity", "calibrated")


@dataclass(frozen=True)
class Compared:
    """A study of a comparison."""

    definition: Study
    proof: Proof

    @property
    def name(self) -> str:
        """The study's."""
        return self.proof.study


@dataclass(frozen=True)
class Beside:
    """A metric of one study. `means`: by image set. `difference`: its calibrated images less those
    of the first study; None for the first one itself, and where there are no values to pair."""

    metric: str
    study: str
    means: Mapping[str, float]
    difference: Interval | None
    direction: int = 1


@dataclass(frozen=True)
class Comparison:
    """Studies, the first of which the others are compared with, and their rows, by metric."""

    studies: tuple[Compared, ...]
    rows: tuple[Beside, ...]
    prompts: int

    def to_dict(self) -> dict[str, Any]:
        """As `qsched compare --json` prints it."""
        return {
            "beside": self.studies[0].name,
            "prompts": self.prompts,
            "studies": [
                {
                    "study": each.name,
                    "verdict": each.proof.verdict,
                    "trials": each.proof.trials,
                    "coefficients": each.proof.candidate.coefficients.to_dict(),
                }
                for each in self.studies
            ],
            "rows": [
                {
                    "metric": row.metric,
                    "study": row.study,
                    **row.means,
                    **(row.difference.to_dict() if row.difference else {}),
                    "lower_is_better": row.direction < 0,
                }
                for row in self.rows
            ],
        }


def compare(studies: Sequence[StoredStudy]) -> Comparison:
    """The validated studies beside the first of them. Raises StudyError for fewer than two, for one
    without a verdict or without the values of its images, and for other held-out prompts."""
    if len({study.name for study in studies}) < max(2, len(studies)):
        names = ", ".join(study.name for study in studies)
        raise StudyError(f"compare {names}: expected two studies or more, each once")
    compared = [Compared(study.definition, _proven(study)) for study in studies]
    first = compared[0]
    for other in compared[1:]:
        _require_same_prompts(first.definition, other.definition)
    captions = [prompt.text for prompt in first.definition.held_out]
    values = [_values(each.proof) for each in compared]
    if set(first.definition.scorers) <= set.intersection(*(_metrics(each) for each in values)):
        objective = studies[0].objective()
        for sets in values:
            for found in sets.values():
                found[JAQ] = objective.values(found)
    shared = [name for name in _ordered(values) if _same_network(name, compared)]
    rows = [
        row for metric in shared for row in _beside(metric, compared, values, captions=captions)
    ]
    return Comparison(tuple(compared), (*rows, *_distances(compared)), len(set(captions)))


def _proven(study: StoredStudy) -> Proof:
    proof = outcome.kept(study)
    if proof is None:
        raise StudyError(
            f"study {study.name!r} has no verdict yet; run qsched validate {study.name}"
        )
    images = {len(each) for found in proof.per_image.values() for each in found.values()}
    if not set(SETS) <= proof.per_image.keys() or images != {len(study.definition.held_out)}:
        raise StudyError(
            f"study {study.name!r}: its outcome lacks the values of its images; "
            f"qsched validate {study.name} makes it anew"
        )
    return proof


def _require_same_prompts(first: Study, other: Study) -> None:
    if first.held_out != other.held_out:
        same = len(set(first.held_out) & set(other.held_out))
        raise StudyError(
            f"studies {first.name!r} and {other.name!r} have other held-out prompts: "
            f"{len(first.held_out)} and {len(other.held_out)} images, {same} of them of the same "
            "caption and seed; give both the same prompts.held_out, held_out_count, "
            "held_out_seeds and seed"
        )


def _values(proof: Proof) -> dict[str, dict[str, Values]]:
    """{image set: {metric: (N,)}}, without JAQ, whose units are the study's own."""
    return {
        name: {metric: np.asarray(each) for metric, each in found.items() if metric != JAQ}
        for name, found in proof.per_image.items()
    }


def _metrics(sets: Mapping[str, Mapping[str, Values]]) -> set[str]:
    return set.intersection(*(set(sets[name]) for name in SETS))


def _ordered(values: Sequence[Mapping[str, Mapping[str, Values]]]) -> list[str]:
    """The metrics that all have, JAQ first, then in the order of the first study."""
    shared = set.intersection(*(_metrics(sets) for sets in values))
    return sorted(shared, key=lambda name: (name != JAQ, [*values[0][SETS[0]]].index(name)))


def _same_network(metric: str, compared: Sequence[Compared]) -> bool:
    """Whether a metric is the same one in all: of the same weights, or of the same plug-in."""
    keys = (f"weights.{metric}", f"plugins.{metric}")
    told = {tuple(each.proof.fingerprint.get(key) for key in keys) for each in compared}
    return len(told) == 1


def _beside(
    metric: str,
    compared: Sequence[Compared],
    values: Sequence[Mapping[str, Mapping[str, Values]]],
    *,
    captions: Sequence[str],
) -> Iterator[Beside]:
    first = values[0]["calibrated"][metric]
    for number, (each, sets) in enumerate(zip(compared, values, strict=True)):
        yield Beside(
            metric,
            each.name,
            {name: float(sets[name][metric].mean()) for name in SETS},
            paired_interval(sets["calibrated"][metric], first, captions) if number else None,
        )


def _distances(compared: Sequence[Compared]) -> Iterator[Beside]:
    """Those to the same real images; their features aren't stored, so nothing is paired."""
    if len({each.definition.tables.validation.reference for each in compared}) > 1:
        return
    for name in (FRECHET, KID):
        if all(name in each.proof.distances for each in compared):
            for each in compared:
                found = each.proof.distances[name]
                means = {key: getattr(found, key) for key in SETS}
                yield Beside(name, each.name, means, None, direction=-1)
