"""Real images, and the network in whose features generated ones are compared with them.

For the demo the network is EfficientNet-Lite0 and the real images are the rendered scenes that its
model learned from, whose features are shipped; for real models it is FID's own Inception network,
as torchmetrics has it, and a folder of real images.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor, nn

from qsched.errors import ScoreError
from qsched.evidence.distances import Cloud, ImageSet, Kernel, KernelCloud, Statistics
from qsched.evidence.table import DEMO_REFERENCE, FRECHET, KID
from qsched.pipelines.catalog import DEMO_FOLDER
from qsched.pipelines.devices import in_batches
from qsched.scoring.similarity import load_similarity
from qsched.statistics import Values

SCENES = DEMO_FOLDER / "scenes.npz"
STAGE = 3
"""The stage of EfficientNet-Lite0 whose 112 features the demo is compared in: as many as a
covariance of some hundred images can tell."""

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
PIECE = 32
"""Images that the network sees at once."""

SIDE = 512
"""Height and width of real images where the study leaves them to the pipeline."""


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

        def seen(part: Sequence[int]) -> Values:
            with torch.inference_mode():
                features = self._network(images[part[0] : part[-1] + 1].to(self._device))
            return np.asarray(features.flatten(1).double().cpu().numpy())

        whole = range(len(images))
        return np.concatenate(list(in_batches(whole, PIECE, seen, doing=f"is seen ({FRECHET})")))


@dataclass(frozen=True)
class RealImages:
    """Real images' features (N, D), and the network that has them of others."""

    features: Features
    real: Values

    def image_set(self, distance: str, features: Values) -> ImageSet:
        """Features (N, D) beside the real ones, for one of FRECHET and KID."""
        if distance == KID:
            return KernelCloud(features, self._kernel)
        return Cloud(features, self._statistics)

    @cached_property
    def _statistics(self) -> Statistics:
        return Statistics(self.real)

    @cached_property
    def _kernel(self) -> Kernel:
        return Kernel(self.real)


def load_real_images(
    reference: str | None,
    side: tuple[int, int],
    device: torch.device | str = "cpu",
    *,
    twin: bool = False,
) -> RealImages | None:
    """What `validation.reference` names; None without it. Raises ScoreError.

    `side`: the height and width that images of a folder are brought to. A twin sees with a small
    random network.
    """
    if reference is None:
        return None
    if reference == DEMO_REFERENCE:
        return RealImages(demo_features(device), demo_scenes())
    files = image_files(Path(reference))
    network = _random_network() if twin else _inception()
    features = Features(network.to(device), device)
    seen = [features(batch) for batch in real_images(files, side)]
    return RealImages(features, np.concatenate(seen))


def demo_features(device: torch.device | str = "cpu") -> Features:
    """The demo's: EfficientNet-Lite0's stage `STAGE`, averaged over the image."""
    similarity = load_similarity()
    similarity.prepare(torch.device(device))
    return Features(lambda images: similarity.features(images / 255)[STAGE].mean((2, 3)), device)


def demo_scenes() -> Values:
    """(4000, 112), the demo's features of the scenes that its model learned from."""
    with np.load(SCENES) as shipped:
        return np.asarray(shipped["features"], dtype=np.float64)


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
