"""Coefficients -> images -> scores, batch by batch: what a trial computes."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Protocol

from torch import Tensor

from qsched.pipelines.devices import in_batches
from qsched.prompts import Prompt
from qsched.schedule.coefficients import Coefficients
from qsched.search import gauge
from qsched.search.box import Box
from qsched.search.gauge import Gauge
from qsched.search.plan import GAUGE_PROMPTS
from qsched.service.schema import Score


class MakesImages(Protocol):
    """What an evaluator asks of `pipelines.generator.ImageGenerator`."""

    batch_size: int
    network_calls: int

    def final_latents(
        self, prompts: Sequence[Prompt], coefficients: Sequence[Coefficients]
    ) -> Tensor:
        """What the last step returns, (N, ...) float32 on the CPU, each prompt's under coefficients
        of its own."""

    def generate(
        self, prompts: Sequence[Prompt], coefficients: Coefficients | Sequence[Coefficients]
    ) -> Tensor:
        """(N, 3, H, W) in [0, 1], on the CPU; each prompt under the coefficients, or under its own
        of them."""

    def shrink(self, batch_size: int) -> None:
        """Batches of this size from here on."""


class ScoresImages(Protocol):
    """What an evaluator asks of `scoring.scorers.Scorers`."""

    def score(self, images: Tensor, prompts: Sequence[Prompt]) -> Mapping[str, Sequence[float]]:
        """{scorer: one float an image}, higher is better."""


@dataclass(frozen=True)
class Batch:
    """A scored batch: the prompts' indices, their scores, their images and the seconds it took."""

    prompts: tuple[int, ...]
    scores: list[Score]
    images: Tensor
    seconds: float

    def alone(self, place: int) -> "Batch":
        """One of its images."""
        metrics = len(self.scores) // len(self.prompts)
        return Batch(
            self.prompts[place : place + 1],
            self.scores[place * metrics : (place + 1) * metrics],
            self.images[place : place + 1],
            self.seconds / len(self.prompts),
        )


class Evaluator:
    """Scores coefficients on fixed prompts. Owns nothing: generator and scorers come in ready.

    `measures`: {name: what returns a number of the work since it was last asked}, for each trial.
    """

    def __init__(
        self,
        generator: MakesImages,
        scorers: ScoresImages,
        prompts: Sequence[Prompt],
        *,
        measures: Mapping[str, Callable[[], Any]] = MappingProxyType({}),
    ) -> None:
        self.generator = generator
        self.scorers = scorers
        self.prompts = tuple(prompts)
        self.measures = dict(measures)

    @property
    def batch_size(self) -> int:
        """How many prompts are scored at once, as things are."""
        return self.generator.batch_size

    def batches(
        self,
        coefficients: Coefficients,
        done: frozenset[int] = frozenset(),
        order: Sequence[int] | None = None,
    ) -> Iterator[Batch]:
        """All prompts but those in `done` (by index), a batch at a time, in `order` or in theirs.

        Out of the device's memory, the batch is halved for good and tried again. Raises
        GenerationError or ScoreError, with the prompt; what was yielded before stays valid.
        """
        whole = range(len(self.prompts)) if order is None else order
        return in_batches(
            [index for index in whole if index not in done],
            self.batch_size,
            lambda indices: self._scored(coefficients, indices),
            doing="is made and scored",
            on_halved=self.generator.shrink,
        )

    def together(
        self, jobs: Sequence[tuple[Coefficients, int]]
    ) -> Iterator[tuple[tuple[int, ...], Batch]]:
        """The images of many coefficients and prompts, by index, in batches that they share: the
        jobs' places, and their batch. Raises as `batches`."""
        return in_batches(
            list(range(len(jobs))),
            self.batch_size,
            lambda places: (
                tuple(places),
                self._scored([jobs[at][0] for at in places], [jobs[at][1] for at in places]),
            ),
            doing="is made and scored",
            on_halved=self.generator.shrink,
        )

    def measured(self) -> dict[str, Any]:
        """What was measured since the last call, by name."""
        return {name: measure() for name, measure in self.measures.items()}

    def gauge(self, box: Box) -> Gauge:
        """The gauge of what is searched, by the final latents of a few prompts. Raises
        GenerationError."""
        prompts, space = self.prompts[:GAUGE_PROMPTS], box.space
        probes = [space.coefficients(vector) for vector in gauge.probes(box)]
        before = self.generator.network_calls
        latents = self.generator.final_latents(
            list(prompts) * len(probes), [probe for probe in probes for _ in prompts]
        )
        spread = latents.double().flatten(1).std(dim=1).log()
        found = gauge.measured(box, spread.reshape(len(probes), len(prompts)).numpy())
        return replace(
            found, images=len(latents), network_calls=self.generator.network_calls - before
        )

    def _scored(
        self, coefficients: Coefficients | Sequence[Coefficients], indices: Sequence[int]
    ) -> Batch:
        began = time.perf_counter()
        prompts = [self.prompts[index] for index in indices]
        images = self.generator.generate(prompts, coefficients)
        scored = self.scorers.score(images, prompts)
        seconds = time.perf_counter() - began
        scores = [
            Score(index, metric, values[place], seconds / len(indices))
            for place, index in enumerate(indices)
            for metric, values in scored.items()
        ]
        return Batch(tuple(indices), scores, images, seconds)
