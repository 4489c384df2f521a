"""Coefficients -> images -> scores, batch by batch: what a trial computes."""

import time
from collections.abc import Iterator, Sequence

from qsched.coefficients import Coefficients
from qsched.generate import ImageGenerator
from qsched.prompts import Prompt
from qsched.schema import Score
from qsched.score import Scorers


class Evaluator:
    """Scores coefficients on fixed prompts. Owns nothing: generator and scorers come in ready."""

    def __init__(
        self, generator: ImageGenerator, scorers: Scorers, prompts: Sequence[Prompt]
    ) -> None:
        self.generator = generator
        self.scorers = scorers
        self.prompts = tuple(prompts)

    def batches(
        self, coefficients: Coefficients, done: frozenset[int] = frozenset()
    ) -> Iterator[list[Score]]:
        """The scores of all prompts but those in `done` (by index), a batch at a time.

        Raises GenerationError or ScoreError, with the prompt; what was yielded before stays valid.
        """
        missing = [index for index in range(len(self.prompts)) if index not in done]
        size = self.generator.batch_size
        for start in range(0, len(missing), size):
            began = time.perf_counter()
            batch = missing[start : start + size]
            prompts = [self.prompts[index] for index in batch]
            scored = self.scorers.score(self.generator.generate(prompts, coefficients), prompts)
            seconds = (time.perf_counter() - began) / len(batch)
            yield [
                Score(index, metric, values[place], seconds)
                for place, index in enumerate(batch)
                for metric, values in scored.items()
            ]
