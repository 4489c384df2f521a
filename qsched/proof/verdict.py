"""What it takes to call a schedule better: paired differences, guards, a verdict. Pure numpy.

Every candidate gets its own verdict. The doubt of 5 % is shared by all that could have proven a
gain: the candidates, and among the metrics those that the search did not see (Bonferroni).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qsched.evidence.guards import Guard
from qsched.evidence.table import FRECHET
from qsched.service.status import Candidate
from qsched.statistics import Interval, Values, paired_interval

JAQ = "jaq"
DOUBT = 0.05

SAME_COEFFICIENTS = "the same coefficients"
OWN_SEARCH = "its own search"
"""What full precision was given, whose gain is taken off for the repair."""


@dataclass(frozen=True)
class HeldOut:
    """One metric on the held-out images: four means, and paired differences.

    `gain`: calibrated - identity of the quantized model. `control`: what the same coefficients do
    to the full-precision model. `repair`: gain less that control, or less what full precision
    gains by its own search, where there was one.
    """

    full_precision: float
    full_precision_calibrated: float
    identity: float
    calibrated: float
    gain: Interval
    control: Interval
    repair: Interval
    independent: bool

    def to_dict(self) -> dict[str, Any]:
        """As `report.json` has it; `difference` and `interval` are the gain's."""
        return {
            "full_precision": self.full_precision,
            "full_precision_calibrated": self.full_precision_calibrated,
            "identity": self.identity,
            "calibrated": self.calibrated,
            **self.gain.to_dict(),
            "control": self.control.to_dict(),
            "repair": self.repair.to_dict(),
            "independent": self.independent,
        }


@dataclass(frozen=True)
class Judged:
    """A candidate after the held-out prompts: its gains by metric, its guards, its verdict."""

    candidate: Candidate
    gains: Mapping[str, Interval]
    guards: tuple[Guard, ...]
    verdict: str
    chosen: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As `report.json` has it."""
        gain = self.gains[JAQ]
        return {
            **self.candidate.to_dict(),
            "verdict": self.verdict,
            "gain": {"mean": gain.mean, "low": gain.low, "high": gain.high},
            "chosen": self.chosen,
        }


def level(candidates: int, unseen: int = 1) -> float:
    """The confidence of each interval, so that all of them hold together with 95 %."""
    return 1 - DOUBT / (max(candidates, 1) * max(unseen, 1))


def held_out(
    rows: Mapping[str, Values],
    captions: Sequence[str],
    *,
    independent: bool,
    confidence: float,
    own_search: Values | None = None,
) -> HeldOut:
    """One metric over the four image sets, {set: (N,)}.

    `own_search`: (N,), what full precision gains by a search of its own.
    """
    gain = rows["calibrated"] - rows["identity"]
    control = rows["full_precision_calibrated"] - rows["full_precision"]
    nothing = np.zeros_like(gain)
    taste = control if own_search is None else own_search
    return HeldOut(
        **{key: float(values.mean()) for key, values in rows.items()},
        gain=paired_interval(gain, nothing, captions, confidence=confidence),
        control=paired_interval(control, nothing, captions, confidence=confidence),
        repair=paired_interval(gain, taste, captions, confidence=confidence),
        independent=independent,
    )


def verdict_of(
    gains: Mapping[str, Interval], unseen: Collection[str], guards: Collection[Guard] = ()
) -> str:
    """`suspicious` if a guard tripped. `improved` needs held-out JAQ and one metric that the search
    did not see, both above zero; `worse` is JAQ below zero, and `not_shown` the rest."""
    if not all(guard.ok for guard in guards):
        return "suspicious"
    if gains[JAQ].below_zero:
        return "worse"
    if gains[JAQ].above_zero and any(gains[name].above_zero for name in unseen):
        return "improved"
    return "not_shown"


def choose(judged: Sequence[Judged]) -> tuple[Judged, ...]:
    """The same, one of them chosen: of those that are improved the one with the highest lower bound
    of JAQ; else, of those that are not suspicious if there are any, the search's best."""
    improved = [row for row in judged if row.verdict == "improved"]
    sound = [row for row in judged if row.verdict != "suspicious"]
    chosen: Judged | None
    if improved:
        chosen = max(improved, key=lambda row: row.gains[JAQ].low)
    else:
        chosen = max(sound or judged, key=lambda row: row.candidate.value, default=None)
    return tuple(replace(row, chosen=row is chosen) for row in judged)


def sentence_of(chosen: Judged, unseen: Collection[str], prompts: int, candidates: int) -> str:
    """The chosen candidate's verdict in one sentence, with the figures it rests on."""
    gain = chosen.gains[JAQ]
    shown = f"JAQ {gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
    on = f"On {prompts} held-out prompts"
    proven = [
        _in_words(name, chosen.gains[name]) for name in unseen if chosen.gains[name].above_zero
    ]
    if chosen.verdict == "suspicious":
        tripped = " and ".join(
            f"{guard.name} is {guard.shift:+.0%} off full precision (limit {guard.limit:.0%})"
            for guard in chosen.guards
            if not guard.ok
        )
        return (
            f"{on} the objective moved by {shown}, but {tripped}: suspicious of a metric that was "
            "pleased without a better picture, so the unmodified schedule is kept."
        )
    if chosen.verdict == "improved":
        return (
            f"{on} the calibrated schedule is better: {shown}, and {' and '.join(proven)}, which "
            "the search never saw."
        )
    if chosen.verdict == "worse":
        return f"{on} the calibrated schedule is worse: {shown}."
    if gain.above_zero:
        return (
            f"{on} the objective improved ({shown}), but no metric that the search did not see "
            "did: not shown, so the unmodified schedule is kept."
        )
    best = f" of the best {candidates} candidates" if candidates > 1 else ""
    return f"{on} no improvement{best} is shown ({shown}), so the unmodified schedule is kept."


def _in_words(name: str, gain: Interval) -> str:
    if name == FRECHET:
        return (
            f"{gain.mean:.1f} [{gain.low:.1f}, {gain.high:.1f}] less Fréchet distance to real "
            "images"
        )
    return f"{name} {gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]"


NOTHING_FOUND = "The search found no coefficients other than the unmodified schedule's."
