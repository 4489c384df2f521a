"""Caches change the time, never the pixels; an image depends on its prompt and coefficients."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

import tiny
from qsched.coefficients import Coefficients
from qsched.errors import CoefficientsError, GenerationError
from qsched.generate import CACHES, ImageGenerator
from qsched.prompts import Prompt
from qsched.quantize import quantize
from qsched.schedule import coefficients_of
from qsched.sections import Sampling

CAPTIONS = ["a red owl", "blue fox", "cat", "dog on a log", "x", "y z", "moon"]
PROMPTS = [Prompt(caption, 11 * index + 3) for index, caption in enumerate(CAPTIONS)]
RAMP = Coefficients.ramp(4, 1.1, 0.93)
NO_CACHE: frozenset[str] = frozenset()
SD3 = Sampling(
    steps=4, guidance_scale=0.0, height=16, width=16,
    sigmas=(1.0, 0.75, 0.5, 0.25), call={"max_sequence_length": 0},
)  # fmt: skip
GUIDED = SD3.model_copy(update={"guidance_scale": 3.0})
LCM = Sampling(steps=4, guidance_scale=8.0, height=16, width=16)

CASES: dict[str, tuple[Callable[[Path], DiffusionPipeline], Sampling]] = {
    "sd3": (tiny.sd3, SD3),
    "sd3 with classifier-free guidance": (tiny.sd3, GUIDED),
    "lcm, which injects noise": (tiny.lcm, LCM),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[DiffusionPipeline, Sampling]:
    make, sampling = CASES[request.param]
    return make(tmp_path), sampling


def plain(pipeline: DiffusionPipeline, sampling: Sampling, prompts: list[Prompt]) -> torch.Tensor:
    """What a person without qsched would call."""
    images: torch.Tensor = pipeline(
        prompt=[prompt.text for prompt in prompts],
        generator=[torch.Generator().manual_seed(prompt.seed) for prompt in prompts],
        output_type="pt",
        **sampling.arguments(),
    ).images
    return images


@pytest.mark.parametrize("caches", [NO_CACHE, *(frozenset({name}) for name in CACHES), CACHES])
def test_cached_equals_uncached_equals_plain(
    case: tuple[DiffusionPipeline, Sampling], caches: frozenset[str]
) -> None:
    pipeline, sampling = case
    expected = plain(pipeline, sampling, PROMPTS[:4])
    generator = ImageGenerator(pipeline, sampling, batch_size=4, caches=caches)
    generator.generate(PROMPTS[:4], RAMP)
    for _ in range(2):
        assert torch.equal(generator.generate(PROMPTS[:4], Coefficients.identity(4)), expected)
    assert expected.std() > 0.01  # not one flat colour


def test_coefficients_change_images_alike_with_and_without_caches(
    case: tuple[DiffusionPipeline, Sampling],
) -> None:
    pipeline, sampling = case
    uncached = ImageGenerator(pipeline, sampling, batch_size=4, caches=NO_CACHE)
    cached = ImageGenerator(pipeline, sampling, batch_size=4)
    cached.generate(PROMPTS, Coefficients.identity(4))
    expected = uncached.generate(PROMPTS, RAMP)
    assert torch.equal(cached.generate(PROMPTS, RAMP), expected)
    assert not torch.equal(uncached.generate(PROMPTS, Coefficients.identity(4)), expected)


def test_an_image_depends_on_neither_order_nor_neighbours(
    case: tuple[DiffusionPipeline, Sampling],
) -> None:
    pipeline, sampling = case
    expected = ImageGenerator(pipeline, sampling, batch_size=4, caches=NO_CACHE).generate(
        PROMPTS, RAMP
    )
    for caches in (NO_CACHE, CACHES):
        generator = ImageGenerator(pipeline, sampling, batch_size=4, caches=caches)
        for order in ([6, 5, 4, 3, 2, 1, 0], [2, 4], [5, 0, 6, 1, 3, 4, 2]):
            images = generator.generate([PROMPTS[index] for index in order], RAMP)
            assert torch.equal(images, expected[order])


def test_a_quantized_network_keeps_images_apart(tmp_path: Path) -> None:
    pipeline = tiny.sd3(tmp_path)
    quantize(pipeline.transformer, "w4a4")
    generator = ImageGenerator(pipeline, SD3, batch_size=4)
    together = generator.generate(PROMPTS[:4], RAMP)
    assert torch.equal(generator.generate([PROMPTS[2]], RAMP), together[2:3])


def test_a_trial_costs_one_network_call_less_per_batch(
    case: tuple[DiffusionPipeline, Sampling],
) -> None:
    pipeline, sampling = case
    generator = ImageGenerator(pipeline, sampling, batch_size=4)
    generator.generate(PROMPTS[:4], RAMP)
    assert generator.network_calls == 4
    generator.generate(PROMPTS[:4], Coefficients.identity(4))
    assert generator.network_calls == 4 + 3
    assert generator.images == 8


@pytest.mark.parametrize("steps", [1, 2])
def test_one_step_needs_no_network_call_at_all_the_second_time(steps: int, tmp_path: Path) -> None:
    sampling = SD3.model_copy(update={"steps": steps, "sigmas": (1.0, 0.5)[:steps]})
    generator = ImageGenerator(tiny.sd3(tmp_path), sampling, batch_size=4)
    first = generator.generate(PROMPTS[:4], Coefficients.constant(steps, 1.2, 1.0))
    before = generator.network_calls
    second = generator.generate(PROMPTS[:4], Coefficients.constant(steps, 0.8, 1.0))
    assert generator.network_calls - before == steps - 1
    assert not torch.equal(first, second)


def test_the_cache_is_keyed_by_what_enters_the_denoiser(tmp_path: Path) -> None:
    """Another prompt or seed, or another embedding of the same prompt, is another entry."""
    pipeline = tiny.sd3(tmp_path)
    generator = ImageGenerator(pipeline, SD3, batch_size=1, caches=frozenset({"first-call"}))
    identity = Coefficients.identity(4)
    generator.generate([Prompt("cat", 1)], identity)
    for other in (Prompt("cat", 2), Prompt("dog", 1)):
        before = generator.network_calls
        generator.generate([other], identity)
        assert generator.network_calls - before == 4
    with torch.no_grad():
        pipeline.text_encoder.get_input_embeddings().weight.add_(0.5)
    before = generator.network_calls
    images = generator.generate([Prompt("cat", 1)], identity)
    assert generator.network_calls - before == 4
    assert torch.equal(images, plain(pipeline, SD3, [Prompt("cat", 1)]))


def test_the_pipeline_is_left_as_it_was(case: tuple[DiffusionPipeline, Sampling]) -> None:
    pipeline, sampling = case
    scheduler = pipeline.scheduler
    expected = plain(pipeline, sampling, PROMPTS[:2])
    ImageGenerator(pipeline, sampling, batch_size=2).generate(PROMPTS[:2], RAMP)
    assert pipeline.scheduler is scheduler
    assert coefficients_of(pipeline.scheduler) is None
    network = getattr(pipeline, "transformer", None) or pipeline.unet
    assert "forward" not in vars(network)
    assert not {"encode_prompt", "prepare_latents"} & vars(pipeline).keys()
    assert torch.equal(plain(pipeline, sampling, PROMPTS[:2]), expected)


def test_a_failing_call_leaves_the_pipeline_as_it_was(tmp_path: Path) -> None:
    pipeline = tiny.sd3(tmp_path)
    broken = SD3.model_copy(update={"call": {"no_such_argument": 1}})
    with pytest.raises(TypeError):
        ImageGenerator(pipeline, broken, batch_size=2).generate(PROMPTS[:2], RAMP)
    assert "forward" not in vars(pipeline.transformer)
    assert coefficients_of(pipeline.scheduler) is None


def test_wrong_number_of_steps(tmp_path: Path) -> None:
    generator = ImageGenerator(tiny.sd3(tmp_path), SD3, batch_size=2)
    with pytest.raises(CoefficientsError, match="2 steps"):
        generator.generate(PROMPTS[:2], Coefficients.identity(2))


def test_an_image_that_is_not_finite_names_its_prompt(tmp_path: Path) -> None:
    pipeline = tiny.sd3(tmp_path)
    prepare = pipeline.prepare_latents

    def spoilt(*args: object, **kwargs: object) -> torch.Tensor:
        latents: torch.Tensor = prepare(*args, **kwargs)
        latents[1] = float("nan")
        return latents

    pipeline.prepare_latents = spoilt
    with pytest.raises(GenerationError, match="blue fox"):
        ImageGenerator(pipeline, SD3, batch_size=4).generate(PROMPTS[:4], RAMP)
