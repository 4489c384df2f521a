"""Proof on prompts, seeds and metrics that the search never saw, beside the controls.

Four image sets of the held-out prompts are compared: {full precision, quantized} x {identity,
calibrated coefficients}. What the coefficients do to the full-precision model is the control: as
much as they improve that one, they change the taste and repair nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qsched import jaq, metrics
from qsched.coefficients import Coefficients
from qsched.config import Study
from qsched.defaults import named
from qsched.errors import GenerationError
from qsched.generate import ImageGenerator, OutOfMemory
from qsched.jaq import Interval, Values, paired_interval
from qsched.models import MEMORY_REMEDIES, Loaded, device_for, load
from qsched.prompts import Prompt
from qsched.schedule import precondition
from qsched.score import Metrics, load_metrics, load_scorers
from qsched.sections import Model
from qsched.status import Candidate

JAQ = "jaq"
PICTURES = 8
"""Held-out prompts whose images are kept for the picture."""


@dataclass(frozen=True)
class HeldOut:
    """One metric on the held-out images: four means, and two paired differences.

    `gain`: calibrated - identity of the quantized model. `control`: the same difference of the
    full-precision model. Repair is what is left: gain - control.
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
class Validation:
    """The outcome of a validation. `verdict`: improved, not_shown or worse.

    `pictures`: uint8 arrays (K, H, W, 3) of the first held-out prompts by row, for the image grid.
    """

    verdict: str
    sentence: str
    candidate: Candidate
    metrics: dict[str, HeldOut]
    confidence: float
    images: int
    network: str
    scheduler: str
    captions: tuple[str, ...]
    pictures: dict[str, np.ndarray]

    @property
    def published(self) -> Coefficients:
        """What may be taken away: the candidate's if it is proven, else the identity."""
        found = self.candidate.coefficients
        return found if self.verdict == "improved" else Coefficients.identity(found.steps)


def validate(
    study: Study,
    objective: jaq.Objective,
    candidate: Candidate,
    *,
    on_images: Callable[[int], None] = lambda images: None,
) -> Validation:
    """Compares `candidate` with the identity on the study's held-out prompts and seeds.

    `objective`: the study's, in the units of the search. `on_images(n)` is called after each batch
    with its number of images; there are four image sets of `len(study.held_out)` images. Raises
    ModelError, ScoreError or GenerationError.
    """
    tables = study.tables
    judge = _Judge(study, device_for(tables.model, tables.execution))
    identity = Coefficients.identity(tables.sampling.steps)
    found = candidate.coefficients

    def images(loaded: Loaded) -> tuple[Tensor, Tensor]:
        """Of the identity, and of the candidate."""
        generator = ImageGenerator(
            loaded.pipeline,
            tables.sampling,
            part=tables.model.part,
            batch_size=tables.execution.batch_size,
        )
        generator.prepare(study.held_out)
        made = []
        for coefficients in (identity, found):
            batches: list[Tensor] = []
            left = study.held_out
            while left:
                prompts = left[: generator.batch_size]
                try:
                    batches.append(_eight_bit(generator.generate(prompts, coefficients)))
                except OutOfMemory:
                    generator.halve()
                    continue
                on_images(len(prompts))
                left = left[len(prompts) :]
            made.append(torch.cat(batches))
        return made[0], made[1]

    # One after the other, since a device may have room for one of them only.
    reference, reference_calibrated = images(
        load(_full_precision(tables.model, tables.sampling.steps), execution=tables.execution)
    )
    quantized = load(tables.model, tables.quantization, execution=tables.execution)
    plain, calibrated = images(quantized)
    sets = {
        "full_precision": reference,
        "full_precision_calibrated": reference_calibrated,
        "identity": plain,
        "calibrated": calibrated,
    }

    scores = {row: judge.measure(made, reference) for row, made in sets.items()}
    for row in scores.values():
        row[JAQ] = objective.values(row)
    captions = [prompt.text for prompt in study.held_out]
    confidence = 1 - 0.05 / sum(judge.independent(name) for name in scores["identity"])
    measured = {
        name: held_out(name, scores, captions, judge.independent(name), confidence)
        for name in (JAQ, *study.scorers, *tables.validation.metrics)
    }
    verdict = verdict_of(measured, found.is_identity)
    shown = _first_of_each(study.held_out)[:PICTURES]
    return Validation(
        verdict=verdict,
        sentence=sentence_of(verdict, measured, found.is_identity, len(set(captions))),
        candidate=candidate,
        metrics=measured,
        confidence=confidence,
        images=sum(len(made) for made in sets.values()),
        network=quantized.summary,
        scheduler=precondition(quantized.pipeline.scheduler, found).to_json_string(),
        captions=tuple(captions[index] for index in shown),
        pictures={row: made[shown].permute(0, 2, 3, 1).numpy() for row, made in sets.items()},
    )


