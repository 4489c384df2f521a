"""A setting that does nothing is an error, in one line, before anything is loaded and after."""

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest

from qsched.errors import ConfigError, ModelError
from qsched.pipelines.agreement.settings import (
    averages,
    problems,
    require_declared,
    require_taken,
    unread,
)
from qsched.pipelines.catalog import MODELS
from qsched.pipelines.effective import warnings
from qsched.pipelines.loading import load_model
from qsched.pipelines.table import Model, Sampling, model_named, sampling_of, with_entry
from qsched.pipelines.twins import pipeline_twin
from qsched.schedule.schedulers import X0_FROM_INPUTS, refusal
from qsched.schedule.step import X0_OF_INPUTS
from qsched.signatures import names_in_diffusers, of_class, of_diffusers
from qsched.study.study import load_study
from tests.support import fakes

SDXL, SD, LCM, FLUX = (
    "StableDiffusionXLPipeline",
    "StableDiffusionPipeline",
    "LatentConsistencyModelPipeline",
    "FluxPipeline",
)
FLOW_DPM = {
    "class": "DPMSolverMultistepScheduler",
    "use_flow_sigmas": True,
    "prediction_type": "flow_prediction",
}
DYNAMIC = {"use_dynamic_shifting": True, "time_shift_type": "exponential"}
EULER, TCD = {"class": "EulerDiscreteScheduler"}, {"class": "TCDScheduler"}


def folder(pipeline: str) -> str:
    return str(pipeline_twin(pipeline) / "pipeline")


def model(pipeline: str, **keys: Any) -> Model:
    return with_entry(Model.model_validate({"name": folder(pipeline), **keys}), 2)


def sampling(**keys: Any) -> Sampling:
    return Sampling.model_validate({"steps": 2, "height": 32, "width": 32, **keys})


@pytest.mark.parametrize(
    ("pipeline", "scheduler", "keys", "words"),
    [
        (SDXL, EULER | {"timestep_spaceing": "trailing"}, {}, "did you mean 'timestep_spacing'"),
        (SDXL, EULER | {"timestep_spacing": "trailng"}, {}, "'leading', 'linspace', 'trailing'"),
        (SDXL, TCD | {"timestep_spacing": "trailng"}, {}, "'leading', 'linspace', 'trailing'"),
        (SDXL, TCD | {"beta_end": "0.012"}, {}, "TCDScheduler expects float"),
        (SD, {"class": "PNDMScheduler"}, {}, "13 times for 4 steps"),
        (SD, {"class": "HeunDiscreteScheduler"}, {}, "2 times per step"),
        (SD, {"class": "EulerDiscreteSheduler"}, {}, "did you mean 'EulerDiscreteScheduler'"),
        (SDXL, EULER, {"call": {"negative_promt": "x"}}, "did you mean 'negative_prompt'"),
        (LCM, None, {"sigmas": [123.0, 77.0]}, "takes no 'sigmas'"),
        (SDXL, TCD, {"sigmas": [9.0, 1.0]}, "TCDScheduler takes no sigmas of one's own"),
        (SDXL, EULER, {"call": {"eta": "none"}}, "expects float"),
        (SDXL, EULER, {"none": ["intermediate"]}, "sampling.none = None: .* no 'intermediate'"),
        (SDXL, EULER, {"width": 36}, "multiples of 8; set it to 32"),
        (FLUX, None, {"height": 33}, r"sampling\.height = 33; FluxPipeline makes multiples of"),
        (
            SDXL,
            EULER,
            {"guidance_scale": 0.0, "call": {"negative_prompt": "x"}},
            "does nothing at guidance_scale = 0; set sampling.guidance_scale above 1",
        ),
        (FLUX, None, {"call": {"true_cfg_scale": 4.0}}, "nothing without a negative prompt"),
        (FLUX, None, {"call": {"negative_prompt": "x"}}, "set sampling.call.true_cfg_scale above"),
        (FLUX, FLOW_DPM, {}, "gives it mu, for which it expects use_dynamic_shifting and"),
        (FLUX, EULER, {}, "FluxPipeline gives it mu, which it doesn't take"),
        (FLUX, {"class": "LCMScheduler"}, {}, "gives it sigmas and mu, which it doesn't take"),
        (SDXL, {"class": "LCMScheduler"}, {"sigmas": [9.0, 1.0]}, "takes no sigmas of one's own"),
        (SDXL, {"class": "UniPCMultistepScheduler"}, {"timesteps": [999, 499]}, "no timesteps"),
        (FLUX, None, {"timesteps": [999, 499]}, "takes no 'timesteps'"),
    ],
)
def test_what_a_class_does_not_take_is_named(
    pipeline: str, scheduler: Any, keys: Any, words: str
) -> None:
    found = list(problems(model(pipeline, scheduler=scheduler), sampling(**keys)))
    assert len(found) == 1
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(found[0])


