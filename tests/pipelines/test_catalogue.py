"""Every model of the catalogue on the tiny twin of its class: as plain diffusers, to the bit."""

import copy
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
import torch

from qsched.pipelines.catalog import MODELS, PIPELINES
from qsched.pipelines.effective import effective
from qsched.pipelines.generator import CACHES, ImageGenerator
from qsched.pipelines.table import Model, Sampling, sampling_of, with_entry
from qsched.prompts import Prompt
from qsched.schedule.coefficients import Coefficients
from tests.support.twin_pipelines import NO_CACHE, twin

ROOT = Path(__file__).parents[2]
CAPTIONS = ["a cat", "a dog in the rain at night", 'a sign that says "open"', "an owl"]
PROMPTS = [Prompt(caption, 7 * index) for index, caption in enumerate(CAPTIONS)]


def _one_of_each_twin() -> Iterator[tuple[str, int]]:
    """A model of each twin in two steps, and one whose call differs by its steps at each."""
    seen = set()
    for name, entry in MODELS.items():
        stands_for = entry.twin or entry.pipeline
        if entry.hints and entry.part == "transformer" and stands_for not in seen:
            seen.add(stands_for)
            yield from product([name], entry.steps if entry.call_at and entry.steps else [2])


ONE_OF_EACH_TWIN = list(_one_of_each_twin())


@pytest.mark.parametrize(("name", "steps"), ONE_OF_EACH_TWIN)
def test_its_images_are_the_plain_ones(name: str, steps: int) -> None:
    """In batches of 1, 2 and 4, or of one where the self-test says so; made, remembered, and with
    coefficients."""
    pipeline, how = twin(name, steps=steps)
    changed = Coefficients.constant(steps, 1.1, 0.93)
    prepared = ImageGenerator(copy.copy(pipeline), how, batch_size=4)
    prepared.prepare(PROMPTS)
    assert prepared.tested
    assert prepared.tested.caches == CACHES
    assert not prepared.tested.encoders_needed
    for size in (1, 2, 4) if prepared.batch_size == 4 else (1,):
        reference = ImageGenerator(pipeline, how, batch_size=size, caches=NO_CACHE)
        plain = [reference.plain(PROMPTS[at : at + size]) for at in range(0, 4, size)]
        generator = ImageGenerator(pipeline, how, batch_size=size)
        for _ in range(2):
            images = generator.generate(PROMPTS, Coefficients.identity(steps))
            assert torch.equal(images, torch.cat(plain))
        assert torch.equal(
            generator.generate(PROMPTS, changed), reference.generate(PROMPTS, changed)
        )
        assert len(images.unique(dim=0)) == 4


@pytest.mark.parametrize("name", dict(ONE_OF_EACH_TWIN))
def test_a_caption_shows_in_its_image(name: str) -> None:
    pipeline, how = twin(name, steps=2)
    generator = ImageGenerator(pipeline, how, batch_size=1, caches=NO_CACHE)
    one, other = (generator.plain([Prompt(caption, 3)]) for caption in CAPTIONS[:2])
    assert (one - other).abs().max() > 1e-3


def test_transparent_images_are_laid_on_white() -> None:
    pipeline, how = twin("qwen-image-2.1-lightning", steps=2)
    generator = ImageGenerator(pipeline, how, batch_size=1, caches=NO_CACHE)
    images = generator.generate(PROMPTS[:1], Coefficients.identity(2))
    noise = torch.Generator().manual_seed(PROMPTS[0].seed)
    drawn = pipeline(
        prompt=[CAPTIONS[0]], generator=[noise], output_type="pt", **how.arguments()
    ).images
    assert drawn.shape[1] == 4
    assert torch.equal(images, drawn[:, :3] * drawn[:, 3:] + (1 - drawn[:, 3:]))


def test_keys_and_values_that_a_pipeline_keeps_are_its_own() -> None:
    """What is passed to be filled makes every network call one that can't be kept."""
    pipeline, how = twin("qwen-image-2.1-lightning", steps=2, call={"use_kv_cache": True})
    generator = ImageGenerator(copy.copy(pipeline), how, batch_size=1)
    generator.prepare(PROMPTS[:2])
    plain = ImageGenerator(pipeline, how, batch_size=1).plain(PROMPTS[:1])
    for _ in range(2):
        assert torch.equal(generator.generate(PROMPTS[:1], Coefficients.identity(2)), plain)
    assert generator.network_calls == 4


@pytest.mark.parametrize(
    ("steps", "call", "none"),
    [
        (1, {}, ("intermediate_timesteps",)),
        (2, {"intermediate_timesteps": 1.3}, None),
        (4, {}, ("intermediate_timesteps",)),
    ],
)
def test_what_a_model_is_called_with_may_differ_by_its_steps(
    steps: int, call: dict[str, object], none: tuple[str, ...] | None
) -> None:
    filled = sampling_of("sana-sprint", Sampling(steps=steps))
    assert filled.call == {"use_resolution_binning": False, **call}
    assert filled.none == none
    assert sampling_of("sana-sprint", filled) == filled
    own = Sampling(steps=steps, call={"intermediate_timesteps": 1.1})
    assert sampling_of("sana-sprint", own).arguments()["intermediate_timesteps"] == 1.1


@pytest.mark.parametrize("name", [name for name, entry in MODELS.items() if entry.hints])
def test_its_guidance_is_said(name: str) -> None:
    """By whichever argument its pipeline takes it."""
    entry, settings = MODELS[name], Sampling(steps=(MODELS[name].steps or (4,))[0])
    drawn = effective(with_entry(Model(name=name), settings.steps), sampling_of(name, settings))
    assert entry.guidance
    assert drawn.guidance == entry.guidance[1]
    assert not drawn.guidance_open


def test_every_class_is_described() -> None:
    assert {entry.pipeline for entry in MODELS.values()} == PIPELINES.keys()


def test_every_model_and_its_licence_are_in_the_documentation() -> None:
    page = (ROOT / "docs" / "reference" / "models.md").read_text()
    licences = (ROOT / "THIRD_PARTY.md").read_text()
    for name, entry in MODELS.items():
        assert f"| `{name}` | `{entry.pipeline}`" in page
        assert entry.source in licences or name == "demo"
        assert entry.lora is None or entry.lora.source in licences
