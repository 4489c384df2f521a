"""The contract of a scorer.

def test_sharpness_keeps_the_contract() -> None:
    ScorerContract(Sharpness()).check()
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from qsched.prompts import Prompt
from qsched.scoring.scorers import Scorer, Scorers

CAPTIONS = ("a red owl on a stone", "a blue fox", "a boat on a lake at night")


@dataclass(frozen=True)
class ScorerContract:
    """Checks `scorer`; `side`: height and width of the images that it is shown, in pixels."""

    scorer: Scorer
    side: int = 64

    def check(self, captions: Sequence[str] = CAPTIONS) -> None:
        """All of it. Raises AssertionError, in words, for what it does not keep.

        `captions`: what the images show, at least two, for scorers that read some language only.
        """
        prompts = [Prompt(caption, seed) for seed, caption in enumerate(captions)]
        images = self._images(len(prompts))
        before = images.clone()
        assert self.scorer.direction in ("maximize", "minimize"), (
            f"direction = {self.scorer.direction!r}; expected 'maximize' or 'minimize'"
        )
        self.scorer.prepare(torch.device("cpu"))
        self.scorer.prepare(torch.device("cpu"))  # it may be moved again
        together = self._score(images, prompts)
        assert together == self._score(images, prompts), "the same images score differently"
        assert torch.equal(images, before), "it changes the images that it is shown"
        for index, prompt in enumerate(prompts):
            (alone,) = self._score(images[index : index + 1], [prompt], at=index)
            assert abs(alone - together[index]) <= 1e-4 * max(1.0, abs(alone)), (
                f"image {index} scores {alone:.6g} alone and {together[index]:.6g} in a batch; "
                "an image's score must not depend on its neighbours"
            )

    def _score(
        self, images: torch.Tensor, prompts: Sequence[Prompt], at: int | None = None
    ) -> list[float]:
        reference = self._images(3 if at is None else at + 1).flip(3)
        beside = reference[: len(images)] if at is None else reference[at:]
        return Scorers({"it": self.scorer}).score(images, prompts, beside)["it"]

    def _images(self, count: int) -> torch.Tensor:
        """(count, 3, side, side) smooth pictures in [0, 1], the first ones always the same."""
        pictures = []
        for index in range(count):
            generator = torch.Generator().manual_seed(index)
            coarse = torch.rand(1, 3, 8, 8, generator=generator)
            size = (self.side, self.side)
            pictures.append(torch.nn.functional.interpolate(coarse, size=size, mode="bilinear"))
        return torch.cat(pictures)
