"""Loading: what the loader does to a pipeline, equals what diffusers does, and fails in words."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import errors as hub_errors
from safetensors.torch import load_file
from torchao.quantization import Int8WeightOnlyConfig

from qsched import hub
from qsched.errors import ConfigError, HubError, ModelError, QuantizationError
from qsched.pipelines import catalog
from qsched.pipelines.catalog import MODELS, TWIN_SIDE
from qsched.pipelines.devices import device_for
from qsched.pipelines.loading import load_model, load_pipeline
from qsched.pipelines.table import (
    Execution,
    LoraTable,
    Model,
    Sampling,
    packages_of_model,
    sampling_of,
    with_entry,
)
from qsched.pipelines.twins import pipeline_twin
from qsched.pipelines.weights import twin_weights
from qsched.quantization.table import Quantization

REAL = [name for name in MODELS if name != "demo"]
UNPINNED = {"hunyuan-image-2.1-distilled"}
"""No public text names a commit of it."""
STEPS = {name: max(MODELS[name].steps or (4,)) for name in REAL}


def twin(name: str, **changes: object) -> Model:
    model = with_entry(Model.model_validate({"name": name}), STEPS[name])
    return model.model_copy(update={"twin": True, "dtype": "float32"} | changes)


def images(pipeline: DiffusionPipeline, name: str, steps: int) -> torch.Tensor:
    sampling = sampling_of(name, Sampling(steps=steps))
    arguments = sampling.arguments() | {"height": TWIN_SIDE, "width": TWIN_SIDE}
    made: torch.Tensor = pipeline(
        prompt=["a cat", "an owl"],
        generator=[torch.Generator().manual_seed(seed) for seed in (1, 2)],
        output_type="pt",
        **arguments,
    ).images
    return made


def by_diffusers(name: str) -> DiffusionPipeline:
    """What the model's own page says to do, on the twin's files."""
    entry = MODELS[name]
    folder = pipeline_twin(entry.twin or entry.pipeline or "", lora=entry.lora is not None)
    kind = getattr(diffusers, entry.pipeline or "")
    pipeline = kind.from_pretrained(folder / "pipeline")
    if getattr(pipeline, "safety_checker", None) is not None:
        pipeline.safety_checker = None
    if entry.weights:
        pipeline.unet.load_state_dict(
            load_file(twin_weights(entry.pipeline or "") / "twin.safetensors")
        )
    if entry.scheduler:
        arguments = dict(entry.scheduler)
        kind = getattr(diffusers, arguments.pop("class"))
        pipeline.scheduler = kind.from_config(pipeline.scheduler.config, **arguments)
    if entry.lora:
        pipeline.load_lora_weights(folder / "lora", weight_name="twin.safetensors")
        pipeline.set_adapters(pipeline.get_active_adapters(), entry.lora.scale)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("name", REAL)
def test_a_loaded_model_draws_what_diffusers_draws(name: str) -> None:
    """LoRA fused or not may differ in the last bits."""
    steps = min(4, STEPS[name])
    ours = images(load_model(twin(name)).pipeline, name, steps)
    assert ours.std() > 0.01
    torch.testing.assert_close(ours, images(by_diffusers(name), name, steps), atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", REAL)
def test_the_catalogue_says_what_the_paper_says(name: str) -> None:
    entry = MODELS[name]
    assert len(entry.revision or "") == 40 or name in UNPINNED
    pipeline = load_model(twin(name)).pipeline
    assert type(pipeline).__name__ == entry.pipeline
    if entry.scheduler:
        assert type(pipeline.scheduler).__name__ == entry.scheduler["class"]
        for key, value in entry.scheduler.items():
            assert key == "class" or pipeline.scheduler.config[key] == value


@pytest.mark.parametrize("name", ["pcm-sd15", "lcm-dreamshaper"])
def test_a_safety_checker_is_off(name: str) -> None:
    """The twin's own one calls every image unsafe."""
    folder = pipeline_twin(MODELS[name].pipeline or "", lora=MODELS[name].lora is not None)
    stock = DiffusionPipeline.from_pretrained(folder / "pipeline")
    stock.set_progress_bar_config(disable=True)
    assert images(stock, name, 2).max() == 0
    assert images(load_model(twin(name)).pipeline, name, 2).max() > 0.1


def test_a_lora_is_fused_for_good_before_the_network_is_quantized() -> None:
    with_lora = load_model(twin("pcm-sd15")).network
    without = load_model(twin("pcm-sd15", lora=None)).network
    changed = [
        name
        for name, weight in with_lora.state_dict().items()
        if not torch.equal(weight, without.state_dict()[name])
    ]
    assert changed
    assert all("attn" in name for name in changed)
    assert not [name for name, _ in with_lora.named_modules() if "lora" in name]
    half = LoraTable(source="x", file="y", scale=0.5)
    weaker = load_model(twin("pcm-sd15", lora=half)).network.state_dict()[changed[0]]
    middle = (with_lora.state_dict()[changed[0]] + without.state_dict()[changed[0]]) / 2
    torch.testing.assert_close(weaker, middle)
    report = load_model(twin("pcm-sd15"), Quantization(scheme="w8a8", backend="torchao")).report
    assert report is not None
    assert any("attn" in layer.name for layer in report.quantized)


