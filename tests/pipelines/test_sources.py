"""Single files, and weights of the denoiser on a base: as diffusers loads them, or refused."""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qsched.errors import ModelError
from qsched.pipelines.agreement.settings import problems
from qsched.pipelines.catalog import MODELS
from qsched.pipelines.loading import Loaded, load_model
from qsched.pipelines.table import (
    Execution,
    Model,
    Sampling,
    placed,
    sampling_of,
    weights_of,
    with_entry,
)
from qsched.pipelines.twins import pipeline_twin
from qsched.pipelines.weights import twin_weights
from qsched.study.study import load_study
from qsched.study.template import own_study_text
from tests.support.single_files import in_one_file

SDXL = "StableDiffusionXLPipeline"
SAMPLING = Sampling(steps=2, height=32, width=32, guidance_scale=0.0)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The twin with text encoders of two widths, as the real ones are: diffusers tells them apart
    by that."""
    pipeline = diffusers.StableDiffusionXLPipeline.from_pretrained(pipeline_twin(SDXL) / "pipeline")
    for name, width in (("text_encoder", 24), ("text_encoder_2", 40)):
        encoder = getattr(pipeline, name)
        encoder.config.hidden_size, encoder.config.intermediate_size = width, 2 * width
        setattr(pipeline, name, type(encoder)(encoder.config).eval())
    folder = tmp_path_factory.mktemp("base")
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def one_file(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("single") / "own model.safetensors"
    save_file(in_one_file(base), file)
    return file


def loaded(**keys: object) -> Loaded:
    table = Model.model_validate({"dtype": "float32", **keys})
    return load_model(with_entry(placed(table, Path()), 2))


def images(pipeline: diffusers.DiffusionPipeline) -> Tensor:
    made: Tensor = pipeline(
        prompt=["a cat", "an owl"],
        generator=[torch.Generator().manual_seed(seed) for seed in (1, 2)],
        output_type="pt",
        **SAMPLING.arguments(),
    ).images
    return made


@pytest.mark.parametrize("ending", [".safetensors", ".ckpt"])
def test_a_single_file_is_its_folder(
    ending: str, base: Path, one_file: Path, tmp_path: Path
) -> None:
    file = one_file
    if ending == ".ckpt":
        file = tmp_path / "own.ckpt"
        torch.save({"state_dict": load_file(one_file)}, file)
    found = loaded(name=str(file), config=str(base))
    assert type(found.pipeline).__name__ == SDXL
    assert torch.equal(images(found.pipeline), images(loaded(name=str(base)).pipeline))


def test_a_single_file_is_described_by_its_config(base: Path, one_file: Path) -> None:
    table = Model(name=one_file.name, config=os.path.relpath(base, one_file.parent))
    table = with_entry(placed(table, one_file.parent), 2)
    assert table.pipeline == SDXL
    assert table.dtype == "float32"
    assert list(problems(table, SAMPLING)) == []
    assert [problem for problem in problems(table, Sampling(steps=2, height=36)) if "36" in problem]
    named = with_entry(Model(name=str(one_file), config="sdxl-base"), 2)
    assert named.pipeline == SDXL


def test_init_writes_a_study_of_a_single_file(one_file: Path, tmp_path: Path) -> None:
    text = own_study_text(str(one_file), name="own")
    (tmp_path / "own.toml").write_text(text)
    table = load_study(tmp_path / "own.toml", fetch=False).tables.model
    assert (table.name, table.config, table.part) == (str(one_file), "sdxl-base", "unet")
    assert table.dtype == "float32"
    save_file({"weight": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match="file here with a whole SDXL or SD"):
        own_study_text(str(tmp_path / "other.safetensors"))


def test_a_single_file_that_predicts_v_needs_a_scheduler_that_does(
    base: Path, one_file: Path, tmp_path: Path
) -> None:
    """Else its images would be noise."""
    save_file(load_file(one_file) | {"v_pred": torch.ones(1)}, tmp_path / "v.safetensors")
    table = with_entry(Model(name=str(tmp_path / "v.safetensors"), config=str(base)), 2)
    (problem,) = problems(table, SAMPLING)
    assert "it predicts v, and its config doesn't" in problem
    scheduler = {"class": "EulerDiscreteScheduler", "prediction_type": "v_prediction"}
    assert list(problems(table.model_copy(update={"scheduler": scheduler}), SAMPLING)) == []


def test_what_tells_a_single_file_apart(base: Path, one_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    tensors = load_file(one_file)
    save_file(tensors | {"first_stage_model.quant_conv.bias": torch.ones(8)}, other)
    found = [weights_of(Model(name=str(each), config=str(base))) for each in (one_file, other)]
    assert found[0] != found[1]
    assert weights_of(Model(name=str(one_file), config="sdxl-base")) != found[0]


class Harmful:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, ("harm",)


def test_a_pickle_runs_no_code(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Harmful()}, "bad.ckpt")
    with pytest.raises(ModelError, match=r"can't load .*bad\.ckpt as .*; copy it again"):
        loaded(name="./bad.ckpt", source="bad.ckpt", config=str(base))
    with pytest.raises(ModelError, match="holds more than weights, which could be code"):
        loaded(name=str(base), weights={"source": str(tmp_path), "file": "bad.ckpt"})
    assert not Path("harm").exists()


def test_a_single_file_that_can_not_be_loaded(base: Path, one_file: Path, tmp_path: Path) -> None:
    lacking = {
        name: value for name, value in load_file(one_file).items() if "first_stage" not in name
    }
    save_file(lacking, tmp_path / "lacking.safetensors")
    other = pipeline_twin("StableDiffusionPipeline") / "pipeline"
    for keys, words in (
        ({"name": str(tmp_path / "lacking.safetensors"), "config": str(base)}, "config|missing"),
        ({"name": str(one_file), "config": str(other)}, "set model.config to a model of the same"),
        ({"name": str(one_file)}, "model.config is missing"),
        ({"name": "./gone.safetensors", "config": str(base)}, "no such file"),
        ({"name": "./own.gguf", "config": str(base)}, "a GGUF file holds one network"),
        ({"name": "a/b/c.safetensors", "config": str(base)}, "a/b/c.safetensors is not downloaded"),
        ({"name": str(one_file), "config": "a/b@main", "pipeline": SDXL}, "a/b is not downloaded"),
    ):
        with pytest.raises(ModelError, match=words) as raised:
            loaded(**keys)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"name": "./gone.safetensors", "config": "sdxl-base"}, "no such file"),
        ({"name": "./own.gguf"}, "a GGUF file holds one network"),
        ({"name": "a/b/c.safetensors"}, "model.config is missing"),
        ({"name": "a/b/c.safetensors", "config": "d/e@main"}, "model.pipeline is missing"),
        ({"name": "a/b/c.ckpt", "config": "./gone"}, "expected a folder with a model_index"),
        ({"name": "sdxl-base", "config": "sdxl-base"}, "has configs of its own"),
        ({"name": "sdxl-base", "weights": {"source": "./no", "file": "x.bin"}}, "not in ./no"),
        ({"name": "a:b", "weights": {"source": "c/d", "file": "x.bin"}}, "builds its pipeline"),
    ],
)
def test_check_names_what_a_file_lacks(keys: Mapping[str, object], words: str) -> None:
    table = with_entry(Model.model_validate(keys), 2)
    assert [problem for problem in problems(table, SAMPLING) if words in problem]


@pytest.mark.parametrize("ending", [".safetensors", ".bin"])
def test_weights_take_the_denoisers_place(ending: str, base: Path) -> None:
    folder = twin_weights(SDXL)
    found = loaded(name=str(base), weights={"source": str(folder), "file": f"twin{ending}"})
    assert found.summary.endswith(f"weights twin{ending}: 212 tensors")
    plain = diffusers.StableDiffusionXLPipeline.from_pretrained(base)
    plain.set_progress_bar_config(disable=True)
    before = images(plain)
    plain.unet.load_state_dict(load_file(folder / "twin.safetensors"))
    assert torch.equal(images(found.pipeline), images(plain))
    assert not torch.equal(images(plain), before)


Tensors = dict[str, Tensor]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: dict(list(tensors.items())[2:]), "of 212 tensors 2 are missing, 0 have"),
        (lambda tensors: tensors | {"extra": torch.ones(1)}, "1 are unknown, among them 'extra'"),
        (
            lambda tensors: tensors | {"conv_in.bias": torch.ones(3)},
            "1 have another shape.*'conv_in.bias'",
        ),
        (
            lambda tensors: {f"unet.{name}": value for name, value in tensors.items()},
            r"begin with 'unet\.', those of the network don't",
        ),
        (
            lambda tensors: {"unet.mid_block.attn.lora_A.weight": torch.ones(1)},
            "is a LoRA; name it as model.lora",
        ),
        (
            lambda tensors: {"model.diffusion_model.out.2.bias": torch.ones(4)},
            "name it as model.source",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    change: Callable[[Tensors], Tensors], words: str, base: Path, tmp_path: Path
) -> None:
    tensors = load_file(twin_weights(SDXL) / "twin.safetensors")
    changed = {name: value.clone() for name, value in change(tensors).items()}
    save_file(changed, tmp_path / "own.safetensors")
    with pytest.raises(ModelError, match=rf"^model\.weights: .*{words}") as raised:
        loaded(name=str(base), weights={"source": str(tmp_path), "file": "own.safetensors"})
    assert "\n" not in str(raised.value)


def test_a_base_in_the_cache_lacks_the_denoisers_own_weights(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's own layout; of the denoiser only its config is fetched."""
    entry = MODELS["dmd2-sdxl"]
    assert entry.weights is not None

    def snapshot(source: str, revision: str | None) -> Path:
        repository = tmp_path / f"models--{source.replace('/', '--')}"
        return repository / "snapshots" / str(revision)

    place = snapshot(entry.source, entry.revision)
    shutil.copytree(base, place)
    for file in (place / "unet").glob("*.safetensors"):
        file.unlink()
    own = snapshot(entry.weights.source, entry.weights.revision)
    own.mkdir(parents=True)
    shutil.copy(twin_weights(SDXL) / "twin.bin", own / entry.weights.file)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    table = with_entry(Model(name="dmd2-sdxl", dtype="float32"), 4)
    found = load_model(table, execution=Execution(device="cpu"))
    assert f"weights {entry.weights.file}: 212 tensors" in found.summary


def test_dmd2_is_drawn_at_its_own_timesteps() -> None:
    sampling = sampling_of("dmd2-sdxl", Sampling(steps=4))
    assert sampling.arguments()["timesteps"] == [999, 749, 499, 249]
    small = sampling.model_copy(update={"height": 32, "width": 32})
    table = with_entry(Model(name="dmd2-sdxl"), 4).model_copy(
        update={"twin": True, "dtype": "float32"}
    )
    pipeline = load_model(table).pipeline
    pipeline(prompt="a cat", output_type="pt", **small.arguments())
    assert pipeline.scheduler.timesteps.tolist() == [999, 749, 499, 249]
