"""Caches change the time, never the pixels; an image depends on its prompt and coefficients.

On tiny twins of every pipeline class that the catalog knows, with its own scheduler, guidance and
LoRA. Equal means equal to the bit: the stated tolerance is zero.
"""

import gc
import logging
import weakref
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    LCMScheduler,
    TCDScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from qsched.errors import CoefficientsError, GenerationError
from qsched.pipelines.generator import CACHES, ImageGenerator
from qsched.pipelines.loading import denoiser
from qsched.pipelines.self_test import SelfTest
from qsched.pipelines.table import Sampling
from qsched.prompts import Prompt
from qsched.quantization.table import Quantization
from qsched.schedule.coefficients import Coefficients
from qsched.schedule.preconditioning import coefficients_of, precondition
from tests.support.twin_pipelines import CASES, NO_CACHE, PROMPTS, Case, twin


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    name, sampling = CASES[request.param]
    return twin(name, **sampling)


def plain(pipeline: DiffusionPipeline, sampling: Sampling, prompts: list[Prompt]) -> torch.Tensor:
    """What a person without qsched would call."""
    images: torch.Tensor = pipeline(
        prompt=[prompt.text for prompt in prompts],
        generator=[torch.Generator().manual_seed(prompt.seed) for prompt in prompts],
        output_type="pt",
        **sampling.arguments(),
    ).images
    return images


def ramp(sampling: Sampling) -> Coefficients:
    """Coefficients that change every image, in one step too."""
    return Coefficients.constant(sampling.steps, 1.1, 0.93)


@pytest.mark.parametrize("caches", [NO_CACHE, CACHES])
def test_cached_equals_uncached_equals_plain(case: Case, caches: frozenset[str]) -> None:
    _assert_equals_plain(case, caches)


@pytest.mark.parametrize("cache", sorted(CACHES))
@pytest.mark.parametrize("name", ["sdxl-turbo", "lcm-dreamshaper", "flux-schnell"])
def test_each_cache_by_itself_changes_no_pixel(name: str, cache: str) -> None:
    _assert_equals_plain(twin(name, steps=4), frozenset({cache}))


def _assert_equals_plain(case: Case, caches: frozenset[str]) -> None:
    pipeline, sampling = case
    identity = Coefficients.identity(sampling.steps)
    expected = plain(pipeline, sampling, PROMPTS[:4])
    generator = ImageGenerator(pipeline, sampling, batch_size=4, caches=caches)
    generator.generate(PROMPTS[:4], ramp(sampling))
    for _ in range(2):
        assert torch.equal(generator.generate(PROMPTS[:4], identity), expected)
    assert expected.std() > 0.01  # not one flat colour


def test_coefficients_change_images_alike_with_and_without_caches(
    case: Case,
) -> None:
    pipeline, sampling = case
    uncached = ImageGenerator(pipeline, sampling, batch_size=4, caches=NO_CACHE)
    cached = ImageGenerator(pipeline, sampling, batch_size=4)
    identity = Coefficients.identity(sampling.steps)
    cached.generate(PROMPTS, identity)
    expected = uncached.generate(PROMPTS, ramp(sampling))
    assert torch.equal(cached.generate(PROMPTS, ramp(sampling)), expected)
    assert not torch.equal(
        uncached.generate(PROMPTS, Coefficients.identity(sampling.steps)), expected
    )


def test_an_image_depends_on_neither_order_nor_neighbours(
    case: Case,
) -> None:
    pipeline, sampling = case
    expected = ImageGenerator(pipeline, sampling, batch_size=4, caches=NO_CACHE).generate(
        PROMPTS, ramp(sampling)
    )
    for caches in (NO_CACHE, CACHES):
        generator = ImageGenerator(pipeline, sampling, batch_size=4, caches=caches)
        for order in ([6, 5, 4, 3, 2, 1, 0], [2, 4], [5, 0, 6, 1, 3, 4, 2]):
            images = generator.generate([PROMPTS[index] for index in order], ramp(sampling))
            assert torch.equal(images, expected[order])


