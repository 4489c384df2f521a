"""Both distances: held against torchmetrics' own, and their paired intervals."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_mmd

from qsched.evidence.distances import (
    Cloud,
    ImageSet,
    Kernel,
    KernelCloud,
    Statistics,
    distances,
    interval,
)
from qsched.evidence.real_images import Features
from qsched.statistics import Interval
from tests.support import fakes

Array = np.ndarray
Beside = Callable[[Array, Array], ImageSet]


def frechet(features: Array, real: Array) -> ImageSet:
    return Cloud(features, Statistics(real))


def kid(features: Array, real: Array) -> ImageSet:
    return KernelCloud(features, Kernel(real))


def normal(count: int, seed: int, *, width: int = 3, shift: float = 0.0) -> Array:
    return np.random.default_rng(seed).normal(shift, 1, (count, width))


@pytest.mark.parametrize("width", [3, 2000])  # fewer features than images, and more
def test_the_distance_of_known_gaussians(width: int) -> None:
    x = normal(1000, 0, width=width)
    real = Statistics(x)
    offset = np.zeros(width)
    offset[:2] = 3, 4
    assert Cloud(x, real).distance() == pytest.approx(0, abs=1e-6 * width)
    assert Cloud(x + offset, real).distance() == pytest.approx(25, rel=1e-6)
    trace = np.square(x - x.mean(axis=0)).sum() / 999
    assert Cloud(2 * (x - x.mean(axis=0)) + x.mean(axis=0), real).distance() == pytest.approx(
        trace,
        rel=1e-6,  # (2 - 1)^2 tr(S)
    )


class Pooled(nn.Module):
    """Six features of uint8 images, from random weights: what torchmetrics takes for Inception."""

    num_features = 6

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, 6, 4, 4)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.layer(images / 255)
        return found.relu().mean(dim=(2, 3))


def test_it_is_the_frechet_distance_that_torchmetrics_computes() -> None:
    network = Pooled()
    real, made = fakes.pixels(80, 0), fakes.pixels(50, 1) // 2
    theirs = FrechetInceptionDistance(feature=network, input_img_size=(3, 16, 16))
    theirs.update(real, real=True)
    theirs.update(made, real=False)
    features = Features(network)
    ours = frechet(features(made), features(real)).distance()
    assert ours == pytest.approx(float(theirs.compute()), rel=1e-5)


@pytest.mark.parametrize("piece", [7, 1000])  # the kernel of many real images is made in pieces
def test_it_is_the_kernel_distance_that_torchmetrics_computes(piece: int) -> None:
    features = Features(Pooled())
    real, made = features(fakes.pixels(50, 0)), features(fakes.pixels(50, 1) // 2)
    theirs = float(poly_mmd(torch.from_numpy(real), torch.from_numpy(made)))
    ours = KernelCloud(made, Kernel(real, piece=piece)).distance()
    assert ours == pytest.approx(theirs, rel=1e-9)


def test_the_kernel_distance_has_no_bias_of_size() -> None:
    """Of two halves of the same images it is about zero, on either side of it."""
    found = [kid(normal(40, seed), normal(40, 100 + seed)).distance() for seed in range(200)]
    spread = np.std(found) / np.sqrt(len(found))
    assert min(found) < 0 < max(found)
    assert abs(np.mean(found)) < 3 * spread


@pytest.mark.parametrize("width", [3, 300])
@pytest.mark.parametrize("beside", [frechet, kid])
def test_weights_are_repetitions(beside: Beside, width: int) -> None:
    x, real = normal(40, 1, width=width), normal(500, 2, width=width)
    times = np.random.default_rng(3).integers(0, 4, 40)
    repeated = beside(np.repeat(x, times, axis=0), real).distance()
    weighted = beside(x, real).distance(times.astype(float))
    assert weighted == pytest.approx(repeated, rel=1e-6)


@pytest.mark.parametrize("beside", [frechet, kid])
def test_a_paired_difference_shows_what_either_interval_hides(beside: Beside) -> None:
    """Captions differ much more than the treatment does, which pairing takes out."""
    real = normal(2000, 4)
    control = normal(128, 5, shift=1.0)
    captions = [f"p{index // 2}" for index in range(128)]

    def apart(treated: Array) -> tuple[Interval, Interval]:
        sets = (beside(treated, real), beside(control, real))
        after, before = (distances(each, captions, resamples=300) for each in sets)
        return interval(after - before), interval(after)

    better, alone = apart(control - 0.05)
    assert better.below_zero
    assert better.low < better.mean < better.high
    assert alone.high - alone.low > 3 * (better.high - better.low)
    none, _ = apart(control)
    assert (none.mean, none.low, none.high) == (0, 0, 0)
    noise = control + np.random.default_rng(6).normal(0, 0.05, control.shape)
    across, _ = apart(noise)
    assert not across.below_zero
    assert not across.above_zero