def test_the_lora_of_the_asked_number_of_steps() -> None:
    for steps in (2, 16):
        (lora,) = with_entry(Model(name="pcm-sdxl"), steps).loras
        assert lora.file == f"sdxl/pcm_sdxl_smallcfg_{steps}step_converted.safetensors"


def test_a_folder_works_like_a_name(tmp_path: Path) -> None:
    folder = tmp_path / "my [own] model ü"
    shutil.copytree(pipeline_twin("StableDiffusionXLPipeline") / "pipeline", folder)
    pipeline = load_pipeline(str(folder))
    assert type(pipeline).__name__ == "StableDiffusionXLPipeline"
    copy = Model.model_validate({"name": "sdxl-turbo", "source": str(folder), "dtype": "float32"})
    loaded = load_model(with_entry(copy, 4), execution=Execution(device="cpu")).pipeline
    assert type(loaded.scheduler).__name__ == "EulerAncestralDiscreteScheduler"
    assert with_entry(copy, 4).revision is None


def test_a_folder_of_torchao_bits_loads_as_it_was_saved(tmp_path: Path) -> None:
    folder = pipeline_twin("FluxPipeline") / "pipeline"
    network = diffusers.FluxTransformer2DModel.from_pretrained(
        folder,
        subfolder="transformer",
        dtype=torch.bfloat16,
        quantization_config=diffusers.TorchAoConfig(Int8WeightOnlyConfig(version=2)),
    )
    pipeline = diffusers.FluxPipeline.from_pretrained(
        folder, transformer=network, dtype=torch.bfloat16
    )
    pipeline.save_pretrained(tmp_path / "bits")
    table = with_entry(Model(name=str(tmp_path / "bits")), 4)
    assert table.dtype == "bfloat16"
    assert "torchao" in packages_of_model(table), "its version belongs into the fingerprint"
    loaded = load_model(table, Quantization(scheme="none"), execution=Execution(device="cpu"))
    assert "none: as it came, quantized already: 28 Linear (Int8Tensor)" in loaded.summary
    pipeline.set_progress_bar_config(disable=True)
    ours, theirs = images(loaded.pipeline, "flux-schnell", 4), images(pipeline, "flux-schnell", 4)
    assert torch.equal(ours, theirs)
    with pytest.raises(QuantizationError, match="quantized already"):
        load_model(table, Quantization(scheme="w4a8"), execution=Execution(device="cpu"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="it loads there")
def test_bits_of_bitsandbytes_want_a_gpu_in_one_line(tmp_path: Path) -> None:
    shutil.copytree(pipeline_twin("FluxPipeline") / "pipeline", tmp_path / "bits")
    config = tmp_path / "bits" / "transformer" / "config.json"
    how = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": how}))
    with pytest.raises(
        ModelError, match=r"transformer is saved in bitsandbytes' bits, .* on a GPU"
    ):
        load_pipeline(str(tmp_path / "bits"))


def test_the_variant_of_a_folder_where_it_has_one(tmp_path: Path) -> None:
    whole = DiffusionPipeline.from_pretrained(
        pipeline_twin("StableDiffusionXLPipeline") / "pipeline", dtype=torch.float16
    )
    whole.save_pretrained(tmp_path / "half", variant="fp16")
    shutil.copytree(pipeline_twin("StableDiffusionXLPipeline") / "pipeline", tmp_path / "full")
    for folder in ("half", "full"):
        table = Model.model_validate(
            {
                "name": "sdxl-turbo",
                "source": str(tmp_path / folder),
                "variant": "fp16",
                "dtype": "float16",
            }
        )
        network = load_model(with_entry(table, 4), execution=Execution(device="cpu")).network
        assert next(network.parameters()).dtype == torch.float16


MODULE = """
import torch
from diffusers import DiffusionPipeline
def good():
    return DiffusionPipeline.from_pretrained({folder!r})
def number():
    return 3
class Crowded(type(good())):
    def to(self, *args, **kwargs):
        raise torch.OutOfMemoryError
def crowded():
    return Crowded(**good().components)
"""


def test_your_own_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipeline that somebody else quantized comes in this way."""
    folder = pipeline_twin("StableDiffusionXLPipeline") / "pipeline"
    (tmp_path / "ready_made.py").write_text(MODULE.format(folder=str(folder)))
    monkeypatch.syspath_prepend(tmp_path)
    assert type(load_pipeline("ready_made:good")).__name__ == "StableDiffusionXLPipeline"
    with pytest.raises(ModelError, match="returned int; expected a DiffusionPipeline"):
        load_pipeline("ready_made:number")
    with pytest.raises(ModelError, match="has no 'missing'"):
        load_pipeline("ready_made:missing")
    with pytest.raises(ModelError, match=r"doesn't fit into the GPU's memory; set .*offload.*int8"):
        load_pipeline("ready_made:crowded")
    sys.modules.pop("ready_made")


@pytest.mark.parametrize("name", REAL)
def test_a_model_that_is_not_downloaded_says_so_offline(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = with_entry(Model.model_validate({"name": name}), STEPS[name])
    with pytest.raises(ModelError) as raised:
        load_model(model, execution=Execution(device="cpu"))
    words = str(raised.value)
    assert words.startswith(f"{MODELS[name].source} is not downloaded ({MODELS[name].download_gb}")
    assert "HF_HUB_OFFLINE is set" in words
    assert "\n" not in words


def test_a_repository_in_the_cache_needs_no_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The hub's own layout: what one machine downloaded, another may be given."""
    entry = MODELS["lcm-dreamshaper"]
    repository = tmp_path / f"models--{entry.source.replace('/', '--')}"
    snapshot = repository / "snapshots" / str(entry.revision)
    shutil.copytree(pipeline_twin(entry.pipeline or "") / "pipeline", snapshot)
    shutil.rmtree(snapshot / "safety_checker")  # it is not asked for
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    table = Model(name="lcm-dreamshaper")
    loaded = load_model(with_entry(table, 4), execution=Execution(device="cpu"))
    assert images(loaded.pipeline, "lcm-dreamshaper", 4).std() > 0.01
    elsewhere = with_entry(Model(name="lcm-dreamshaper", revision="0" * 40), 4)
    with pytest.raises(ModelError, match="is not downloaded"):
        load_model(elsewhere, execution=Execution(device="cpu"))


def test_a_lora_that_is_not_downloaded_or_not_there(tmp_path: Path) -> None:
    folder = pipeline_twin("StableDiffusionPipeline") / "pipeline"
    for lora, words in (
        (LoraTable(source="wangfuyun/PCM_Weights", file="sd15/x.safetensors"), "is not downloaded"),
        (LoraTable(source=str(tmp_path), file="x.safetensors"), "not in"),
    ):
        table = Model(name="pcm-sd15", source=str(folder), dtype="float32", lora=lora)
        with pytest.raises(ModelError, match=rf"model\.lora.*{words}"):
            load_model(with_entry(table, 4), execution=Execution(device="cpu"))
    (tmp_path / "x.safetensors").write_bytes(b"no tensors")
    table = Model(
        name="pcm-sd15",
        source=str(folder),
        dtype="float32",
        lora=LoraTable(source=str(tmp_path), file="x.safetensors"),
    )
    with pytest.raises(ModelError, match="can't be loaded"):
        load_model(with_entry(table, 4), execution=Execution(device="cpu"))


def http(kind: Callable[..., Exception], status: int) -> Exception:
    """As huggingface_hub raises it; whatever HTTP library it uses, only headers are read."""
    response = SimpleNamespace(headers={}, request=None, status_code=status)
    return kind(f"{status} Client Error", response=response)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (http(hub_errors.GatedRepoError, 403), "a/b is gated; accept its licence"),
        (http(hub_errors.RevisionNotFoundError, 404), "no such revision"),
        (http(hub_errors.RepositoryNotFoundError, 401), "neither a folder here nor a repository"),
        (http(hub_errors.RemoteEntryNotFoundError, 404), "no such file"),
        (http(hub_errors.HfHubHTTPError, 500), "the hub answers 500"),
        (ConnectionError("refused"), r"not downloaded \(7.0 GB\) and the hub can't be reached"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
)
def test_each_failure_of_the_hub_has_its_words(
    error: Exception, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    wrapped = OSError("diffusers wraps it")
    wrapped.__cause__ = error
    for shown in (error, wrapped):
        if shown is error or not isinstance(error, OSError) or "hub" in words or "a/b" in words:
            text = hub.explain(shown, "a/b", 7.0)
            assert "\n" not in text
    with pytest.raises(HubError, match=words):
        raise HubError(hub.explain(error, "a/b", 7.0))


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU says")
def test_what_needs_a_gpu_says_so() -> None:
    turbo = with_entry(Model(name="sdxl-turbo"), 4)
    for execution, words in (
        (Execution(), "sdxl-turbo needs a GPU with about 10 GB and torch finds none here"),
        (Execution(device="cuda:1"), "torch finds no GPU here"),
        (Execution(device="gpu"), "expected 'auto', 'cpu' or 'cuda:0'"),
        (Execution(device="cpu", offload="model"), "there is no GPU here; set it to 'none'"),
    ):
        with pytest.raises(ModelError, match=words):
            device_for(turbo, execution)
    assert device_for(twin("sdxl-turbo"), Execution()).type == "cpu"


def test_a_checkpoint_is_not_asked_for_steps_it_was_not_distilled_for() -> None:
    with pytest.raises(ConfigError, match=r"steps = 3; sdxl-turbo was trained for 1, 4 steps"):
        with_entry(Model(name="sdxl-turbo"), 3)
    assert with_entry(Model(name="sdxl-turbo", steps=(3,)), 3).steps == (3,)


def test_a_scheduler_of_ones_own() -> None:
    declared = {"class": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"}
    scheduler = load_model(twin("sdxl-base", scheduler=declared)).pipeline.scheduler
    assert type(scheduler).__name__ == "DPMSolverMultistepScheduler"
    assert scheduler.config.algorithm_type == "sde-dpmsolver++"
    assert scheduler.config.beta_end == 0.012  # the rest is as it came
    with pytest.raises(ModelError, match="'NoScheduler'; expected a scheduler of diffusers"):
        load_model(twin("sdxl-base", scheduler={"class": "NoScheduler"}))


def test_text_encoders_in_eight_bits_change_embeddings_a_little() -> None:
    plain, eight = (
        load_model(twin("flux-schnell")),
        load_model(twin("flux-schnell", text_encoders="int8")),
    )
    kinds = {type(layer).__name__ for layer in eight.pipeline.text_encoder_2.modules()}
    assert "Linear8bitLt" in kinds
    before, after = (images(loaded.pipeline, "flux-schnell", 4) for loaded in (plain, eight))
    assert not torch.equal(before, after)
    torch.testing.assert_close(before, after, atol=0.1, rtol=0)


def test_what_saves_memory_leaves_the_images_nearly_as_they_are() -> None:
    expected = images(load_model(twin("sdxl-turbo")).pipeline, "sdxl-turbo", 4)
    saved = load_model(
        twin("sdxl-turbo", vae_tiling=True, attention="native"),
        execution=Execution(vae_slicing=True),
    ).pipeline
    assert saved.vae.use_slicing
    assert saved.vae.use_tiling
    torch.testing.assert_close(images(saved, "sdxl-turbo", 4), expected, atol=1e-5, rtol=0)
    with pytest.raises(ModelError, match=r"model\.attention = 'no-such-kernel'"):
        load_model(twin("sdxl-turbo", attention="no-such-kernel"))


@pytest.mark.slow
def test_a_compiled_network_draws_the_same_and_can_be_intercepted() -> None:
    from qsched.pipelines.generator import ImageGenerator
    from qsched.prompts import Prompt
    from qsched.schedule.coefficients import Coefficients

    made = []
    for compiled in (False, True):
        pipeline = load_model(twin("flux-schnell", compile=compiled)).pipeline
        side = {"height": TWIN_SIDE, "width": TWIN_SIDE}
        sampling = sampling_of("flux-schnell", Sampling(steps=4)).model_copy(update=side)
        generator = ImageGenerator(pipeline, sampling, batch_size=2)
        generator.prepare([Prompt("a cat", 1)])
        for coefficients in (Coefficients.identity(4), Coefficients.ramp(4, 1.1, 0.9)):
            made.append(generator.generate([Prompt("a cat", 1)], coefficients))
        assert generator.network_calls == 7
    torch.testing.assert_close(made[:2], made[2:], atol=1e-4, rtol=0)


def test_quantization_is_what_the_table_says() -> None:
    loaded = load_model(
        twin("flux-schnell"), Quantization(scheme="w4a8", backend="simulated", skip=())
    )
    assert loaded.report is not None
    assert loaded.report.scheme.name == "w4a8"
    assert not loaded.report.left
    with pytest.raises(QuantizationError, match="matches no layer"):
        load_model(twin("flux-schnell"), Quantization(scheme="w4a8", skip=("nothing.*",)))


def test_weights_are_told_apart(tmp_path: Path) -> None:
    entry = MODELS["pcm-sd15"]
    assert entry.lora is not None
    at = catalog.weights_identity(entry.source, entry.revision, entry.lora)
    assert entry.source in at
    assert str(entry.revision) in at
    assert "pcm_sd15_smallcfg" in at
    shutil.copytree(pipeline_twin("FluxPipeline") / "pipeline", tmp_path / "a")
    before = catalog.weights_identity(str(tmp_path / "a"), None)
    file = tmp_path / "a" / "transformer" / "config.json"
    file.write_text(file.read_text() + " ")
    assert catalog.weights_identity(str(tmp_path / "a"), None) != before
