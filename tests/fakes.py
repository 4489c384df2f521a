"""Small stand-ins of real collaborators, for tests of what is built on them."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from qsched.coefficients import Coefficients
from qsched.config import Study, load_study
from qsched.errors import GenerationError
from qsched.prompts import Prompt

STUDY = """
name = "{name}"
[model]
name = "demo"
[sampling]
steps = 4
[quantization]
scheme = "w4a8"
[objective]
preset = "{preset}"
terms = [
    {{ scorer = "demo-alignment", weight = 1.0 }},
    {{ scorer = "demo-quality", weight = 2.0 }},
]
[search]
trials = {trials}
seed = {seed}
[prompts]
calibration = ["a", "b", "c", "d", "e", "f"]
held_out = ["g", "h", "i"]
[validation]
metrics = ["pixels"]
[execution]
batch_size = 2
"""


def study_file(
    folder: Path, *, name: str = "fake", trials: int = 6, seed: int = 0, preset: str = "plain"
) -> Path:
    """A small valid study file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "study.toml"
    path.write_text(STUDY.format(name=name, trials=trials, seed=seed, preset=preset))
    return path


def study(folder: Path, **changes: object) -> Study:
    """A small valid study."""
    return load_study(study_file(folder, **changes))  # type: ignore[arg-type]


class FakeGenerator:
    """'Images' that hold what they were made from: c_eps[0], c_x[0] and the prompt's seed."""

    def __init__(self, batch_size: int = 2) -> None:
        self.batch_size = batch_size
        self.made: list[tuple[Prompt, Coefficients]] = []
        self.broken: set[str] = set()

    def generate(self, prompts: Sequence[Prompt], coefficients: Coefficients) -> Tensor:
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
