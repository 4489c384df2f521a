"""How far a set of images is from real ones, in the features that a network has of both.

FID's Frechet distance (Heusel et al. 2017, eq. 6), with mean m and covariance S of the features,
m_r and S_r of the real ones':

    |m - m_r|^2 + tr(S) + tr(S_r) - 2 tr((S S_r)^(1/2))

and KID's kernel distance (Binkowski et al. 2018, section 3), the unbiased estimate of

    mean k(x, x') + mean k(r, r') - 2 mean k(x, r)        with k(a, b) = (a . b / D + 1)^3

over pairs of different images x, x', of different real ones r, r', and of one and the other. The
first grows as sets get smaller: compare it between sets of one size only.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Protocol

import numpy as np
import torch

from qsched.statistics import Interval, Values

PIECE = 1_000
"""Rows of a kernel matrix at once."""


class ImageSet(Protocol):
    """An image set beside the real ones."""

    def distance(self, weights: Values | None = None) -> float:
        """From the real images; `weights`: (N,), how often each image counts."""


class Statistics:
    """Mean (D,) and covariance (D, D) of the features (N, D) of at least two real images."""

    def __init__(self, features: Values) -> None:
        self.mean: Values = features.mean(axis=0)
        self.covariance: Values = np.cov(features, rowvar=False)

    @cached_property
    def root(self) -> Values:
        """The symmetric root of the covariance."""
        values, vectors = np.linalg.eigh(self.covariance)
        return np.asarray((vectors * np.sqrt(values.clip(min=0))) @ vectors.T)


class Cloud:
    """Features (N, D), ready to be compared with the real ones' statistics many times."""

    def __init__(self, features: Values, real: Statistics) -> None:
        self._features = torch.from_numpy(features)
        self._turned = torch.from_numpy(features @ real.root)
        self._mean = torch.from_numpy(real.mean)
        self._spread = float(np.trace(real.covariance))

    def distance(self, weights: Values | None = None) -> float:
        """The Frechet distance; `weights`: (N,), how often each image counts.

        tr((S S_r)^(1/2)) is the sum of the singular values of the centred features times the root
        of S_r; their squares are the eigenvalues of the smaller one of its two Gram matrices.
        """
        count = torch.ones(len(self._features), dtype=torch.float64)
        if weights is not None:
            count = torch.from_numpy(weights)
        kept = count > 0
        share, scale = count[kept] / count.sum(), (count[kept, None] / (count.sum() - 1)).sqrt()
        x, y = self._features[kept], self._turned[kept]
        mean = share @ x
        x, y = (x - mean) * scale, (y - share @ y) * scale
        gram = y @ y.T if len(y) < y.shape[1] else y.T @ y
        common = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().sum()
        apart = (mean - self._mean).square().sum()
        return float(apart + x.square().sum() + self._spread - 2 * common)


class Kernel:
    """The kernel of real images' features (N, D), at least two.

    `piece`: how many of them are looked at at once.
    """

    def __init__(self, features: Values, *, piece: int = PIECE) -> None:
        self._features = features
        self._piece = piece

    @cached_property
    def within(self) -> float:
        """Its mean over pairs of different real images."""
        count = len(self._features)
        whole = sum(kernel(piece, self._features).sum() for piece in self._pieces())
        same = np.power(np.square(self._features).mean(axis=1) + 1, 3).sum()
        return float((whole - same) / (count * (count - 1)))

    def across(self, features: Values) -> Values:
        """(n,): for each of the features (n, D) its mean over the real images."""
        whole = sum(kernel(features, piece).sum(axis=1) for piece in self._pieces())
        return np.asarray(whole / len(self._features))

    def _pieces(self) -> Iterator[Values]:
        for start in range(0, len(self._features), self._piece):
            yield self._features[start : start + self._piece]


class KernelCloud:
    """Features (N, D), ready to be compared with the real ones by their kernel many times."""

    def __init__(self, features: Values, real: Kernel) -> None:
        self._within = kernel(features, features)
        self._across = real.across(features)
        self._real = real.within

    def distance(self, weights: Values | None = None) -> float:
        """KID; `weights`: (N,), how often each image counts."""
        weights = np.ones(len(self._across)) if weights is None else weights
        count = weights.sum()
        pairs = weights @ self._within @ weights - weights @ self._within.diagonal()
        within = pairs / (count * (count - 1))
        return float(within + self._real - 2 * (weights @ self._across) / count)


def kernel(x: Values, y: Values) -> Values:
    """(n, m): KID's polynomial kernel of features (n, D) and (m, D)."""
    return np.asarray(np.power(x @ y.T / x.shape[1] + 1, 3))


def distances(
    images: ImageSet, captions: Sequence[str], *, resamples: int = 1_000, seed: int = 0
) -> Values:
    """(1 + resamples,): the distance, then those of resampled captions.

    The same captions and seed draw the same, so that differences of what two sets give are paired.
    """
    _, group = np.unique(np.asarray(captions, dtype=object).astype(str), return_inverse=True)
    groups = int(group.max()) + 1
    rng = np.random.default_rng(seed)
    found = np.empty(1 + resamples)
    with _one_thread():
        found[0] = images.distance()
        for index in range(resamples):
            counts = np.bincount(rng.integers(groups, size=groups), minlength=groups)
            found[1 + index] = images.distance(counts[group].astype(np.float64))
    return found


def interval(difference: Values, confidence: float = 0.95) -> Interval:
    """Of a difference of what `distances` gave.

    A resampled set has fewer different images and so a larger distance, in all sets alike; what is
    left of that in the mean of the differences is taken off.
    """
    mean, drawn = float(difference[0]), difference[1:]
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail]) + mean - drawn.mean()
    return Interval(mean, float(low), float(high))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Matrices as small as these take longer with several threads, many times so beside others."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
