"""The code that a card shows, for a reader to paste."""

import shutil
from pathlib import Path

import pytest

from qsched.errors import ModelError
from qsched.pipelines.catalog import MODELS
from qsched.pipelines.twins import pipeline_twin
from qsched.report.sample_code import in_order, sample_code
from qsched.report.settings import settings
from qsched.study.study import load_study
from tests.support import fakes


def test_imports_are_merged() -> None:
    lines = {"from b import y", "from b import x", "import json", "import torch as t"}
    assert in_order(lines) == "import json\n\nimport torch as t\nfrom b import x, y"
    assert in_order({"import torch"}) == "import torch"


def test_it_calls_and_fuses_as_the_study_does(tmp_path: Path) -> None:
    """A list of TOML arrives as the tuple that the pipeline takes, and None is None."""
    twin = pipeline_twin("StableDiffusionXLPipeline", lora=True)
    lora = '[[model.lora]]\nsource = "{}"\nfile = "twin.safetensors"\nscale = {}\n'
    path = fakes.study_file(tmp_path)
    text = path.read_text().replace(
        'name = "demo"', f'name = "{twin / "pipeline"}"\nscheduler = {{ class = "TCDScheduler" }}'
    )
    own = 'call = { original_size = [64, 32] }\nnone = ["target_size"]'
    loras = lora.format(twin / "lora", 0.5) + lora.format(twin / "lora", 2.0)
    path.write_text(text.replace("[sampling]", f"{loras}[sampling]\n{own}"))
    code = sample_code(load_study(path))
    assert "original_size=(64, 32)," in code
    assert "target_size=None," in code
    fused = [code.index(f"pipeline.fuse_lora(lora_scale={scale})") for scale in (0.5, 2.0)]
    assert fused == sorted(fused)


def test_an_index_that_is_broken_by_now_is_one_line(tmp_path: Path) -> None:
    place = tmp_path / "model"
    shutil.copytree(pipeline_twin("StableDiffusionXLPipeline") / "pipeline", place)
    path = fakes.study_file(tmp_path)
    own = f'name = "{place}"\nattention = "native"\nscheduler = {{ class = "TCDScheduler" }}'
    path.write_text(path.read_text().replace('name = "demo"', own))
    study = load_study(path)
    assert "pipeline.unet.set_attention_backend" in sample_code(study)
    (place / "model_index.json").write_text("{")
    with pytest.raises(ModelError, match=r"model_index.json: .*; copy it again$") as raised:
        sample_code(study)
    assert "\n" not in str(raised.value)


def test_it_rebuilds_a_single_file_and_weights_on_a_base(tmp_path: Path) -> None:
    """From the hub, at the revisions of the study."""
    own = '[model.weights]\nsource = "e/f"\nfile = "u_{steps}.bin"\nrevision = "12"\n[sampling]'
    path = fakes.study_file(tmp_path)
    single = 'name = "a/b/c.safetensors"\nconfig = "sdxl-base"\nrevision = "34"\npart = "unet"'
    text = path.read_text().replace('name = "demo"', single).replace("[sampling]", own)
    path.write_text(text)
    study = load_study(path)
    code = sample_code(study)
    assert "StableDiffusionXLPipeline.from_single_file(" in code
    assert 'hf_hub_download("a/b", "c.safetensors", revision="34")' in code
    entry = MODELS["sdxl-base"]
    assert (
        f'config = snapshot_download(\n    "{entry.source}",\n    revision="{entry.revision}",'
        in code
    )
    assert 'weights = hf_hub_download("e/f", "u_4.bin", revision="12")' in code
    assert "pipeline.unet.load_state_dict(torch.load(weights, map_location=" in code
    compile(code, "sample", "exec")
    assert "denoiser e/f@12/u_4.bin" in study.weights
    assert "denoiser's weights from `e/f/u_4.bin` at revision `12`" in str(
        [setting.card for setting in settings(study, network="")]
    )
