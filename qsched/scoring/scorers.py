"""Scorers: what judges images one by one, loaded once, batched, checked.

A scorer that fails, or returns anything that is not finite, raises ScoreError with its name and the
prompt. It never becomes a zero, or a NaN that is ranked. `catalog` declares the scorers.
"""

import gc
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import OutOfMemoryError, Tensor

from qsched.digests import sha256
from qsched.errors import ScoreError, in_one_line
from qsched.hub import noted
from qsched.prompts import Prompt
from qsched.scoring.catalog import metric_entry
from qsched.scoring.loading import load_scorer

logger = logging.getLogger(__name__)


class Scorer(Protocol):
    """Judges images: what a plug-in provides, and what every built-in scorer is.

    `direction`: "maximize" where a higher value is better, "minimize" where a lower one is; qsched
    turns the values of the latter around, so that higher is better in all that it shows.

    What a class may say of itself beside: `description`, one line; `networks`, what it sees with,
    as tag/model, or () for none (left out, nothing is known, and it is never evidence from outside
    the search); `packages`, distributions whose versions its values depend on; `reference = True`,
    it compares with the full-precision image, so that only validation can use it (`Comparison`);
    and a class method `twin()`, the scorer that takes its place under ``--twin``.
    """

    @property
    def direction(self) -> str:
        """ "maximize" or "minimize"."""

    def prepare(self, device: torch.device) -> None:
        """Moves what it computes with to `device`; perhaps several times."""

    def score(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """`images`: (N, 3, H, W) in [0, 1]; one prompt each. Returns (N,), finite."""


class Comparison(Protocol):
    """A scorer that says `reference = True`: a `Scorer` in all but what it is given."""

    @property
    def direction(self) -> str:
        """As of a `Scorer`."""

    def prepare(self, device: torch.device) -> None:
        """As of a `Scorer`."""

    def score(self, images: Tensor, prompts: Sequence[Prompt], reference: Tensor) -> Tensor:
        """`reference`: the full-precision images of the same prompts, (N, 3, H, W) in [0, 1]."""


class Scorers:
    """Several scorers as one: `Scorers({name: Scorer}, device)`.

    They live on `device`; where its memory does not hold them beside the rest, they live in the
    computer's, and each is on the device only while it works. `weights`: what they were loaded
    from, {name: {file: its SHA-256}}, as far as that is known.
    """

    def __init__(
        self,
        scorers: Mapping[str, Scorer | Comparison],
        device: torch.device | str = "cpu",
        weights: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
    ) -> None:
        self.weights = weights
        self._scorers = dict(scorers)
        self._device = torch.device(device)
        self._crowded = False
        try:
            self._move(self._scorers.values(), self._device)
        except OutOfMemoryError:
            self._crowded = True
        if self._crowded:
            self._leave()

    def score(
        self, images: Tensor, prompts: Sequence[Prompt], reference: Tensor | None = None
    ) -> dict[str, list[float]]:
        """{name: one float an image, higher is better}.

        `reference`: the full-precision images of the same prompts, for the scorers that compare
        with them. Raises ScoreError with the scorer's name and the prompt, and torch's
        OutOfMemoryError if so many images don't fit.
        """
        found = {}
        for name, scorer in self._scorers.items():
            beside = (reference,) if getattr(scorer, "reference", False) else ()
            values = checked(name, prompts, self._work, scorer, images, prompts, *beside)
            turned = scorer.direction == "minimize"
            found[name] = [-value for value in values] if turned else values
        return found

    def _work(self, scorer: Scorer | Comparison, *arguments: Any) -> Tensor:
        """One scorer's values. OutOfMemoryError means that these images are too many for it."""
        if not self._crowded:
            try:
                return scorer.score(*arguments).double().cpu()
            except OutOfMemoryError:
                self._crowded = True
            self._leave()  # here, where the exception no longer holds the tensors of the attempt
        try:
            self._move([scorer], self._device)
            return scorer.score(*arguments).double().cpu()
        finally:
            self._move([scorer], torch.device("cpu"))

    def _leave(self) -> None:
        logger.warning(
            "%s has no room for the scorers (%s); from now on each is there only while it works",
            self._device,
            ", ".join(self._scorers),
        )
        self._move(self._scorers.values(), torch.device("cpu"))
        gc.collect()

    def _move(self, scorers: Iterable[Scorer | Comparison], device: torch.device) -> None:
        for scorer in scorers:
            scorer.prepare(device)
        if device.type == "cpu" and torch.cuda.is_available():
            torch.cuda.empty_cache()


def load_scorers(
    names: Sequence[str], device: torch.device | str = "cpu", *, twin: bool = False
) -> Scorers:
    """The named scorers with their weights, held-out metrics among them.

    `twin`: with tiny random networks in place of the real ones, which needs no download. Raises
    ScoreError for one that can't be had.
    """
    found, weights = {}, {}
    for name in names:
        with noted() as files:
            found[name] = load_scorer(metric_entry(name), twin=twin)
        if files and not twin:
            weights[name] = {file.name: sha256(file) for file in files}
    return Scorers(found, device, weights)


def checked(
    name: str, prompts: Sequence[Prompt], score: Callable[..., Tensor], *arguments: Any
) -> list[float]:
    """`score(*arguments)`: one finite value for each prompt; else ScoreError.

    Torch's OutOfMemoryError goes through: fewer images may fit.
    """
    try:
        with torch.inference_mode():
            values = score(*arguments).double().cpu()
    except OutOfMemoryError:
        raise
    except Exception as error:
        raise ScoreError(
            f"{name} failed on {len(prompts)} images from {prompts[0].text!r}: "
            f"{in_one_line(error)}",
            scorer=name,
            prompt=prompts[0].text,
        ) from error
    if values.shape != (len(prompts),):
        raise ScoreError(
            f"{name} returned shape {tuple(values.shape)} for {len(prompts)} images; expected "
            f"({len(prompts)},)",
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
