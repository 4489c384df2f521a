"""What every scorer keeps.

    from qsched.testing.scorers import ScorerContract

    class TestSharpness(ScorerContract):
        def scorer(self) -> Scorer:
            return Sharpness()

Nothing needs a GPU.
"""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from qsched.prompts import Prompt
from qsched.scoring.scorers import Comparison, Scorer, Scorers


class ScorerContract:
    """Inherit it, and say what is tested."""

    captions: Sequence[str] = ("a red owl on a stone", "a blue fox", "a boat on a lake at night")
    """What the images are said to show: two or more, for a scorer that reads some words only."""

    side = 64
    """Height and width of the images, in pixels."""

    def scorer(self) -> Scorer | Comparison:
        """What is tested, newly made."""
        raise NotImplementedError

    def test_it_says_which_way_is_better(self) -> None:
        assert self.scorer().direction in ("maximize", "minimize")

    def test_it_may_be_moved_again(self) -> None:
        scorer = self.scorer()
        for _ in range(2):
            scorer.prepare(torch.device("cpu"))
        assert len(self._scored(scorer)) == len(self.captions)

    def test_the_same_images_score_the_same(self) -> None:
        scorer = self.scorer()
        assert self._scored(scorer) == self._scored(scorer) == self._scored(self.scorer())

    def test_the_images_stay_as_they_are(self) -> None:
        images = self._images()
        Scorers({"it": self.scorer()}).score(images, self._prompts(), self._reference())
        assert torch.equal(images, self._images())

    def test_an_image_does_not_depend_on_its_neighbours(self) -> None:
        scorer = self.scorer()
        together = self._scored(scorer)
        for index in range(len(self.captions)):
            (alone,) = self._scored(scorer, slice(index, index + 1))
            assert alone == pytest.approx(together[index], rel=1e-4, abs=1e-4)

    def _scored(self, scorer: Scorer | Comparison, part: slice = slice(None)) -> list[float]:
        return Scorers({"it": scorer}).score(
            self._images()[part], self._prompts()[part], self._reference()[part]
        )["it"]

    def _prompts(self) -> list[Prompt]:
        return [Prompt(caption, seed) for seed, caption in enumerate(self.captions)]

    def _images(self) -> Tensor:
        """(N, 3, side, side) smooth pictures in [0, 1], always the same."""
        generator = torch.Generator().manual_seed(0)
        coarse = torch.rand(len(self.captions), 3, 8, 8, generator=generator)
        return torch.nn.functional.interpolate(coarse, size=self.side, mode="bilinear")

    def _reference(self) -> Tensor:
        """What the full-precision network might have made."""
        return self._images().flip(3)
