"""The scorers and the held-out metrics: models that judge images, loaded once, batched.

A scorer or metric that fails, or returns anything that is not finite, raises ScoreError with its
name and the prompt. It never becomes a zero, or a NaN that is ranked. `metrics` declares them.
"""

import gc
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import OutOfMemoryError, Tensor

from qsched.errors import ScoreError
from qsched.prompts import Prompt
from qsched.scoring.catalog import METRICS, metric_entry, scorer_entry
from qsched.scoring.loading import load_judge

logger = logging.getLogger(__name__)


class Scorer(Protocol):
    """Judges images, higher is better. One with a method `to(device)` is moved where it is used."""

    def __call__(self, images: Tensor, captions: Sequence[str]) -> Tensor:
        """`images`: (N, 3, H, W) in [0, 1]; one caption each. Returns (N,)."""


class Metric(Protocol):
    """Judges images beside the full-precision images of the same prompts and seeds."""

    def __call__(self, images: Tensor, captions: Sequence[str], reference: Tensor) -> Tensor:
        """`images`, `reference`: (N, 3, H, W) in [0, 1]. Returns (N,), higher is better."""


class _Judges:
    """Judges by name. They live on `device`; where its memory does not hold them beside the rest,
    they live in the computer's, and each is on the device only while it works."""

    def __init__(self, judges: Mapping[str, Any], device: torch.device | str = "cpu") -> None:
        self._judges = dict(judges)
        self._device = torch.device(device)
        self._crowded = False
        try:
            self._move(self._judges.values(), self._device)
        except OutOfMemoryError:
            self._crowded = True
        if self._crowded:
            self._leave()

    def _scored(self, prompts: Sequence[Prompt], *arguments: Any) -> dict[str, list[float]]:
        return {
            name: checked(name, prompts, self._work, judge, *arguments)
            for name, judge in self._judges.items()
        }

    def _work(self, judge: Any, *arguments: Any) -> Tensor:
        """One judge's values. OutOfMemoryError means that these images are too many for it."""
        if not self._crowded:
            try:
                return self._called(judge, *arguments)
            except OutOfMemoryError:
                self._crowded = True
            self._leave()  # here, where the exception no longer holds the tensors of the attempt
        try:
            self._move([judge], self._device)
            return self._called(judge, *arguments)
        finally:
            self._move([judge], torch.device("cpu"))

    def _called(self, judge: Any, *arguments: Any) -> Tensor:
        values: Tensor = judge(*arguments)
        return values.double().cpu()

    def _leave(self) -> None:
        logger.warning(
            "%s has no room for the scorers (%s); from now on each is there only while it works",
            self._device,
            ", ".join(self._judges),
        )
        self._move(self._judges.values(), torch.device("cpu"))
        gc.collect()

    def _move(self, judges: Iterable[Any], device: torch.device) -> None:
        for judge in judges:
            if hasattr(judge, "to"):
                judge.to(device)
        if device.type == "cpu" and torch.cuda.is_available():
            torch.cuda.empty_cache()


class Scorers(_Judges):
    """Several scorers as one: `Scorers({name: Scorer}, device)`."""

    def score(self, images: Tensor, prompts: Sequence[Prompt]) -> dict[str, list[float]]:
        """{name: one float an image}. Raises ScoreError with the scorer's name and the prompt, and
        torch's OutOfMemoryError if so many images don't fit."""
        return self._scored(prompts, images, [prompt.text for prompt in prompts])


class Metrics(_Judges):
    """Several held-out metrics as one: `Metrics({name: Metric}, device)`."""

    def score(
        self, images: Tensor, prompts: Sequence[Prompt], reference: Tensor
    ) -> dict[str, list[float]]:
        """As `Scorers.score`; `reference`: the full-precision images of the same prompts."""
        return self._scored(prompts, images, [prompt.text for prompt in prompts], reference)


def load_scorers(
    names: Sequence[str], device: torch.device | str = "cpu", *, twin: bool = False
) -> Scorers:
    """The named scorers with their weights. Raises ScoreError for one that can't be had.

    `twin`: with tiny random networks in place of the real ones, which needs no download.
    """
    return Scorers({name: load_judge(scorer_entry(name), twin=twin) for name in names}, device)


def load_metrics(
    names: Sequence[str], device: torch.device | str = "cpu", *, twin: bool = False
) -> dict[str, Metric]:
    """The named held-out metrics, scorers among them, on `device`.

    Raises ScoreError for one that can't be had. `twin`: as in `load_scorers`.
    """
    metrics: dict[str, Metric] = {}
    for name in names:
        judge = load_judge(metric_entry(name), twin=twin)
        metrics[name] = judge if name in METRICS else Unreferenced(judge)
        if hasattr(judge, "to"):
            judge.to(device)
    return metrics


def checked(
    name: str, prompts: Sequence[Prompt], judge: Callable[..., Tensor], *arguments: Any
) -> list[float]:
    """`judge(*arguments)`: one finite value for each prompt; else ScoreError.

    Torch's OutOfMemoryError goes through: fewer images may fit.
    """
    try:
        with torch.inference_mode():
            values = judge(*arguments).double().cpu()
    except OutOfMemoryError:
        raise
    except Exception as error:
        raise ScoreError(
            f"{name} failed on {len(prompts)} images from {prompts[0].text!r}: "
            f"{type(error).__name__}: {error}",
            scorer=name,
            prompt=prompts[0].text,
        ) from error
    if values.shape != (len(prompts),):
        raise ScoreError(
            f"{name} returned shape {tuple(values.shape)} for {len(prompts)} images",
            scorer=name,
            prompt=prompts[0].text,
        )
    for prompt, value in zip(prompts, values.tolist(), strict=True):
        if not math.isfinite(value):
            raise ScoreError(
                f"{name} gave {value} for {prompt.text!r} (seed {prompt.seed})",
                scorer=name,
                prompt=prompt.text,
            )
    return list(values.tolist())


class Unreferenced:
    """A scorer as a held-out metric: the reference is not looked at."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer

    def to(self, device: torch.device | str) -> None:
        """Moves the scorer."""
        if hasattr(self._scorer, "to"):
            self._scorer.to(device)

    def __call__(self, images: Tensor, captions: Sequence[str], reference: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] and N captions -> (N,)."""
        return self._scorer(images, captions)
