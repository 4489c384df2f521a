"""Every layer of a LoRA file counts, or the file is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qsched.errors import ModelError
from qsched.pipelines.loading import Loaded, load_model
from qsched.pipelines.lora import FusedLora
from qsched.pipelines.table import Model, with_entry
from qsched.pipelines.twins import pipeline_twin

SD, SDXL, FLUX = "StableDiffusionPipeline", "StableDiffusionXLPipeline", "FluxPipeline"
Tensors = dict[str, Tensor]


def twin_file(pipeline: str = SD) -> Path:
    return pipeline_twin(pipeline, lora=True) / "lora" / "twin.safetensors"


def loaded(*files: Path, pipeline: str = SD, **keys: Any) -> Loaded:
    tables = [{"source": str(file.parent), "file": file.name, **keys} for file in files]
    name = str(pipeline_twin(pipeline, lora=True) / "pipeline")
    lora = tables[0] if len(tables) == 1 else tables
    return load_model(with_entry(Model.model_validate({"name": name, "lora": lora}), 2))


def renamed(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name.replace(old, new, 1): value for name, value in tensors.items()}


def in_kohyas_naming(tensors: Tensors) -> Tensors:
    found = {}
    for name, value in tensors.items():
        layer, _, half = name.removeprefix("unet.").partition(".lora.")
        layer = f"lora_unet_{layer.replace('.', '_')}"
        found[f"{layer}.lora_{half}"] = value
        found[f"{layer}.alpha"] = torch.tensor(2.0)
    return found


def in_pefts_naming(tensors: Tensors) -> Tensors:
    return renamed(".lora.up.", ".lora_B.")(renamed(".lora.down.", ".lora_A.")(tensors))


def of_text_encoder(tensors: Tensors) -> Tensors:
    layer = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    return {
        f"{layer}.lora_A.weight": torch.ones(2, 32),
        f"{layer}.lora_B.weight": torch.ones(32, 2),
    }


def with_dora(tensors: Tensors) -> Tensors:
    first = next(iter(tensors)).partition(".lora.")[0]
    return {**tensors, f"{first}.lora_magnitude_vector.dora_scale": torch.ones(3)}


def with_alpha(tensors: Tensors) -> Tensors:
    """1, of rank 2: half of what the file would add without."""
    layers = {name.partition(".lora_")[0] for name in tensors}
    return {**tensors, **{f"{layer}.alpha": torch.tensor(1.0) for layer in layers}}


def of_a_trainer(tensors: Tensors) -> Tensors:
    """PEFT's naming with the adapter's name in it, as a model's own state has it."""
    return renamed(".weight", ".default.weight")(in_pefts_naming(tensors))


def written(folder: Path, change: Callable[[Tensors], Tensors], pipeline: str = SD) -> Path:
    place = folder / "changed.safetensors"
    save_file(change(load_file(twin_file(pipeline))), place)
    return place


def weights(of: Loaded) -> Tensors:
    return of.network.state_dict()


@pytest.mark.parametrize("change", [in_kohyas_naming, in_pefts_naming])
def test_all_layers_are_reached_by_any_naming(
    tmp_path: Path, change: Callable[[Tensors], Tensors]
) -> None:
    expected, found = loaded(twin_file()), loaded(written(tmp_path, change))
    assert found.summary.endswith("LoRA changed.safetensors: 32 of 32 layers")
    torch.testing.assert_close(weights(found), weights(expected), atol=1e-6, rtol=0)


def test_several_are_added_each_with_its_scale() -> None:
    one, two = loaded(twin_file()), loaded(twin_file(), twin_file(), scale=0.5)
    torch.testing.assert_close(weights(two), weights(one), atol=1e-6, rtol=0)
    assert two.summary.count("32 of 32 layers") == 2


def test_layers_of_text_encoders_count(tmp_path: Path) -> None:
    both = written(tmp_path, lambda tensors: tensors | of_text_encoder(tensors))
    assert "33 of 33 layers" in loaded(both).summary


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (renamed("unet.", "model."), r"none of the 32 layers .*'model\.down_blocks"),
        (renamed("unet.", "base_model.model."), "none of the 32 layers"),
        (
            renamed("mid_block", "mid_blocks"),
            r"8 of the 32 layers .* set model\.lora\.partial = true",
        ),
        (of_text_encoder, "1 layers of text encoders and none of the denoiser"),
        (with_dora, "is a DoRA"),
        (lambda tensors: {"weight": torch.ones(2)}, "can't be loaded into"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    tmp_path: Path, change: Callable[[Tensors], Tensors], words: str
) -> None:
    with pytest.raises(ModelError, match=rf"^model\.lora: .*{words}") as raised:
        loaded(written(tmp_path, change))
    assert "\n" not in str(raised.value)


def test_a_part_of_it_is_enough_if_the_study_says_so(tmp_path: Path) -> None:
    part = written(tmp_path, renamed("mid_block", "mid_blocks"))
    (fused,) = loaded(part, partial=True).added
    assert isinstance(fused, FusedLora)
    assert 0 < fused.matched < fused.layers == 32


def test_one_of_another_base_model_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError, match=r"size mismatch.*take one made for StableDiffusionXL"):
        loaded(twin_file(SD), pipeline=SDXL)
    assert "Error(s)" not in capfd.readouterr().err


def test_an_alpha_counts(tmp_path: Path) -> None:
    half = written(tmp_path, lambda tensors: with_alpha(in_pefts_naming(tensors)), FLUX)
    found = loaded(half, pipeline=FLUX)
    expected = loaded(twin_file(FLUX), pipeline=FLUX, scale=0.5)
    torch.testing.assert_close(weights(found), weights(expected), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (of_a_trainer, "none of the 7 layers"),
        (renamed("transformer.", ""), "none of the 7 layers"),
        (renamed("transformer.", "base_model.model."), "can't be loaded into FluxPipeline"),
        (renamed("transformer.", "diffusion_model."), "none of the 7 layers"),
        (
            lambda tensors: with_alpha(
                renamed(".lora.up.", ".lora_up.")(renamed(".lora.down.", ".lora_down.")(tensors))
            ),
            r"alpha = 1 for transformer\..* of rank 2, and FluxPipeline loads it with 2",
        ),
    ],
)
def test_what_diffusers_would_leave_out_is_refused(
    tmp_path: Path, change: Callable[[Tensors], Tensors], words: str
) -> None:
    with pytest.raises(ModelError, match=rf"^model\.lora: .*{words}") as raised:
        loaded(written(tmp_path, change, FLUX), pipeline=FLUX)
    assert "\n" not in str(raised.value)


class Bare:
    """A pipeline that was never given LoRA loading."""


def test_a_pipeline_without_a_loader_is_named() -> None:
    from qsched.pipelines.lora import fuse
    from qsched.pipelines.table import LoraTable

    table = LoraTable(source=str(twin_file().parent), file=twin_file().name)
    with pytest.raises(ModelError, match="Bare can't load LoRA weights; fuse them in a function"):
        fuse(Bare(), table)