@pytest.mark.parametrize(
    ("name", "scheme", "backend"),
    [
        ("demo", "w4a4", "simulated"),
        ("sdxl-turbo", "w4a8", "simulated"),
        ("flux-schnell", "w8a8", "simulated"),
        ("flux-schnell", "nf4", "bitsandbytes"),
        ("pcm-sd15", "w8a8", "torchao"),
        ("lcm-dreamshaper", "w4a8", "torchao"),
    ],
)
def test_a_quantized_network_keeps_images_apart(name: str, scheme: str, backend: str) -> None:
    how = Quantization(scheme=scheme, backend=backend)
    pipeline, sampling = twin(name, how, steps=4)
    generator = ImageGenerator(pipeline, sampling, batch_size=4)
    together = generator.generate(PROMPTS[:4], ramp(sampling))
    assert torch.equal(generator.generate([PROMPTS[2]], ramp(sampling)), together[2:3])
    assert not torch.equal(together[:1], together[2:3])


def test_a_trial_costs_one_network_call_less_per_batch(case: Case) -> None:
    pipeline, sampling = case
    steps = sampling.steps
    generator = ImageGenerator(pipeline, sampling, batch_size=4)
    generator.generate(PROMPTS[:4], ramp(sampling))
    assert generator.network_calls == steps
    generator.generate(PROMPTS[:4], Coefficients.identity(steps))
    assert generator.network_calls == steps + (steps - 1)
    assert generator.images == 8


def test_the_cache_is_keyed_by_what_enters_the_denoiser() -> None:
    """Another prompt or seed, or another embedding of the same prompt, is another entry."""
    pipeline, sampling = twin("demo", steps=4)
    generator = ImageGenerator(pipeline, sampling, batch_size=1, caches=frozenset({"first-call"}))
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
    assert torch.equal(images, plain(pipeline, sampling, [Prompt("cat", 1)]))


def test_the_pipeline_is_left_as_it_was(case: Case) -> None:
    pipeline, sampling = case
    scheduler = pipeline.scheduler
    expected = plain(pipeline, sampling, PROMPTS[:2])
    ImageGenerator(pipeline, sampling, batch_size=2).generate(PROMPTS[:2], ramp(sampling))
    assert pipeline.scheduler is scheduler
    assert coefficients_of(pipeline.scheduler) is None
    assert "forward" not in vars(denoiser(pipeline))
    assert not {"encode_prompt", "prepare_latents"} & vars(pipeline).keys()
    assert torch.equal(plain(pipeline, sampling, PROMPTS[:2]), expected)


def text_encoders(pipeline: DiffusionPipeline) -> list[torch.nn.Module]:
    return [
        part
        for name, part in pipeline.components.items()
        if name.startswith("text_encoder") and part is not None
    ]


def test_prepared_prompts_need_no_text_encoder_any_more(case: Case) -> None:
    """Their memory is really free, and the images are those of the whole pipeline."""
    pipeline, sampling = case
    expected = plain(pipeline, sampling, PROMPTS[:4])
    encoders = [weakref.ref(encoder) for encoder in text_encoders(pipeline)]
    weights = [
        weakref.ref(weight)
        for encoder in text_encoders(pipeline)
        for weight in encoder.parameters()
    ]
    assert len(weights) > 10
    generator = ImageGenerator(pipeline, sampling, batch_size=4)
    generator.prepare(PROMPTS[:4])
    assert generator.network_calls == 0
    gc.collect()
    assert {encoder() for encoder in encoders} == {None}
    assert {weight() for weight in weights} == {None}
    assert torch.equal(
        generator.generate(PROMPTS[:4], Coefficients.identity(sampling.steps)), expected
    )
    with pytest.raises(GenerationError, match="freed before 'moon' was encoded"):
        generator.generate(PROMPTS[-1:], ramp(sampling))


@pytest.mark.parametrize(
    ("name", "limit"), [("sdxl-turbo", 77), ("flux-schnell", 256), ("pcm-sd15", 77)]
)
def test_a_prompt_that_the_text_encoder_cuts_is_named(
    name: str, limit: int, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline, sampling = twin(name, steps=4)
    fits, long = Prompt("a" * (limit - 2), 1), Prompt("b" * (limit + 1), 2)
    with caplog.at_level(logging.WARNING, logger="qsched"):
        ImageGenerator(pipeline, sampling, batch_size=2).prepare([fits, long])
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("qsched")]
    assert len(ours) == 1
    assert f"reads {limit}, the rest is cut" in ours[0]
    assert "'bbb" in ours[0]