def _full_precision(model: Model, steps: int) -> Model:
    """The model to compare with: another one where the study's is quantized already."""
    if model.full_precision is None:
        return model
    return named(model.full_precision, steps, model.dtype).model_copy(update={"twin": model.twin})


class _Judge:
    """The study's scorers and held-out metrics over a whole image set."""

    def __init__(self, study: Study, device: torch.device) -> None:
        self._study = study
        twin = study.tables.model.twin
        self._scorers = load_scorers(study.scorers, device, twin=twin)
        self._metrics = Metrics(load_metrics(study.tables.validation.metrics, twin=twin), device)
        self._device = device

    def independent(self, name: str) -> bool:
        """Whether a metric is evidence from outside the search."""
        unseen = name in self._study.tables.validation.metrics
        return unseen and metrics.independent(name, self._study.scorers)

    def measure(self, images: Tensor, reference: Tensor) -> dict[str, Values]:
        """{metric: (N,)} of uint8 images (N, 3, H, W) beside the full-precision ones."""
        size, start = self._study.tables.execution.batch_size, 0
        values: dict[str, list[float]] = {}
        while start < len(images):
            prompts = self._study.held_out[start : start + size]
            batch = images[start : start + size].to(self._device) / 255
            beside = reference[start : start + size].to(self._device) / 255
            try:
                scored = self._scorers.score(batch, prompts)
                scored |= self._metrics.score(batch, prompts, beside)
            except OutOfMemory:
                if size == 1:
                    raise GenerationError(
                        f"out of memory while one image is scored; {MEMORY_REMEDIES}"
                    ) from None
                size //= 2
                continue
            for name, listed in scored.items():
                values.setdefault(name, []).extend(listed)
            start += len(prompts)
        return {name: np.asarray(listed) for name, listed in values.items()}


def held_out(
    name: str,
    scores: dict[str, dict[str, Values]],
    captions: Sequence[str],
    independent: bool,
    confidence: float,
) -> HeldOut:
    """One metric over the four image sets. Independent metrics share the 5 % of doubt."""
    row = {key: values[name] for key, values in scores.items()}
    level = confidence if independent else 0.95
    gain = row["calibrated"] - row["identity"]
    control = row["full_precision_calibrated"] - row["full_precision"]
    nothing = np.zeros_like(gain)
    return HeldOut(
        **{key: float(values.mean()) for key, values in row.items()},
        gain=paired_interval(gain, nothing, captions, confidence=level),
        control=paired_interval(control, nothing, captions, confidence=level),
        repair=paired_interval(gain, control, captions, confidence=level),
        independent=independent,
    )


def verdict_of(metrics: dict[str, HeldOut], is_identity: bool) -> str:
    """`improved` needs held-out JAQ and one metric that the search did not see, both above zero."""
    if is_identity:
        return "not_shown"
    unseen = [metric.gain for metric in metrics.values() if metric.independent]
    if metrics[JAQ].gain.below_zero:
        return "worse"
    if metrics[JAQ].gain.above_zero and any(gain.above_zero for gain in unseen):
        return "improved"
    return "not_shown"


def sentence_of(verdict: str, metrics: dict[str, HeldOut], is_identity: bool, prompts: int) -> str:
    """The verdict in one sentence, with the figures it rests on."""
    if is_identity:
        return "No coefficients beat the unmodified schedule on the calibration prompts."
    gain = metrics[JAQ].gain
    shown = f"JAQ {gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
    proven = [
        f"{name} {metric.gain.mean:+.4f} [{metric.gain.low:+.4f}, {metric.gain.high:+.4f}]"
        for name, metric in metrics.items()
        if metric.independent and metric.gain.above_zero
    ]
    if verdict == "improved":
        return (
            f"On {prompts} held-out prompts the calibrated schedule is better: {shown}, and "
            f"{' and '.join(proven)}, which the search never saw."
        )
    if verdict == "worse":
        return f"On {prompts} held-out prompts the calibrated schedule is worse: {shown}."
    if gain.above_zero:
        return (
            f"On {prompts} held-out prompts the objective improved ({shown}), but no metric that "
            "the search did not see did: not shown, so the unmodified schedule is kept."
        )
    return (
        f"On {prompts} held-out prompts no improvement is shown ({shown}), so the unmodified "
        "schedule is kept."
    )


def _first_of_each(prompts: Sequence[Prompt]) -> list[int]:
    """The index of each caption's first seed."""
    first: dict[str, int] = {}
    for index, prompt in enumerate(prompts):
        first.setdefault(prompt.text, index)
    return list(first.values())


def _eight_bit(images: Tensor) -> Tensor:
    """Images in [0, 1] as the uint8 that a file would hold."""
    return (images * 255).round().to(torch.uint8)
