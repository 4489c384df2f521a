"""The scorers of the demo model: its alignment model, its critic, the attributes that it shows."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from qsched.demo.captions import alternatives
from qsched.pipelines.catalog import DEMO_FOLDER
from qsched.prompts import Prompt
from qsched.scoring.clip import ClipAlignment
from qsched.scoring.clip_models import load_open_clip


class Attributes:
    """The share of a demo caption's attributes (object, colour, place ...) that an image shows.

    An attribute counts as shown if the alignment model prefers the caption to every caption that
    differs from it in this attribute alone.
    """

    direction = "maximize"

    def __init__(self, alignment: ClipAlignment) -> None:
        self._alignment = alignment

    def prepare(self, device: torch.device) -> None:
        """Moves the alignment model."""
        self._alignment.prepare(device)

    def score(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """(N, 3, H, W) in [0, 1] and N demo captions -> (N,), in [0, 1]."""
        shown = self.shown(images, [prompt.text for prompt in prompts])
        return torch.tensor([sum(row.values()) / len(row) for row in shown])

    @torch.no_grad()
    def shown(self, images: Tensor, captions: Sequence[str]) -> list[dict[str, bool]]:
        """For each image, {attribute that its caption names: whether it is shown}."""
        features = F.normalize(self._alignment.image_features(images), dim=-1)
        variants = [alternatives(caption) for caption in captions]
        all_texts = [text for named in variants for texts in named.values() for text in texts]
        self._alignment.text_features(all_texts)  # in one go, which is what takes the time
        return [
            {name: self._prefers_first(image, texts) for name, texts in named.items()}
            for image, named in zip(features, variants, strict=True)
        ]

    def _prefers_first(self, image: Tensor, texts: Sequence[str]) -> bool:
        features = F.normalize(self._alignment.text_features(texts), dim=-1)
        return bool((features @ image).argmax() == 0)


class DemoQuality:
    """The demo's critic: how undamaged a picture looks."""

    direction = "maximize"

    def __init__(self, critic: Any) -> None:
        self._critic = critic
        self._device = torch.device("cpu")

    def prepare(self, device: torch.device) -> None:
        """Moves the critic."""
        self._device = device
        self._critic.to(self._device)

    def score(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """(N, 3, 64, 64) in [0, 1] -> (N,), in (0, 1)."""
        scores: Tensor = self._critic(images.to(self._device))
        return scores


def load_alignment() -> ClipAlignment:
    """100 * cosine of caption and image under the demo's open_clip model."""
    return load_open_clip(DEMO_FOLDER / "alignment")


def load_attributes() -> Attributes:
    """`Attributes` by the demo's open_clip model."""
    return Attributes(load_alignment())


def load_quality() -> DemoQuality:
    """`DemoQuality` with the critic that ships with qsched."""
    from qsched.demo.critic import load_critic

    return DemoQuality(load_critic())