@pytest.mark.parametrize(
    ("pipeline", "scheduler", "keys"),
    [
        (SDXL, EULER, {"guidance_scale": 2.0, "call": {"negative_prompt": "blurry"}}),
        (SDXL, EULER | {"timestep_spacing": "trailing"}, {"call": {"original_size": [64, 64]}}),
        (SDXL, EULER, {"sigmas": [9.0, 1.0], "call": {"clip_skip": 1}, "none": ["target_size"]}),
        (LCM, None, {"guidance_scale": 8.0, "call": {"original_inference_steps": 50}}),
        (FLUX, None, {"call": {"true_cfg_scale": 4.0, "negative_prompt": " "}}),
        (FLUX, FLOW_DPM | DYNAMIC, {}),
        (SDXL, {"class": "LCMScheduler"}, {"timesteps": [999, 499]}),
    ],
)
def test_what_it_takes_passes_by_source_and_loaded(
    pipeline: str, scheduler: Any, keys: Any
) -> None:
    table = model(pipeline, scheduler=scheduler)
    assert list(problems(table, sampling(**keys))) == []
    require_taken(load_model(table).pipeline, sampling(**keys))


def test_a_loaded_pipeline_is_asked_again() -> None:
    pipeline = load_model(model(SDXL, scheduler=EULER)).pipeline
    for keys, words in (
        ({"call": {"negative_promt": "x"}}, "takes no 'negative_promt'"),
        ({"height": 33}, "makes multiples of 8"),
    ):
        with pytest.raises(ModelError, match=words):
            require_taken(pipeline, sampling(**keys))
    with pytest.raises(ModelError, match="has no 'shift'"):
        require_declared(diffusers.EulerDiscreteScheduler, EULER | {"shift": 3.0})


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("num_images_per_prompt", 2, "set prompts.held_out_seeds"),
        ("output_type", '"pil"', "images are scored as arrays"),
        ("num_inference_steps", 8, "set sampling.steps"),
        ("denoising_end", 0.5, "steps would never run"),
        ("timesteps", "[999, 499]", "set sampling.timesteps"),
        ("prompt_embeds", "[1.0]", "can't hold tensors"),
        ("negative_prompt", '["a", "b"]', "expected one text for all captions"),
    ],
)
def test_what_qsched_sets_itself_is_reserved_in_words(
    tmp_path: Path, key: str, value: Any, words: str
) -> None:
    path = fakes.study_file(tmp_path)
    text = path.read_text().replace("[sampling]", f"[sampling]\ncall = {{ {key} = {value} }}")
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"^\S+: sampling.*{key}.*{words}"):
        load_study(path)


def test_none_is_passed_and_lists_are_tuples() -> None:
    table = sampling(call={"original_size": [64, 64]}, none=["target_size"])
    arguments = table.arguments()
    assert arguments["original_size"] == (64, 64)
    assert arguments["target_size"] is None
    with pytest.raises(ValueError, match="target_size has a value in call"):
        sampling(call={"target_size": [64, 64]}, none=["target_size"])


def test_places_that_are_not_there(tmp_path: Path) -> None:
    lora = {"source": str(tmp_path), "file": "nothere.safetensors"}
    for table, words in (
        (Model(name="./no/such/model"), "expected a folder with a model_index.json"),
        (model(SDXL, scheduler=TCD, lora=lora), "model.lora.file = 'nothere.safetensors': not in"),
        (model(SDXL, scheduler=TCD, revision="main"), "has no revisions; leave it out"),
        (Model(name=folder(SDXL), pipeline=FLUX), f"the folder's is {SDXL}"),
        (Model(name="a/b", pipeline="FluxPipelin"), "did you mean 'FluxPipeline'"),
    ):
        found = list(problems(table, sampling()))
        assert [problem for problem in found if words in problem], found


def test_the_scheduler_of_a_folder_counts(tmp_path: Path) -> None:
    place = tmp_path / "model"
    shutil.copytree(folder(SDXL), place)
    config = place / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_class_name": "PNDMScheduler"}))
    found = list(problems(with_entry(Model(name=str(place)), 2), sampling()))
    assert len(found) == 1
    assert found[0].startswith("the folder's PNDMScheduler: it calls the network several times")
    assert "set model.scheduler" in found[0]


