"""Small stand-ins of real collaborators, for tests of what is built on them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from qsched.errors import GenerationError
from qsched.prompts import Prompt
from qsched.schedule.coefficients import Coefficients
from tests.support.fakes_light import Changes, study, study_file

__all__ = ["Changes", "FakeGenerator", "FakeScorers", "study", "study_file"]


class FakeGenerator:
    """'Images' that hold what they were made from: c_eps[0], c_x[0] and the prompt's seed."""

    def __init__(self, batch_size: int = 2) -> None:
        self.batch_size = batch_size
        self.made: list[tuple[Prompt, Coefficients]] = []
        self.broken: set[str] = set()
        self.room = 1000  # images that fit into the device's memory

    def shrink(self, batch_size: int) -> None:
        self.batch_size = batch_size

    def generate(self, prompts: Sequence[Prompt], coefficients: Coefficients) -> Tensor:
        if len(prompts) > self.room:
            raise torch.OutOfMemoryError
        for prompt in prompts:
            if prompt.text in self.broken:
                raise GenerationError(f"the image of {prompt.text!r} is not finite")
        self.made += [(prompt, coefficients) for prompt in prompts]
        numbers = [
            [coefficients.model[0], coefficients.sample[0], prompt.seed % 97 / 97]
            for prompt in prompts
        ]
        return torch.tensor(numbers).view(len(prompts), 3, 1, 1)


class FakeScorers:
    """A smooth objective with its best at c_eps = 1.1, c_x = 0.9, and its own level per prompt."""

    def score(self, images: Tensor, prompts: Sequence[Prompt]) -> dict[str, list[float]]:
        model, sample, level = images.flatten(1).unbind(dim=1)
        return {
            "demo-alignment": (level - (model - 1.1) ** 2).tolist(),
            "demo-quality": (level - (sample - 0.9) ** 2).tolist(),
        }


def pixels(count: int, seed: int) -> Tensor:
    """Random uint8 images (count, 3, 16, 16)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 16, 16), generator=generator, dtype=torch.uint8)
