"""Four captions by both networks, before any budget is spent."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from qsched import api
from qsched.pictures.sheets import Pictures
from qsched.pipelines.generator import ImageGenerator
from qsched.pipelines.loading import load_model
from qsched.pipelines.twins import pipeline_twin
from qsched.proof.preview import draw
from qsched.report import files
from qsched.report import preview as previews
from qsched.schedule.coefficients import Coefficients
from qsched.study.study import Study, load_study
from tests.support import fakes

ROOT = Path(__file__).parents[2]


def demo() -> Study:
    return load_study(ROOT / "studies" / "demo.toml")


def test_both_networks_draw_what_the_study_would() -> None:
    study = demo()
    found = draw(study)
    assert found.pictures.captions == tuple(prompt.text for prompt in study.calibration[:4])
    pipeline = load_model(study.tables.model, study.tables.quantization).pipeline
    generator = ImageGenerator(pipeline, study.tables.sampling, batch_size=4)
    plain = generator.generate(study.calibration[:4], Coefficients.identity(4))
    expected = (plain.permute(0, 2, 3, 1) * 255).round().byte().numpy()
    assert np.array_equal(found.pictures.rows["identity"], expected)
    assert not np.array_equal(found.pictures.rows["full_precision"], expected)
    assert found.network.startswith("w4a4 (simulated)")
    assert "fit their captions" in previews.sentence_of(study, found.impressions)
    for each in found.impressions.values():
        assert each.alignment is not None
        assert each.alignment.own > each.alignment.shuffled


def test_pictures_of_random_weights_are_doubted(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    shutil.copytree(pipeline_twin("StableDiffusionXLPipeline") / "pipeline", folder)
    file = fakes.study_file(tmp_path)
    captions = json.dumps([prompt.text for prompt in demo().calibration[:4]])
    text = file.read_text().replace('"demo"', f'"{folder}"')
    file.write_text(text.replace('["a", "b", "c", "d", "e", "f"]', captions))
    study = load_study(file)
    found = draw(study)
    doubts = previews.doubts_of(found.impressions)
    assert doubts
    assert doubts[0].startswith("full precision: nothing to do with their captions")
    assert "may be no images" in previews.sentence_of(study, found.impressions)


def test_a_network_that_came_quantized_is_drawn_alone(tmp_path: Path) -> None:
    file = fakes.study_file(tmp_path)
    file.write_text(file.read_text().replace('"w4a8"', '"none"'))
    paths, found = api.preview(load_study(file), tmp_path / "out")
    assert [path.name for path in paths] == [files.PREVIEW, files.PREVIEW_PAGE]
    assert list(found["networks"]) == ["identity"]


def test_the_page_shows_what_users_wrote_as_text(tmp_path: Path) -> None:
    study = fakes.study(tmp_path)
    picture = np.zeros((1, 8, 8, 3), np.uint8)
    pictures = Pictures(("<b>bold</b>",), {"identity": picture, "full_precision": picture}, {})
    previews.write(tmp_path, study, pictures, {}, "<i>network</i>")
    page = (tmp_path / files.PREVIEW_PAGE).read_text()
    assert "&lt;b&gt;bold&lt;/b&gt;" in page
    assert "<i>" not in page
    assert page.count("data:image/webp") == 2


@pytest.mark.parametrize("name", ["sdxl-turbo-w8a8", "flux-schnell-nf4"])
def test_a_twin_is_drawn_and_not_judged(name: str, tmp_path: Path) -> None:
    study = load_study(ROOT / "studies" / f"{name}.toml", fetch=False).twin()
    _, found = api.preview(study, tmp_path)
    assert found["sentence"].startswith("A twin has random weights")
