"""Coefficients -> images -> scores, batch by batch: what a trial computes."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qsched.pipelines.generator import ImageGenerator, OutOfMemory
from qsched.prompts import Prompt
from qsched.schedule.coefficients import Coefficients
from qsched.scoring.scorers import Scorers
from qsched.service.schema import Score

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """A scored batch: the prompts' indices, their scores, their images and the seconds it took."""

    prompts: tuple[int, ...]
    scores: list[Score]
    images: "Tensor"
    seconds: float


class Evaluator:
    """Scores coefficients on fixed prompts. Owns nothing: generator and scorers come in ready."""

    def __init__(
        self, generator: ImageGenerator, scorers: Scorers, prompts: Sequence[Prompt]
    ) -> None:
        self.generator = generator
        self.scorers = scorers
        self.prompts = tuple(prompts)

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
        missing = [index for index in whole if index not in done]
        while missing:
            began = time.perf_counter()
            batch = missing[: self.generator.batch_size]
            prompts = [self.prompts[index] for index in batch]
            try:
                images = self.generator.generate(prompts, coefficients)
                scored = self.scorers.score(images, prompts)
            except OutOfMemory:
                self.generator.halve()
                continue
            seconds = time.perf_counter() - began
            scores = [
                Score(index, metric, values[place], seconds / len(batch))
                for place, index in enumerate(batch)
                for metric, values in scored.items()
            ]
            yield Batch(tuple(batch), scores, images, seconds)
            missing = missing[len(batch) :]