def test_a_failing_call_leaves_the_pipeline_as_it_was() -> None:
    pipeline, sampling = twin("demo", steps=4)
    broken = sampling.model_copy(update={"call": {"max_sequence_length": 9999}})
    words = r"^StableDiffusion3Pipeline: ValueError.*; change sampling\.call\.max_sequence_length; "
    with pytest.raises(GenerationError, match=words):
        ImageGenerator(pipeline, broken, batch_size=2).generate(PROMPTS[:2], ramp(sampling))
    assert "forward" not in vars(pipeline.transformer)
    assert coefficients_of(pipeline.scheduler) is None


def test_wrong_number_of_steps() -> None:
    pipeline, sampling = twin("demo", steps=4)
    with pytest.raises(CoefficientsError, match="2 steps"):
        ImageGenerator(pipeline, sampling).generate(PROMPTS[:2], Coefficients.identity(2))


def test_an_image_that_is_not_finite_names_its_prompt() -> None:
    pipeline, sampling = twin("demo", steps=4)
    prepare = pipeline.prepare_latents

    def spoilt(*args: object, **kwargs: object) -> torch.Tensor:
        latents: torch.Tensor = prepare(*args, **kwargs)
        latents[1] = float("nan")
        return latents

    pipeline.prepare_latents = spoilt
    with pytest.raises(GenerationError, match=r"blue fox.*not finite"):
        ImageGenerator(pipeline, sampling, batch_size=4).generate(PROMPTS[:4], ramp(sampling))


def test_a_black_image_fails_by_name() -> None:
    """As a safety checker makes them, or a decoder that overflows in half precision."""
    pipeline, sampling = twin("pcm-sd15", steps=2)
    with torch.no_grad():
        for parameter in (pipeline.vae.decoder.conv_out.weight, pipeline.vae.decoder.conv_out.bias):
            parameter.zero_()
        pipeline.vae.decoder.conv_out.bias.fill_(-1.5)
    with pytest.raises(GenerationError, match=r"'a red owl' \(seed 3\) is black all over"):
        ImageGenerator(pipeline, sampling, batch_size=2).generate(PROMPTS[:2], ramp(sampling))


# Images with coefficients of their own.


def own(steps: int, count: int) -> list[Coefficients]:
    """Three sets of coefficients by turns."""
    sets = [Coefficients.constant(steps, *pair) for pair in ((1.0, 1.0), (1.1, 0.93), (0.95, 1.04))]
    return [sets[k % 3] for k in range(count)]


def alone(
    generator: ImageGenerator, prompts: Sequence[Prompt], coefficients: Sequence[Coefficients]
) -> Tensor:
    """Each image of a batch whose images have all the same coefficients as it."""
    made = {each: generator.generate(prompts, each) for each in set(coefficients)}
    images = torch.stack([made[each][k] for k, each in enumerate(coefficients)])
    assert len({images[k].sum().item() for k in range(len(images))}) == len(images)
    return images


