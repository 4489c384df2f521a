"""How sharp an image is, as a scorer: no network, the variance of the image's Laplacian."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from qsched.prompts import Prompt


class Sharpness:
    """Higher is sharper."""

    direction = "maximize"
    description = "variance of the Laplacian of the grey image"
    networks = ()

    def prepare(self, device: torch.device) -> None:
        self.laplacian = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]], device=device)

    def score(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        grey = images.mean(dim=1, keepdim=True)
        return conv2d(grey, self.laplacian[None, None]).flatten(1).var(dim=1)
