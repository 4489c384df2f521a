"""How an image set looks, in the five numbers that `guards` holds against limits."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from qsched.evidence.guards import NAMES

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the luma of coded values (Rec. ITU-R BT.601)."""

SIDE = 8
"""Images are reduced to this before they are compared with each other."""


def brightness(images: Tensor) -> Tensor:
    """(N, 3, H, W) in [0, 1] -> (N,): mean luma."""
    return luma(images).mean(dim=(1, 2))


def saturation(images: Tensor) -> Tensor:
    """(N, 3, H, W) in [0, 1] -> (N,): mean chroma, the largest channel less the smallest."""
    return (images.amax(dim=1) - images.amin(dim=1)).mean(dim=(1, 2))


def contrast(images: Tensor) -> Tensor:
    """(N, 3, H, W) in [0, 1] -> (N,): the standard deviation of luma over the image (RMS contrast,
    Peli 1990)."""
    return luma(images).flatten(1).std(dim=1, correction=0)


def sharpness(images: Tensor) -> Tensor:
    """(N, 3, H, W) in [0, 1] -> (N,): the mean absolute Laplacian of luma, over four neighbours."""
    y = luma(images)
    inner = y[:, 1:-1, 1:-1]
    around = y[:, :-2, 1:-1] + y[:, 2:, 1:-1] + y[:, 1:-1, :-2] + y[:, 1:-1, 2:]
    return (around - 4 * inner).abs().mean(dim=(1, 2))


def patterns(images: Tensor) -> Tensor:
    """(N, 3, H, W) in [0, 1] -> (N, 192): each image reduced, its mean removed, of length one.

    So images that differ in brightness or contrast alone are equal; one of a single grey is zero.
    """
    small = F.adaptive_avg_pool2d(images, SIDE).flatten(1)
    return F.normalize(small - small.mean(dim=1, keepdim=True), dim=1)


def diversity(shapes: Tensor, captions: Sequence[str]) -> float:
    """The mean of 1 - correlation over all pairs of `patterns` (N, D) of different captions.

    0 if every caption gets the same picture. Needs two captions.
    """
    order = {caption: index for index, caption in enumerate(dict.fromkeys(captions))}
    groups = torch.tensor([order[caption] for caption in captions])
    sums = torch.zeros(len(order), shapes.shape[1]).index_add_(0, groups, shapes)
    counts = torch.bincount(groups).double()
    # The sum over all pairs is the square of the sum; those of one caption are taken off again.
    alike = sums.sum(dim=0).square().sum() - sums.square().sum()
    pairs = counts.sum().square() - counts.square().sum()
    return float(1 - alike.double() / pairs)


def luma(images: Tensor) -> Tensor:
    """(N, 3, H, W) -> (N, H, W)."""
    weights = torch.tensor(LUMA, device=images.device, dtype=images.dtype)
    return torch.einsum("nchw,c->nhw", images, weights)


class Appearance:
    """What the guards look at, gathered batch by batch, so that no image has to be kept."""

    def __init__(self) -> None:
        self._rows: list[Tensor] = []
        self._patterns: list[Tensor] = []

    def add(self, images: Tensor) -> None:
        """Looks at a batch (N, 3, H, W) in [0, 1]."""
        looks = (brightness, saturation, contrast, sharpness)
        self._rows.append(torch.stack([look(images) for look in looks], dim=1).cpu())
        self._patterns.append(patterns(images).cpu())

    def values(self, captions: Sequence[str]) -> dict[str, float]:
        """{guard: the set's value}; `captions`: of all images, in the order they were added."""
        means = torch.cat(self._rows).double().mean(dim=0).tolist()
        return dict(
            zip(NAMES, [*means, diversity(torch.cat(self._patterns), captions)], strict=True)
        )
