"""What it takes to call a schedule better: the rule of each verdict, and its sentence.

Every candidate gets its own verdict. The doubt of 5 % is shared by all that could have proven a
gain: the candidates, and among the metrics those that the search did not see (Bonferroni).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from qsched.evidence.guards import Guard
from qsched.evidence.table import FRECHET
from qsched.proof.outcome import JAQ, Judged, Verdict
from qsched.statistics import Interval

DOUBT = 0.05

NOTHING_FOUND = "The search found no coefficients other than the unmodified schedule's."


def level(candidates: int, unseen: int = 1) -> float:
    """The confidence of each interval, so that all of them hold together with 95 %."""
    return 1 - DOUBT / (max(candidates, 1) * max(unseen, 1))


def verdict_of(
    gains: Mapping[str, Interval], unseen: Collection[str], guards: Collection[Guard] = ()
) -> Verdict:
    """`suspicious` if a guard tripped. `improved` needs held-out JAQ and one metric that the search
    did not see, both above zero; `worse` is JAQ below zero, and `not_shown` the rest."""
    if not all(guard.ok for guard in guards):
        return Verdict.SUSPICIOUS
    if gains[JAQ].below_zero:
        return Verdict.WORSE
    if gains[JAQ].above_zero and any(gains[name].above_zero for name in unseen):
        return Verdict.IMPROVED
    return Verdict.NOT_SHOWN


def choose(judged: Sequence[Judged]) -> tuple[Judged, ...]:
    """The same, one of them chosen: of those that are improved the one with the highest lower bound
    of JAQ; else, of those that are not suspicious if there are any, the search's best."""
    improved = [row for row in judged if row.verdict.publishes]
    sound = [row for row in judged if row.verdict is not Verdict.SUSPICIOUS]
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
    if chosen.verdict is Verdict.SUSPICIOUS:
        tripped = " and ".join(
            f"{guard.name} is {guard.shift:+.0%} off full precision (limit {guard.limit:.0%})"
            for guard in chosen.guards
            if not guard.ok
        )
        return (
            f"{on} the objective moved by {shown}, but {tripped}: suspicious of a metric that was "
            "pleased without a better picture, so the unmodified schedule is kept."
        )
    if chosen.verdict is Verdict.IMPROVED:
        return (
            f"{on} the calibrated schedule is better: {shown}, and {' and '.join(proven)}, which "
            "the search never saw."
        )
    if chosen.verdict is Verdict.WORSE:
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
