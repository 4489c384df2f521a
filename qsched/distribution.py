"""How far a set of images is from real ones: the Frechet distance in a network's features.

    |m - m_r|^2 + tr(S) + tr(S_r) - 2 tr((S S_r)^(1/2))        (Heusel et al. 2017, eq. 6)

with mean m and covariance S of the features of the images, m_r and S_r of the real ones. For the
demo the network is EfficientNet-Lite0 and the real images are the rendered scenes that its model
learned from, whose statistics are shipped; for real models it is FID's own Inception network, as
torchmetrics has it, and a folder of real images. The distance grows as sets get smaller: compare
it between sets of one size only.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor, nn

from qsched.catalog import DEMO_FOLDER
from qsched.errors import GenerationError, ScoreError
from qsched.jaq import Interval, Values
from qsched.models import MEMORY_REMEDIES
from qsched.sections import DEMO_REFERENCE, StudyFile
from qsched.similarity import load_similarity
from qsched.verdict import FRECHET

SCENES = DEMO_FOLDER / "scenes.npz"
STAGE = 3
"""The stage of EfficientNet-Lite0 whose 112 features the demo is compared in: as many as a
covariance of some hundred images can tell."""

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
PIECE = 32
"""Images that the network sees at once."""

SIDE = 512
"""Height and width of real images where the study leaves them to the pipeline."""


@dataclass(frozen=True)
class Statistics:
    """Mean (D,) and covariance (D, D) of the features of `count` images."""

    mean: Values
    covariance: Values
    count: int

    @classmethod
    def of(cls, features: Values) -> "Statistics":
        """From features (N, D), at least two."""
        return cls(features.mean(axis=0), np.cov(features, rowvar=False), len(features))

    @cached_property
    def root(self) -> Values:
        """The symmetric root of the covariance."""
        values, vectors = np.linalg.eigh(self.covariance)
        return np.asarray((vectors * np.sqrt(values.clip(min=0))) @ vectors.T)

    def save(self, path: Path) -> None:
        """Writes mean and covariance, in single precision, as .npz."""
        np.savez_compressed(
            path,
            mean=self.mean.astype(np.float32),
            covariance=self.covariance.astype(np.float32),
            count=np.array(self.count),
        )

    @classmethod
    def load(cls, path: Path) -> "Statistics":
        """Reads what `save` wrote."""
        with np.load(path) as parts:
            mean, covariance = (parts[name].astype(np.float64) for name in ("mean", "covariance"))
            return cls(mean, covariance, int(parts["count"]))


class Cloud:
    """The features of an image set, (N, D), ready to be compared with real ones many times."""

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


def distances(
    cloud: Cloud, captions: Sequence[str], *, resamples: int = 1_000, seed: int = 0
) -> Values:
    """(1 + resamples,): the distance, then those of resampled captions.

    The same captions and seed draw the same, so that differences of what two clouds give are
    paired.
    """
    _, group = np.unique(np.asarray(captions, dtype=object).astype(str), return_inverse=True)
    groups = int(group.max()) + 1
    rng = np.random.default_rng(seed)
    found = np.empty(1 + resamples)
    with _one_thread():
        found[0] = cloud.distance()
        for index in range(resamples):
            counts = np.bincount(rng.integers(groups, size=groups), minlength=groups)
            found[1 + index] = cloud.distance(counts[group].astype(np.float64))
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


class Features:
    """A network that sees images: `network`: uint8 (n, 3, H, W) on `device` -> (n, D)."""

    def __init__(
        self, network: Callable[[Tensor], Tensor], device: torch.device | str = "cpu"
    ) -> None:
        self._network = network
        self._device = torch.device(device)

    def __call__(self, images: Tensor) -> Values:
        """uint8 images (N, 3, H, W) -> (N, D). Raises GenerationError where one is too much for the
        memory."""
        starts = range(0, len(images), PIECE)
        return np.concatenate([self._piece(images[start : start + PIECE]) for start in starts])

    def _piece(self, images: Tensor) -> Values:
        try:
            with torch.inference_mode():
                seen = self._network(images.to(self._device))
            return np.asarray(seen.flatten(1).double().cpu().numpy())
        except torch.OutOfMemoryError:
            if len(images) == 1:
                raise GenerationError(
                    f"{FRECHET}: out of memory while one image is seen; {MEMORY_REMEDIES}"
                ) from None
        half = len(images) // 2
        return np.concatenate([self._piece(images[:half]), self._piece(images[half:])])


@dataclass(frozen=True)
class Distribution:
    """Real images, and the network in whose features others are compared with them."""

    features: Features
    real: Statistics

    def cloud(self, features: Values) -> Cloud:
        """An image set beside the real ones."""
        return Cloud(features, self.real)


def load_distribution(tables: StudyFile, device: torch.device | str = "cpu") -> Distribution | None:
    """What `validation.reference` names; None without it. Raises ScoreError.

    A twin sees with a small random network.
    """
    reference = tables.validation.reference
    if reference is None:
        return None
    if reference == DEMO_REFERENCE:
        return Distribution(demo_features(device), Statistics.load(SCENES))
    files = image_files(Path(reference))
    network = _random_network() if tables.model.twin else _inception()
    features = Features(network.to(device), device)
    side = (tables.sampling.height or SIDE, tables.sampling.width or SIDE)
    seen = [features(batch) for batch in real_images(files, side)]
    return Distribution(features, Statistics.of(np.concatenate(seen)))


def demo_features(device: torch.device | str = "cpu") -> Features:
    """The demo's: EfficientNet-Lite0's stage `STAGE`, averaged over the image."""
    similarity = load_similarity()
    similarity.to(device)
    return Features(lambda images: similarity.features(images / 255)[STAGE].mean((2, 3)), device)


def image_files(folder: Path) -> list[Path]:
    """The images of a folder, by name. Raises ScoreError for less than two."""
    files = sorted(path for path in folder.glob("*") if path.suffix.lower() in IMAGES)
    if len(files) < 2:
        raise ScoreError(
            f"validation.reference = {str(folder)!r}: {len(files)} images; expected a folder with "
            f"at least two ({', '.join(IMAGES)})",
            FRECHET,
        )
    return files


def real_images(files: Sequence[Path], side: tuple[int, int]) -> Iterator[Tensor]:
    """Images cut to the shape of `side` (H, W) around the middle and resized: uint8 (n, 3, H, W) a
    piece. Raises ScoreError."""
    for start in range(0, len(files), PIECE):
        pieces = [_read(path, side) for path in files[start : start + PIECE]]
        yield torch.from_numpy(np.stack(pieces)).permute(0, 3, 1, 2)


def _read(path: Path, side: tuple[int, int]) -> NDArray[np.uint8]:
    try:
        with Image.open(path) as image:
            fitted = ImageOps.fit(image.convert("RGB"), side[::-1], Image.Resampling.BICUBIC)
            return np.asarray(fitted)
    except (UnidentifiedImageError, OSError) as error:
        raise ScoreError(
            f"{path}: no readable image: {error}; mend or remove it", FRECHET
        ) from error


def _inception() -> nn.Module:
    """FID's Inception network (torch-fidelity's port), which sees uint8 images."""
    try:
        from torchmetrics.image.fid import NoTrainInceptionV3

        return NoTrainInceptionV3(name="inception-v3-compat", features_list=["2048"])
    except ImportError as error:
        raise ScoreError(
            f"{FRECHET}: torchmetrics or torch-fidelity is missing; pip install 'qsched[metrics]'",
            FRECHET,
        ) from error
    except OSError as error:
        raise ScoreError(
            f"{FRECHET}: the weights of Inception can't be had: {error}; they come from "
            "github.com/toshas/torch-fidelity once, into torch's cache (TORCH_HOME)",
            FRECHET,
        ) from error


def _random_network() -> nn.Module:
    """Eight random features of uint8 images."""
    generator = torch.Generator().manual_seed(0)
    layer = nn.Conv2d(3, 8, 4, 4)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 8
    return nn.Sequential(_Unit(), layer, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


class _Unit(nn.Module):
    """uint8 images in [0, 1]."""

    def forward(self, images: Tensor) -> Tensor:
        return images / 255
