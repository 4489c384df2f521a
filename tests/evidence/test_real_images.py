"""Real images and the network that sees them: the demo's, a folder's, and what is wrong with it."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from qsched.errors import ConfigError, GenerationError, ScoreError
from qsched.evidence.real_images import (
    SCENES,
    Features,
    demo_scenes,
    image_files,
    load_real_images,
    real_images,
)
from qsched.study.study import Study, load_study
from tests.support import fakes


def test_the_demos_scenes_are_shipped() -> None:
    real = demo_scenes()
    assert real.shape == (4000, 112)
    assert np.isfinite(real).all()
    assert np.linalg.eigvalsh(np.cov(real, rowvar=False)).min() > 0
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
    real = load_real_images(study.tables.validation.reference, (24, 16), twin=True)
    assert real is not None
    assert real.real.shape == (4, 8)
    features = real.features(fakes.pixels(5, 0))
    assert features.shape == (5, 8)
    assert real.image_set("frechet", features).distance() > 0
    assert real.image_set("kid", features).distance() != 0


def test_what_is_no_reference_is_said_in_words(tmp_path: Path, real_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"validation\.reference = 'nowhere'; expected a folder"):
        with_reference(tmp_path, "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ScoreError, match="0 images; expected a folder with at least two"):
        load_real_images(str(tmp_path / "empty"), (8, 8))
    (real_folder / "broken.png").write_bytes(b"no image")
    with pytest.raises(ScoreError, match=r"broken\.png: no readable image"):
        list(real_images(image_files(real_folder), (8, 8)))


def test_a_missing_package_is_named(
    tmp_path: Path, real_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    with pytest.raises(ScoreError, match=r"pip install 'qsched\[metrics\]'"):
        load_real_images(str(real_folder), (8, 8))


def test_smaller_pieces_where_memory_is_short() -> None:
    sizes: list[int] = []

    def network(images: Tensor) -> Tensor:
        if len(images) > 3:
            raise torch.OutOfMemoryError
        sizes.append(len(images))
        return images.float().mean(dim=(2, 3))

    images = fakes.pixels(10, 0)
    assert np.allclose(Features(network)(images), images.float().mean(dim=(2, 3)))
    assert max(sizes) <= 3

    def none(images: Tensor) -> Tensor:
        raise torch.OutOfMemoryError

    with pytest.raises(GenerationError, match="out of memory while one image"):
        Features(none)(images)