def test_images_of_other_coefficients_in_a_batch_change_none(case: Case) -> None:
    """Padded, in any order, cached and not."""
    pipeline, sampling = case
    coefficients = own(sampling.steps, len(PROMPTS))
    expected = alone(
        ImageGenerator(pipeline, sampling, batch_size=4, caches=NO_CACHE), PROMPTS, coefficients
    )
    for caches in (NO_CACHE, CACHES):
        generator = ImageGenerator(pipeline, sampling, batch_size=4, caches=caches)
        for order in ([0, 1, 2, 3, 4, 5, 6], [5, 0, 6, 1, 3], [0, 1, 2, 3, 4, 5, 6]):
            images = generator.generate(
                [PROMPTS[k] for k in order], [coefficients[k] for k in order]
            )
            assert torch.equal(images, expected[order])


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize(
    "scheduler",
    [
        LCMScheduler(),
        TCDScheduler(),
        EulerAncestralDiscreteScheduler(timestep_spacing="trailing"),
        DPMSolverMultistepScheduler(final_sigmas_type="zero"),
        UniPCMultistepScheduler(),
        DDIMScheduler(clip_sample=False),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_with_each_kind_of_scheduler_under_guidance(scheduler: Any, steps: int) -> None:
    """The rows of a step are images, those of the network twice as many; averages too."""
    pipeline, sampling = twin("pcm-sd15", steps=steps, guidance_scale=7.5)
    pipeline.scheduler = scheduler
    identity = Coefficients.identity(steps)
    average = identity.averaged([1 / steps] * steps)
    coefficients = [average, Coefficients.constant(steps, 1.1, 0.93), identity]
    expected = alone(
        ImageGenerator(pipeline, sampling, batch_size=4, caches=NO_CACHE), PROMPTS[:3], coefficients
    )
    generator = ImageGenerator(pipeline, sampling, batch_size=4)
    for _ in range(2):
        assert torch.equal(generator.generate(PROMPTS[:3], coefficients), expected)


@pytest.mark.parametrize("name", ["flux-schnell", "sdxl-turbo"])
def test_in_sixteen_bits_too(name: str) -> None:
    pipeline, sampling = twin(name, steps=2)
    pipeline.to(torch.bfloat16)
    generator = ImageGenerator(pipeline, sampling, batch_size=4)
    coefficients = [Coefficients.constant(2, *pair) for pair in ((1.003, 1.0), (1.0, 1.0))]
    images = generator.generate(PROMPTS[:2], coefficients)
    assert torch.equal(images, alone(generator, PROMPTS[:2], coefficients))


def test_averages_of_their_own_cost_no_network_call_the_second_time() -> None:
    pipeline, sampling = twin("flux-schnell", steps=4)
    ways = own(4, len(PROMPTS))
    weights = [(0.25, 0.25, 0.25, 0.25), (), (0.0, 0.0, 0.5, 0.5)]
    averaged = [each.averaged(weights[k // 3]) for k, each in enumerate(ways)]
    uncached = ImageGenerator(pipeline, sampling, batch_size=4, caches=NO_CACHE)
    generator = ImageGenerator(pipeline, sampling, batch_size=4)
    for coefficients in (ways, ways, averaged, ways[::-1], averaged):
        expected = alone(uncached, PROMPTS, coefficients)
        assert torch.equal(generator.generate(PROMPTS, coefficients), expected)
    batches, calls = 2, generator.network_calls
    generator.generate(PROMPTS, ways)
    assert generator.network_calls == calls
    generator.generate(PROMPTS, ramp(sampling))  # one of the ways, with images that did not go it
    assert generator.network_calls == calls + 3 * batches
    other = Coefficients.constant(4, 1.2, 0.8)
    generator.generate(PROMPTS, [other, *ways[1:]])
    generator.generate(PROMPTS, ways)
    assert torch.equal(generator.generate(PROMPTS, averaged), alone(uncached, PROMPTS, averaged))


def test_trials_share_the_network_calls_of_a_batch() -> None:
    pipeline, sampling = twin("demo", steps=4)
    generator = ImageGenerator(pipeline, sampling, batch_size=6)
    generator.prepare(PROMPTS)
    assert generator.tested
    assert generator.tested.mixed
    generator.generate(PROMPTS[:6], own(4, 6))
    assert (generator.network_calls, generator.images) == (4, 6)


def test_where_they_may_not_share_a_batch_they_go_one_after_the_other() -> None:
    pipeline, sampling = twin("demo", steps=4)
    known = SelfTest(CACHES, True, True, False, False, ("batches of several coefficients (why)",))
    generator = ImageGenerator(pipeline, sampling, batch_size=4)
    generator.prepare(PROMPTS, known)
    coefficients = own(4, len(PROMPTS))
    uncached = ImageGenerator(twin("demo", steps=4)[0], sampling, batch_size=4, caches=NO_CACHE)
    images = generator.generate(PROMPTS, coefficients)
    assert generator.network_calls == 3 * 4
    assert torch.equal(images, alone(uncached, PROMPTS, coefficients))
    latents = generator.final_latents(PROMPTS, coefficients)
    assert generator.network_calls == 3 * 4 + 3 * 3
    assert torch.equal(latents, uncached.final_latents(PROMPTS, coefficients))


@pytest.mark.parametrize(
    ("coefficients", "words"),
    [
        (own(4, 3), "3 coefficients for 2 prompts; expected one for each prompt, or one for all"),
        ([Coefficients.identity(4), Coefficients.identity(2)], "for 2 steps"),
    ],
)
def test_coefficients_that_do_not_fit_the_prompts(
    coefficients: list[Coefficients], words: str
) -> None:
    generator = ImageGenerator(*twin("demo", steps=4))
    for draw in (generator.generate, generator.final_latents):
        with pytest.raises(CoefficientsError, match=words):
            draw(PROMPTS[:2], coefficients)


# Final latents.


def undecoded(
    pipeline: DiffusionPipeline,
    sampling: Sampling,
    prompts: Sequence[Prompt],
    coefficients: Coefficients,
) -> Tensor:
    """What the pipeline itself returns where it is asked not to decode."""
    stock = pipeline.scheduler
    pipeline.scheduler = precondition(stock, coefficients)
    latents: Tensor = pipeline(
        prompt=[prompt.text for prompt in prompts],
        generator=[torch.Generator().manual_seed(prompt.seed) for prompt in prompts],
        output_type="latent",
        **sampling.arguments(),
    ).images
    pipeline.scheduler = stock
    return latents


def test_final_latents_are_what_the_pipeline_would_decode(case: Case) -> None:
    """Nothing is decoded, the pipeline is left as it was, an average is in them."""
    pipeline, sampling = case
    steps = sampling.steps
    average = ramp(sampling).averaged([1 / steps] * steps)
    coefficients = [Coefficients.identity(steps), ramp(sampling), average, average]
    expected = torch.stack(
        [undecoded(pipeline, sampling, PROMPTS[:4], c)[k] for k, c in enumerate(coefficients)]
    )
    scheduler, pipeline.vae.decode = pipeline.scheduler, None  # it would be an error
    for caches in (NO_CACHE, CACHES):
        generator = ImageGenerator(pipeline, sampling, batch_size=4, caches=caches)
        for _ in range(2):
            latents = generator.final_latents(PROMPTS[:4], coefficients)
            assert latents.dtype == torch.float32
            assert torch.equal(latents, expected)
        assert torch.equal(generator.final_latents(PROMPTS[:2], ramp(sampling))[1], expected[1])
        assert generator.images == 0
    assert not torch.equal(
        expected[1], undecoded(pipeline, sampling, PROMPTS[:4], coefficients[0])[1]
    )
    assert pipeline.scheduler is scheduler
    assert "forward" not in vars(denoiser(pipeline))


def test_final_latents_and_images_share_the_caches() -> None:
    pipeline, sampling = twin("sdxl-turbo", steps=4)
    generator = ImageGenerator(pipeline, sampling, batch_size=4)
    latents = generator.final_latents(PROMPTS, own(4, len(PROMPTS)))
    assert generator.network_calls == 2 * 4
    expected = ImageGenerator(pipeline, sampling, batch_size=4, caches=NO_CACHE)
    images = generator.generate(PROMPTS, own(4, len(PROMPTS)))
    assert generator.network_calls == 2 * 4 + 2 * 3
    assert torch.equal(images, expected.generate(PROMPTS, own(4, len(PROMPTS))))
    assert torch.equal(generator.final_latents(PROMPTS, own(4, len(PROMPTS))), latents)
    assert generator.network_calls == 2 * 4 + 2 * 3


def test_final_latents_in_sixteen_bits_come_as_float32() -> None:
    pipeline, sampling = twin("flux-schnell", steps=2)
    pipeline.to(torch.bfloat16)
    latents = ImageGenerator(pipeline, sampling, batch_size=4).final_latents(
        PROMPTS[:2], ramp(sampling)
    )
    assert latents.dtype == torch.float32
    assert torch.equal(latents, latents.bfloat16().float())


def test_final_latents_that_are_not_finite_name_their_prompt() -> None:
    pipeline, sampling = twin("demo", steps=2)
    forward = pipeline.transformer.forward

    def spoilt(*args: Any, **kwargs: Any) -> tuple[Tensor]:
        output: Tensor = forward(*args, **kwargs)[0]
        output[1] = float("nan")
        return (output,)

    pipeline.transformer.forward = spoilt
    words = r"the final latent of 'blue fox' \(seed 14\) is not finite; try model\.dtype"
    with pytest.raises(GenerationError, match=words):
        ImageGenerator(pipeline, sampling, batch_size=4).final_latents(PROMPTS[:3], ramp(sampling))
