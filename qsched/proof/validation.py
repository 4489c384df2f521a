"""Proof on prompts, seeds and metrics that the search never saw, beside the controls.

The best few candidates meet the identity on the held-out prompts. What the chosen one's
coefficients do to the full-precision model, or what that model gains by a search of its own, is the
control: as much as they improve that one, they change the taste and repair nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from qsched.evidence.distances import distances, interval
from qsched.evidence.guards import guards
from qsched.evidence.real_images import RealImages
from qsched.evidence.table import FRECHET, KID
from qsched.pictures.sheets import Pictures
from qsched.pipelines.devices import free_memory
from qsched.pipelines.loading import Loaded, load_model
from qsched.proof import outcome, verdict
from qsched.proof.controls import full_precision
from qsched.proof.image_sets import ImageSets, Instruments, Measured, generator_of, unseen
from qsched.proof.outcome import (
    JAQ,
    OWN_SEARCH,
    SAME_COEFFICIENTS,
    Control,
    Distance,
    Gained,
    HeldOut,
    Judged,
    Proof,
    Verdict,
)
from qsched.schedule.coefficients import Coefficients
from qsched.schedule.preconditioning import precondition
from qsched.scoring import jaq
from qsched.service.status import Candidate
from qsched.statistics import Interval, Values, paired_interval
from qsched.study.study import Study


def validate(
    study: Study,
    objective: jaq.Objective,
    pending: Proof,
    identity: Candidate,
    candidates: Sequence[Candidate],
    controls: Sequence[Control] = (),
    *,
    on_images: Callable[[int], None] = lambda images: None,
    on_weights: Callable[[Mapping[str, Mapping[str, str]]], None] = lambda weights: None,
) -> tuple[Proof, Pictures]:
    """Compares `candidates` with the identity on the study's held-out prompts and seeds.

    `objective`: the study's, in the units of the search. `pending`: where the search stands, which
    comes back with a verdict. `identity`: trial 0. `on_images(n)` is called after each batch with
    its number of images; `image_sets` says how many sets there are. `on_weights` is told before
    what scorers and metrics were loaded from, {name: {file: its SHA-256}}. Networks are loaded one
    after the other, since a device may have room for one of them only. Raises ModelError,
    ScoreError or GenerationError.
    """
    tables = study.tables
    instruments = Instruments(study, objective)
    on_weights(instruments.weights)
    sets = ImageSets(study.held_out, instruments, on_images)
    plain = identity.coefficients

    def reference() -> Loaded:
        model = full_precision(tables.model, tables.sampling.steps)
        return load_model(model, execution=tables.execution)

    def of_controls(network: bool) -> list[Coefficients]:
        return [c.candidate.coefficients for c in controls if c.full_precision is network]

    full = sets.measure(generator_of(study, reference()), [plain, *of_controls(True)])
    free_memory()
    quantized = load_model(tables.model, tables.quantization, execution=tables.execution)
    summary, scheduler = quantized.summary, quantized.pipeline.scheduler
    tried = [candidate.coefficients for candidate in candidates]
    rounded = sets.measure(generator_of(study, quantized), [plain, *tried, *of_controls(False)])
    del quantized
    free_memory()
    compared = _Comparison(study, plain, full, rounded, len(candidates), instruments.real)
    rows = verdict.choose([compared.judged(candidate) for candidate in candidates])
    chosen = next((row for row in rows if row.chosen), None)
    best = chosen.candidate if chosen else identity
    found = chosen.verdict if chosen else Verdict.NOT_SHOWN
    if best.coefficients not in full:
        full |= sets.measure(generator_of(study, reference()), [best.coefficients])
    own = next((c.candidate.coefficients for c in controls if c.full_precision), None)
    four = compared.four(best.coefficients)
    steps, prompts = tables.sampling.steps, len({prompt.text for prompt in study.held_out})
    proof = replace(
        pending,
        verdict=found,
        sentence=verdict.sentence_of(chosen, compared.unseen, prompts, len(rows))
        if chosen
        else verdict.NOTHING_FOUND,
        images=pending.images + sets.images,
        best=best,
        coefficients=best.coefficients if found.publishes else Coefficients.identity(steps),
        held_out={
            name: compared.held_out(name, four, own)
            for name in (JAQ, *dict.fromkeys((*study.scorers, *tables.validation.metrics)))
        },
        repair_against=SAME_COEFFICIENTS if own is None else OWN_SEARCH,
        candidates=rows,
        controls=tuple(compared.control(control) for control in controls),
        guards=chosen.guards if chosen else (),
        distances=compared.distances(four, own),
        network=summary,
        versions=outcome.versions_of(study),
        scheduler=precondition(scheduler, best.coefficients).to_json_string(),
        per_image={
            name: {metric: tuple(values.tolist()) for metric, values in four[name].scores.items()}
            for name in ("full_precision", "identity", "calibrated")
        },
    )
    pictures = {name: measured.pictures for name, measured in four.items()}
    return proof, Pictures(sets.shown, pictures, best.coefficients.to_dict())


@dataclass(frozen=True)
class _Comparison:
    """The measured image sets by coefficients: of full precision, and of the quantized network."""

    study: Study
    plain: Coefficients
    full: Mapping[Coefficients, Measured]
    rounded: Mapping[Coefficients, Measured]
    candidates: int
    real: RealImages | None

    @cached_property
    def unseen(self) -> tuple[str, ...]:
        """The metrics that are evidence from outside the search, the distance to real images among
        them."""
        return (*unseen(self.study), *([FRECHET] if self.real else []))

    @cached_property
    def _captions(self) -> list[str]:
        return [prompt.text for prompt in self.study.held_out]

    def _confidence(self, name: str) -> float:
        return verdict.level(self.candidates, len(self.unseen) if name in self.unseen else 1)

    def _gains(self, after: Measured, before: Measured) -> dict[str, Interval]:
        return {
            name: paired_interval(
                after.scores[name], values, self._captions, confidence=self._confidence(name)
            )
            for name, values in before.scores.items()
        }

    def judged(self, candidate: Candidate) -> Judged:
        """A candidate's gains, guards and verdict."""
        after, before = self.rounded[candidate.coefficients], self.rounded[self.plain]
        looks = guards(
            self.full[self.plain].appearance,
            before.appearance,
            after.appearance,
            self.study.tables.validation.limits.model_dump(),
        )
        gains = self._gains(after, before)
        if self.real:
            apart = self._distances(FRECHET, before) - self._distances(FRECHET, after)
            gains[FRECHET] = interval(apart, self._confidence(FRECHET))
        return Judged(candidate, gains, looks, verdict.verdict_of(gains, self.unseen, looks))

    def four(self, found: Coefficients) -> dict[str, Measured]:
        """Both networks under the identity and under `found`."""
        return {
            "full_precision": self.full[self.plain],
            "full_precision_calibrated": self.full[found],
            "identity": self.rounded[self.plain],
            "calibrated": self.rounded[found],
        }

    def held_out(
        self, name: str, four: Mapping[str, Measured], own: Coefficients | None
    ) -> HeldOut:
        """One metric; `own`: what full precision's own search found."""
        plain = self.full[self.plain].scores[name]
        return HeldOut.measured(
            {key: measured.scores[name] for key, measured in four.items()},
            self._captions,
            independent=name in self.unseen,
            confidence=self._confidence(name),
            own_search=None if own is None else self.full[own].scores[name] - plain,
        )

    def control(self, control: Control) -> Control:
        """A control with what it came to on its own network."""
        network = self.full if control.full_precision else self.rounded
        measured = network[control.candidate.coefficients]
        means = {name: float(values.mean()) for name, values in measured.scores.items()}
        gains = self._gains(measured, network[self.plain])
        return replace(
            control, held_out={name: Gained(means[name], gain) for name, gain in gains.items()}
        )

    def distances(
        self, four: Mapping[str, Measured], own: Coefficients | None
    ) -> dict[str, Distance]:
        """Those to the real images, where there are some; `own` as in `held_out`."""
        if self.real is None:
            return {}
        return {name: self._distance(name, four, own) for name in (FRECHET, KID)}

    def _distance(
        self, name: str, four: Mapping[str, Measured], own: Coefficients | None
    ) -> Distance:
        drawn = {key: self._distances(name, measured) for key, measured in four.items()}
        gain = drawn["calibrated"] - drawn["identity"]
        tasted = drawn["full_precision_calibrated"]
        if own is not None:
            tasted = self._distances(name, self.full[own])
        confidence = self._confidence(name)
        return Distance(
            **{key: float(drawn[key][0]) for key in ("full_precision", "identity", "calibrated")},
            gain=interval(gain, confidence),
            repair=interval(gain - tasted + drawn["full_precision"], confidence),
            independent=name in self.unseen,
        )

    def _distances(self, name: str, measured: Measured) -> Values:
        """An image set's distance to the real images, and those of resampled captions."""
        assert self.real is not None
        assert measured.features is not None
        key = name, id(measured)
        if key not in self._drawn:
            images = self.real.image_set(name, measured.features)
            self._drawn[key] = distances(images, self._captions)
        return self._drawn[key]

    @cached_property
    def _drawn(self) -> dict[tuple[str, int], Values]:
        return {}


def image_sets(candidates: Sequence[Candidate], controls: Sequence[Control]) -> int:
    """How many sets of held-out images `validate` makes at the most: both identities, the
    candidates, the chosen one on full precision, and the controls."""
    return 2 + len(candidates) + bool(candidates) + len(controls)
