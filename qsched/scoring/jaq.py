"""The JAQ objective and the statistics of a comparison. Pure numpy: no model is loaded here.

JAQ (joint alignment-quality, arXiv 2509.01624) is maximised and needs no reference image:

    JAQ = TC + k * IQ,  k = 2

TC is text-image compatibility, IQ image quality, both per image. Raw terms mix scales (a CLIPScore
near 30 beside a CLIP-IQA near 0.7); standardised terms are measured in units of the identity
schedule's spread over the calibration prompts, which makes k comparable between models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qsched.errors import ScoreError
from qsched.statistics import Values

SMALLEST_SPREAD = 1e-6
"""A term whose spread over the prompts is below this measures nothing and is refused."""


@dataclass(frozen=True)
class Term:
    """One term of the objective: `weight` times the scorer's value (higher is better).

    `log`: the natural logarithm of the value takes its place, as in the `clip-log` preset.
    """

    scorer: str
    weight: float = 1.0
    log: bool = False

    def values(self, scores: Mapping[str, Sequence[float] | Values]) -> Values:
        """The term's values, (N,), before units and weight, from {scorer: (N,)}.

        Raises ScoreError for a score that is missing or not finite, and for one that has no
        logarithm where `log` asks for it: nothing of the kind is ever ranked.
        """
        if self.scorer not in scores:
            raise ScoreError(f"{self.scorer}: no score; the objective needs it", self.scorer)
        values = np.asarray(scores[self.scorer], dtype=np.float64)
        if not np.isfinite(values).all():
            raise ScoreError(
                f"{self.scorer}: a score is not finite; nothing is ranked by it", self.scorer
            )
        if not self.log:
            return values
        if (values <= 0).any():
            raise ScoreError(
                f"{self.scorer}: a score of {values.min():.4g} has no logarithm; the images show "
                "nothing of their captions, or the objective should take the score itself "
                "(preset 'clip', or log = false)",
                self.scorer,
            )
        return np.log(values)


@dataclass(frozen=True)
class Scale:
    """The unit of a term: (value - `centre`) / `spread`, the value being the logarithm if taken."""

    centre: float = 0.0
    spread: float = 1.0


@dataclass(frozen=True)
class Objective:
    """A weighted sum of terms. Frozen: `calibrated` returns a new one with its units fixed.

    `scales` holds one Scale a scorer. The plain objective has none and sums raw values; the
    standardised one has to be calibrated on the identity schedule's scores before it can be used.
    """

    terms: tuple[Term, ...]
    standardised: bool = False
    scales: tuple[tuple[str, Scale], ...] = ()

    def calibrated(self, identity: Mapping[str, Sequence[float] | Values]) -> "Objective":
        """The objective in units of the identity schedule's `identity` scores, {scorer: (N,)}.

        A no-op for a plain objective. Raises ScoreError if a term has no spread over the prompts.
        """
        if not self.standardised:
            return self
        scales = []
        for term in self.terms:
            values = term.values(identity)
            spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
            if spread < SMALLEST_SPREAD:
                raise ScoreError(
                    f"{term.scorer}: spread {spread:.2g} over {len(values)} prompts under the "
                    "identity schedule; a standardised term needs prompts that differ: use more "
                    "prompts, or preset = 'plain'"
                )
            scales.append((term.scorer, Scale(float(values.mean()), spread)))
        return Objective(self.terms, True, tuple(scales))

    def values(self, scores: Mapping[str, Sequence[float] | Values]) -> Values:
        """JAQ per image, (N,), from {scorer: (N,)}.

        Raises ScoreError as `Term.values` does, and before a standardised objective has its units.
        """
        scales = dict(self.scales)
        if self.standardised and not scales:
            raise ScoreError("a standardised objective needs the identity schedule's scores first")
        total: Values | float = 0.0
        for term in self.terms:
            scale = scales.get(term.scorer, Scale())
            total = total + term.weight * (term.values(scores) - scale.centre) / scale.spread
        return np.asarray(total, dtype=np.float64)

    def value(self, scores: Mapping[str, Sequence[float] | Values]) -> float:
        """JAQ of an image set: the mean of `values`."""
        return float(self.values(scores).mean())