@pytest.mark.parametrize("index", ["", "[]", "{}", '{"a": 1', "\xff"])
def test_an_index_that_says_nothing_is_named(tmp_path: Path, index: str) -> None:
    path = fakes.study_file(tmp_path)
    path.write_text(path.read_text().replace('name = "demo"', 'name = "./broken"'))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model_index.json").write_bytes(index.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"model_index\.json: .*expected the index of a pipeline"):
        load_study(path)


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        (EULER, True),
        ({"class": "DEISMultistepScheduler"}, False),
        ({"class": "SCMScheduler"}, False),
        ({"class": "DPMSolverMultistepScheduler"}, True),
        ({"class": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver"}, False),
        ({"class": "UniPCMultistepScheduler", "predict_x0": False}, False),
    ],
)
def test_auto_averages_only_where_the_scheduler_can(
    tmp_path: Path, scheduler: Any, expected: bool
) -> None:
    assert averages(model(SDXL, scheduler=scheduler)) is expected
    path = fakes.study_file(tmp_path)
    keys = ", ".join(f"{key} = {json.dumps(value)}" for key, value in scheduler.items())
    text = path.read_text().replace("steps = 4", "steps = 2")
    text = text.replace('name = "demo"', f'name = "{folder(SDXL)}"\nscheduler = {{ {keys} }}')
    auto = text.replace("[search]", '[search]\nparametrisation = "auto"')
    path.write_text(auto)
    space = load_study(path).parametrisation.name
    assert space == ("per-step+x0-average" if expected else "per-step")
    path.write_text(auto.replace('"auto"', '"x0-average"'))
    if not expected:
        with pytest.raises(ConfigError, match="predict no x0 that could be averaged"):
            load_study(path)


@pytest.mark.parametrize("name", names_in_diffusers("Scheduler"))
def test_the_source_says_what_the_class_says(name: str) -> None:
    """Read without import, a class is refused or taken as the one that was imported."""
    kind = getattr(diffusers, name, None)
    read = of_diffusers(name)
    assert read is not None
    if kind is None or getattr(kind, "_backends", None):
        pytest.skip("not public")
    loaded = of_class(kind)
    assert read.parameters("__init__") == loaded.parameters("__init__")
    why = [refusal(each.names, list(each.parameters("step")), 1) for each in (read, loaded)]
    assert why[0] == why[1]
    assert (read.constant("order") or 1) == getattr(kind, "order", 1)


def test_one_list_of_schedulers_whose_inputs_tell_x0() -> None:
    assert X0_OF_INPUTS.keys() == X0_FROM_INPUTS


class Own(diffusers.StableDiffusionXLPipeline):  # type: ignore[misc]
    def __call__(self, *args: Any, strength: float = 1.0, **kwargs: Any) -> Any:
        return super().__call__(*args, num_inference_steps=kwargs.pop("speed", 2), **kwargs)


def test_a_class_of_ones_own_takes_what_it_reads_and_passes_on() -> None:
    known = of_class(Own).parameters("__call__")
    assert {"strength", "speed", "negative_prompt", "original_size"} <= known.keys()
    assert "negative_promt" not in known


@pytest.mark.parametrize("name", MODELS)
def test_every_model_of_the_catalogue_passes_and_sets_nothing_in_vain(name: str) -> None:
    steps = max(MODELS[name].steps or (4,))
    table, drawn = model_named(name, steps), sampling_of(name, Sampling(steps=steps))
    assert list(problems(table, drawn)) == []
    assert warnings(table, drawn) == []


@pytest.mark.parametrize(
    ("pipeline", "scheduler", "keys", "words"),
    [
        (SDXL, TCD | {"timestep_spacing": "trailing"}, {}, "timestep_spacing does nothing: TCD"),
        (SDXL, TCD | {"beta_end": 0.013}, {}, None),
        (SDXL, EULER | {"timestep_spacing": "trailing"}, {"guidance_scale": 4.0}, None),
        (FLUX, None, {"guidance_scale": 3.5}, "guidance_scale = 3.5 does nothing: its network"),
        (FLUX, None, {"guidance_scale": 0.0}, None),
    ],
)
def test_what_is_taken_and_not_read_is_said(
    pipeline: str, scheduler: Any, keys: Any, words: str | None
) -> None:
    table = model(pipeline, scheduler=scheduler)
    found = list(unread(table, sampling(**keys)))
    assert list(problems(table, sampling(**keys))) == []
    assert len(found) == (1 if words else 0)
    assert words is None or words in found[0]
    assert set(found) <= set(warnings(table, sampling(**keys)))


def test_a_distilled_model_takes_no_guidance(tmp_path: Path) -> None:
    """As FLUX.2 klein and Krea 2 say it of themselves."""
    place = tmp_path / "model"
    shutil.copytree(folder(FLUX), place)
    index = place / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"is_distilled": True}))
    table = with_entry(Model(name=str(place)), 2)
    (found,) = unread(table, sampling(guidance_scale=4.0))
    assert "is_distilled in its index" in found


def test_what_a_study_compares_with_is_found_beside_it(tmp_path: Path) -> None:
    path = fakes.study_file(tmp_path)
    shutil.copytree(folder(SDXL), tmp_path / "whole")
    text = path.read_text().replace('name = "demo"', 'name = "demo"\nfull_precision = "./whole"', 1)
    path.write_text(text)
    assert load_study(path).tables.model.full_precision == str((tmp_path / "whole").resolve())
