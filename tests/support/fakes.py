"""Small stand-ins of real collaborators, for tests of what is built on them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from qsched.errors import GenerationError
from qsched.prompts import Prompt
from qsched.schedule.coefficients import Coefficients
from qsched.service import stored_study as studies
from qsched.service.evaluator import Evaluator
from qsched.service.schema import Slot
from qsched.service.storage import Storage
from qsched.service.stored_study import StoredStudy
from qsched.service.worker import Worker
from tests.support.fakes_light import Changes, study, study_file

__all__ = [
    "Changes",
    "FakeGenerator",
    "FakeScorers",
    "begun",
    "pixels",
    "stored",
    "study",
    "study_file",
    "worker",
]


class FakeGenerator:
    """'Images' that hold what they were made from: c_eps[0], c_x[0] and the prompt's seed."""

    def __init__(self, batch_size: int = 2) -> None:
        self.batch_size = batch_size
        self.network_calls = 0
        self.made: list[tuple[Prompt, Coefficients]] = []
        self.broken: set[str] = set()
        self.room = 1000  # images that fit into the device's memory

    def shrink(self, batch_size: int) -> None:
        self.batch_size = batch_size

    def generate(
        self, prompts: Sequence[Prompt], coefficients: Coefficients | Sequence[Coefficients]
    ) -> Tensor:
        if len(prompts) > self.room:
            raise torch.OutOfMemoryError
        for prompt in prompts:
            if prompt.text in self.broken:
                raise GenerationError(f"the image of {prompt.text!r} is not finite")
        made = [(prompt, own) for prompt, own in paired(prompts, coefficients)]
        self.made += made
        numbers = [[own.model[0], own.sample[0], prompt.seed % 97 / 97] for prompt, own in made]
        return torch.tensor(numbers).view(len(prompts), 3, 1, 1)

    def final_latents(
        self, prompts: Sequence[Prompt], coefficients: Coefficients | Sequence[Coefficients]
    ) -> Tensor:
        """Their amplitude is c_x[0]'s and, by a half, c_eps[0]'s."""
        self.network_calls += 1
        sizes = [own.sample[0] * own.model[0] ** 0.5 for _, own in paired(prompts, coefficients)]
        return torch.tensor(sizes)[:, None] * torch.tensor([[-1.0, 0.0, 1.0]])


def paired(
    prompts: Sequence[Prompt], coefficients: Coefficients | Sequence[Coefficients]
) -> list[tuple[Prompt, Coefficients]]:
    """Each prompt with its coefficients."""
    if isinstance(coefficients, Coefficients):
        return [(prompt, coefficients) for prompt in prompts]
    return list(zip(prompts, coefficients, strict=True))


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


def stored(url: str, folder: Path, trials: int = 3) -> StoredStudy:
    """The study `fake`, made where it is not there."""
    return studies.create(Storage(url), study(folder, trials=trials))


def worker(stored_study: StoredStudy) -> Worker:
    """A worker of fakes."""
    evaluator = Evaluator(FakeGenerator(), FakeScorers(), stored_study.definition.calibration)
    return Worker(stored_study, evaluator, lease=2.0, poll=0.2)


def begun(study: StoredStudy, name: str) -> Slot:
    """The next slot in a worker's hands, with its trial."""
    slot = study.queue.claim(name, 60)
    assert slot is not None
    vector = study.propose(slot.number).vector
    trial = study.trials.make(slot, vector)
    study.queue.begin(slot, 60, vector=vector, trial=trial)
    return replace(slot, vector=vector, trial=trial)
