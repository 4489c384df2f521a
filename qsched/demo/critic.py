"""The demo model's quality critic: how undamaged a picture looks, without a reference."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

WEIGHTS = Path(__file__).parent / "quality"


class Residual(nn.Module):
    """Two 3 x 3 convolutions on a normalised input, added to it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(8, width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(8, width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, features: Tensor) -> Tensor:
        """(N, width, H, W) to the same shape."""
        added: Tensor = self.layers(features)
        return features + added


class Critic(nn.Module):
    """Images (N, 3, 64, 64) in [0, 1] to scores (N,) in (0, 1); 1 is pristine.

    An image's score does not depend on the others of its batch.
    """

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64, 96)) -> None:
        super().__init__()
        self.widths = tuple(widths)
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, padding=1)]
        for narrow, wide in pairwise(widths):
            layers += [nn.ReLU(), nn.Conv2d(narrow, wide, 3, stride=2, padding=1), Residual(wide)]
        self.features = nn.Sequential(*layers)
        last = widths[-1]
        self.norm = nn.LayerNorm(2 * last)
        self.head = nn.Sequential(nn.Linear(2 * last, last), nn.ReLU(), nn.Linear(last, 1))

    def forward(self, images: Tensor) -> Tensor:
        """One score per image; mean and maximum over all places tell overall from local damage."""
        features = self.features(images * 2 - 1)
        pooled = torch.cat([features.mean((2, 3)), features.amax((2, 3))], 1)
        return torch.sigmoid(self.head(self.norm(pooled))[:, 0])


def load_critic(folder: Path = WEIGHTS) -> Critic:
    """The trained critic in float32, in evaluation mode."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    critic = Critic(tuple(config["widths"]))
    critic.load_state_dict(load_file(folder / "model.safetensors"))
    return critic.float().eval()
