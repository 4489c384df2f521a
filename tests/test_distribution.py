"""The Frechet distance: held against torchmetrics' own, and its paired interval."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

import fakes
from qsched.config import Study, load_study
from qsched.distribution import (
    SCENES,
    Cloud,
    Features,
    Statistics,
    distances,
    image_files,
    interval,
    load_distribution,
    real_images,
)
from qsched.errors import ConfigError, GenerationError, ScoreError
from qsched.jaq import Interval

Array = np.ndarray


def normal(count: int, seed: int, *, width: int = 3, shift: float = 0.0) -> Array:
    return np.random.default_rng(seed).normal(shift, 1, (count, width))


@pytest.mark.parametrize("width", [3, 2000])  # fewer features than images, and more
def test_the_distance_of_known_gaussians(width: int) -> None:
    x = normal(1000, 0, width=width)
    real = Statistics.of(x)
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
        return self.layer(images / 255).relu().mean(dim=(2, 3))


def pixels(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 16, 16), generator=generator, dtype=torch.uint8)


def test_it_is_the_distance_that_torchmetrics_computes() -> None:
    network = Pooled()
    real, made = pixels(80, 0), pixels(50, 1) // 2
    theirs = FrechetInceptionDistance(feature=network, input_img_size=(3, 16, 16))
    theirs.update(real, real=True)
    theirs.update(made, real=False)
    features = Features(network)
    ours = Cloud(features(made), Statistics.of(features(real))).distance()
    assert ours == pytest.approx(float(theirs.compute()), rel=1e-5)


@pytest.mark.parametrize("width", [3, 300])
def test_weights_are_repetitions(width: int) -> None:
    x, real = normal(40, 1, width=width), Statistics.of(normal(500, 2, width=width))
    times = np.random.default_rng(3).integers(0, 4, 40)
    repeated = Cloud(np.repeat(x, times, axis=0), real).distance()
    weighted = Cloud(x, real).distance(times.astype(float))
    assert weighted == pytest.approx(repeated, rel=1e-6)


def test_a_paired_difference_shows_what_either_interval_hides() -> None:
    """Captions differ much more than the treatment does, which pairing takes out."""
    real = Statistics.of(normal(5000, 4))
    control = normal(128, 5, shift=1.0)
    captions = [f"p{index // 2}" for index in range(128)]

    def apart(treated: np.ndarray) -> Interval:
        sets = (Cloud(treated, real), Cloud(control, real))
        after, before = (distances(each, captions, resamples=300) for each in sets)
        return interval(after - before)

    better = apart(control - 0.05)
    assert better.below_zero
    assert better.low < better.mean < better.high
    none = apart(control)
    assert (none.mean, none.low, none.high) == (0, 0, 0)
    noise = control + np.random.default_rng(6).normal(0, 0.05, control.shape)
    across = apart(noise)
    assert not across.below_zero
    assert not across.above_zero


def test_statistics_survive_their_file(tmp_path: Path) -> None:
    before = Statistics.of(normal(100, 7, width=5))
    before.save(tmp_path / "s.npz")
    after = Statistics.load(tmp_path / "s.npz")
    assert after.count == 100
    assert np.allclose(after.covariance, before.covariance, rtol=1e-6)
    assert np.allclose(after.mean, before.mean, rtol=1e-6)


def test_the_demos_scenes_are_shipped() -> None:
    real = Statistics.load(SCENES)
    assert real.count >= 2000
    assert real.covariance.shape == (112, 112)
    assert np.linalg.eigvalsh(real.covariance).min() > -1e-6
    assert SCENES.stat().st_size < 1_000_000


def with_reference(folder: Path, reference: str) -> Study:
    path = fakes.study_file(folder)
    path.write_text(
        path.read_text().replace('["pixels"]', f'["pixels"]\nreference = "{reference}"')
    )
    return load_study(path)


@pytest.fixture
def real_folder(tmp_path: Path) -> Path:
    """Real images of several shapes and modes, and a file that is none."""
    folder = tmp_path / "real ones"
    folder.mkdir()
    for index, size in enumerate([(40, 20), (20, 40), (64, 64)]):
        Image.new("RGB", size, (index * 60, 90, 30)).save(folder / f"{index}.png")
    Image.new("L", (30, 30), 200).save(folder / "grey.JPG")
    (folder / "notes.txt").write_text("not an image")
    return folder


def test_a_folder_of_real_images_is_read_at_the_studys_size(real_folder: Path) -> None:
    batches = list(real_images(image_files(real_folder), (24, 16)))
    assert torch.cat(batches).shape == (4, 3, 24, 16)
    assert batches[0].dtype == torch.uint8
    assert batches[0][1].float().mean(dim=(1, 2)).tolist() == [60, 90, 30]


def test_a_twin_sees_the_real_images_with_a_random_network(
    tmp_path: Path, real_folder: Path
) -> None:
    study = with_reference(tmp_path, "real ones")
    tables = study.tables.model_copy(
        update={"model": study.tables.model.model_copy(update={"twin": True})}
    )
    distribution = load_distribution(tables)
    assert distribution is not None
    assert distribution.real.count == 4
    features = distribution.features(pixels(5, 0))
    assert features.shape == (5, 8)
    assert distribution.cloud(features).distance() > 0


def test_what_is_no_reference_is_said_in_words(tmp_path: Path, real_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"validation\.reference = 'nowhere'; expected a folder"):
        with_reference(tmp_path, "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ScoreError, match="0 images; expected a folder with at least two"):
        load_distribution(with_reference(tmp_path, "empty").tables)
    (real_folder / "broken.png").write_bytes(b"no image")
    with pytest.raises(ScoreError, match=r"broken\.png: no readable image"):
        list(real_images(image_files(real_folder), (8, 8)))


def test_a_missing_package_is_named(
    tmp_path: Path, real_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    with pytest.raises(ScoreError, match=r"pip install 'qsched\[metrics\]'"):
        load_distribution(with_reference(tmp_path, "real ones").tables)


def test_smaller_pieces_where_memory_is_short() -> None:
    sizes: list[int] = []

    def network(images: Tensor) -> Tensor:
        if len(images) > 3:
            raise torch.OutOfMemoryError
        sizes.append(len(images))
        return images.float().mean(dim=(2, 3))

    images = pixels(10, 0)
    assert np.allclose(Features(network)(images), images.float().mean(dim=(2, 3)))
    assert max(sizes) <= 3

    def none(images: Tensor) -> Tensor:
        raise torch.OutOfMemoryError

    with pytest.raises(GenerationError, match="out of memory while one image"):
        Features(none)(images)
