"""An image set on disk: complete, repeatable, resumable."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qsched import api
from qsched.errors import ConfigError, QschedError
from qsched.pipelines.twins import pipeline_twin
from qsched.schedule.coefficients import Coefficients

CAPTIONS = ["a cat", "a dog", "an owl", "a fox", "a hen"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tiny lcm") / "model"
    shutil.copytree(pipeline_twin("LatentConsistencyModelPipeline") / "pipeline", folder)
    return str(folder)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(CAPTIONS) + "\n")
    return path


@pytest.fixture
def filled(model: str, prompts: Path, tmp_path: Path) -> Path:
    """A set of which the first image is there."""
    api.generate(model, prompts, tmp_path / "filled", steps=2)
    Image.new("RGB", (8, 8)).save(tmp_path / "filled" / "00000.png")
    return tmp_path / "filled"


def make(
    model: str,
    prompts: Path,
    out: Path,
    *,
    steps: int | None = 2,
    seed: int = 0,
    coefficients: Path | None = None,
) -> int:
    batches, count = api.generate(
        model, prompts, out, steps=steps, seed=seed, coefficients=coefficients, batch_size=2
    )
    assert len(list(batches)) == count
    return count


def pictures(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))]


def test_a_png_a_prompt_and_what_made_it(model: str, prompts: Path, tmp_path: Path) -> None:
    assert make(model, prompts, tmp_path / "out") == 3
    rows = [json.loads(line) for line in (tmp_path / "out" / "prompts.jsonl").open()]
    assert [row["prompt"] for row in rows] == CAPTIONS
    assert [row["file"] for row in rows] == [f"{index:05}.png" for index in range(5)]
    assert len({row["seed"] for row in rows}) == 5
    made = pictures(tmp_path / "out")
    assert len(made) == 5
    assert not np.array_equal(made[0], made[1])


def test_what_exists_is_kept_and_what_is_missing_comes_out_the_same(
    model: str, prompts: Path, tmp_path: Path
) -> None:
    make(model, prompts, tmp_path / "out")
    expected = pictures(tmp_path / "out")
    kept = (tmp_path / "out" / "00001.png").stat().st_mtime_ns
    for index in (0, 3):
        (tmp_path / "out" / f"{index:05}.png").unlink()
    assert make(model, prompts, tmp_path / "out") == 1
    assert (tmp_path / "out" / "00001.png").stat().st_mtime_ns == kept
    for one, other in zip(pictures(tmp_path / "out"), expected, strict=True):
        assert np.array_equal(one, other)
    assert make(model, prompts, tmp_path / "out") == 0


def test_coefficients_change_the_images(model: str, prompts: Path, tmp_path: Path) -> None:
    make(model, prompts, tmp_path / "plain")
    for name, found in (("ones", Coefficients.identity(2)), ("ramp", Coefficients.ramp(2, 2, 2))):
        found.save(tmp_path / f"{name}.json")
        make(
            model,
            prompts,
            tmp_path / name,
            coefficients=tmp_path / f"{name}.json",
            steps=None,
        )
    assert np.array_equal(pictures(tmp_path / "plain"), pictures(tmp_path / "ones"))
    assert not np.array_equal(pictures(tmp_path / "plain"), pictures(tmp_path / "ramp"))


def test_a_folder_of_other_prompts_is_refused(model: str, prompts: Path, tmp_path: Path) -> None:
    make(model, prompts, tmp_path / "out")
    with pytest.raises(ConfigError, match="other prompts or seeds made these images"):
        make(model, prompts, tmp_path / "out", seed=1)


def test_the_number_of_steps_has_to_be_known(model: str, prompts: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--steps or --coefficients"):
        make(model, prompts, tmp_path / "out", steps=None)
    Coefficients.identity(2).save(tmp_path / "two.json")
    words = r"two\.json: for 2 steps, and 4 are asked for; take 2 steps or other coefficients"
    with pytest.raises(QschedError, match=words):
        make(model, prompts, tmp_path / "out", steps=4, coefficients=tmp_path / "two.json")


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"steps": 4}, "sampling.steps = 2, now it is 4"),
        ({"quantization": "w4a4"}, "quantization.scheme = None, now it is 'w4a4'"),
        ({"twin": True}, "now it is 'float32'|model.twin"),
        ({"coefficients": "ramp.json", "steps": None}, r"coefficients.model = \[1.0, 1.0\], now"),
    ],
)
def test_images_of_other_settings_are_not_mixed(
    filled: Path, model: str, prompts: Path, tmp_path: Path, changes: dict[str, Any], key: str
) -> None:
    if "coefficients" in changes:
        changes = changes | {"coefficients": tmp_path / "ramp.json"}
        Coefficients.ramp(2, 1.1, 0.9).save(tmp_path / "ramp.json")
    before = {path: path.read_bytes() for path in filled.iterdir()}
    with pytest.raises(ConfigError, match=key) as raised:
        api.generate(model, prompts, filled, **({"steps": 2} | changes))
    assert str(raised.value).endswith("; use another --out")
    assert {path: path.read_bytes() for path in filled.iterdir()} == before


def test_other_weights_in_the_same_place_are_seen(
    model: str, prompts: Path, tmp_path: Path
) -> None:
    own = tmp_path / "model"
    shutil.copytree(model, own)
    api.generate(str(own), prompts, tmp_path / "out", steps=2)
    Image.new("RGB", (8, 8)).save(tmp_path / "out" / "00000.png")
    own.rename(tmp_path / "moved")  # the same weights elsewhere make the same images
    api.generate(str(tmp_path / "moved"), prompts, tmp_path / "out", steps=2)
    (tmp_path / "moved" / "vae" / "note.txt").write_text("other weights")
    with pytest.raises(ConfigError, match=r"model\.weights = '"):
        api.generate(str(tmp_path / "moved"), prompts, tmp_path / "out", steps=2)


def test_what_made_the_images_has_to_be_known(model: str, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    api.generate(model, prompts, out, steps=2)
    api.generate(model, prompts, out, steps=4)  # as long as there is no image
    Image.new("RGB", (8, 8)).save(out / "00000.png")
    (out / "manifest.json").unlink()
    with pytest.raises(ConfigError, match="nobody knows what made the images"):
        api.generate(model, prompts, out, steps=4)


def test_what_does_not_decode_is_made_again(model: str, prompts: Path, tmp_path: Path) -> None:
    make(model, prompts, tmp_path / "out")
    expected = pictures(tmp_path / "out")
    names = [tmp_path / "out" / f"{index:05}.png" for index in range(5)]
    names[0].write_bytes(b"")
    names[1].write_bytes(names[1].read_bytes()[:-20])
    names[2].write_text("a text")
    names[3].unlink()
    names[3].symlink_to("precious")
    (tmp_path / "out" / "precious").write_text("of somebody")
    assert make(model, prompts, tmp_path / "out") == 2
    for one, other in zip(pictures(tmp_path / "out"), expected, strict=True):
        assert np.array_equal(one, other)
    assert (tmp_path / "out" / "precious").read_text() == "of somebody"
