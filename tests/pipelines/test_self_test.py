"""What differs from plain calls is switched off; what can't be right is refused.

On pipelines of every awkward kind, and on fakes with one fault each.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, FlowMatchLCMScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from qsched.errors import GenerationError, ModelError, ScheduleError
from qsched.pipelines.generator import CACHES, ImageGenerator
from qsched.pipelines.self_test import ORDER, SelfTest, self_test
from qsched.pipelines.table import Sampling
from qsched.prompts import Prompt
from qsched.schedule.coefficients import Coefficients
from tests.support.twin_pipelines import twin
from tests.support.unusual_pipelines import qwen_image, z_image

PROMPTS = [
    Prompt(caption, 7 * index)
    for index, caption in enumerate(["a cat", "a dog in the rain at night", "an owl", "a hen"])
]
IDENTITY = Coefficients.identity(2)


def sampling(guidance: float | None = None, **call: object) -> Sampling:
    return Sampling(steps=2, height=32, width=32, guidance_scale=guidance, call=call)


AWKWARD: dict[str, tuple[Callable[[], DiffusionPipeline], Sampling]] = {
    "Qwen: padded to the longest, masks by chance": (qwen_image, sampling(true_cfg_scale=1.0)),
    "Qwen, true CFG": (qwen_image, sampling(true_cfg_scale=3.0, negative_prompt="ugly")),
    "Z-Image: lists": (z_image, sampling(0.0)),
    "Z-Image, guidance": (z_image, sampling(3.0, negative_prompt="bad")),
    "FLUX, true CFG": (
        lambda: twin("flux-schnell", steps=2)[0],
        sampling(1.0, true_cfg_scale=3.0, negative_prompt="ugly"),
    ),
}


@pytest.mark.parametrize("batch_size", [1, 2, 4])
@pytest.mark.parametrize("name", AWKWARD)
def test_images_of_awkward_pipelines_are_the_plain_ones(name: str, batch_size: int) -> None:
    """By image, in any order, cached and not, without the text encoders."""
    make, how = AWKWARD[name]
    reference = ImageGenerator(make(), how, batch_size=1, caches=frozenset())
    expected = torch.cat([reference.plain([prompt]) for prompt in PROMPTS])
    changed = reference.generate(PROMPTS, Coefficients.ramp(2, 1.1, 0.9))
    generator = ImageGenerator(make(), how, batch_size=batch_size)
    generator.prepare(PROMPTS)
    rounding = 0.0 if generator.batch_size == 1 else 2e-6  # other kernels than of a plain batch
    for order in ([0, 1, 2, 3], [0, 1, 2, 3], [3, 1, 0, 2]):
        images = generator.generate([PROMPTS[index] for index in order], IDENTITY)
        torch.testing.assert_close(images, expected[order], rtol=0, atol=rounding)
    images = generator.generate(PROMPTS, Coefficients.ramp(2, 1.1, 0.9))
    torch.testing.assert_close(images, changed, rtol=0, atol=rounding)
    assert generator.tested
    assert generator.tested.caches == CACHES
    assert not generator.tested.encoders_needed
    assert (expected[0] - expected[1]).abs().max() > 0.1


def test_a_negative_prompt_guides() -> None:
    make, how = AWKWARD["FLUX, true CFG"]
    other = how.model_copy(update={"call": {**how.call, "negative_prompt": "a cat"}})
    images = []
    for each in (how, other):
        generator = ImageGenerator(make(), each, batch_size=2)
        generator.prepare(PROMPTS)
        images.append(generator.generate(PROMPTS, IDENTITY))
    assert not torch.equal(*images)


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize(
    "scheduler",
    [FlowMatchLCMScheduler(), FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)],
)
def test_a_scheduler_without_a_generator_draws_from_the_images_own(
    scheduler: SchedulerMixin, batch_size: int
) -> None:
    """FluxPipeline passes none; a plain call's noise is any."""
    pipeline, how = twin("flux-schnell", steps=4)
    pipeline.scheduler = scheduler
    generator = ImageGenerator(pipeline, how, batch_size=batch_size)
    assert not torch.equal(generator.plain(PROMPTS[:1]), generator.plain(PROMPTS[:1]))
    generator.prepare(PROMPTS)
    assert generator.tested
    assert generator.tested.own_noise
    identity = Coefficients.identity(4)
    images = generator.generate(PROMPTS, identity)
    assert torch.equal(generator.generate(PROMPTS[::-1], identity).flip(0), images)


def test_a_pipeline_that_draws_numbers_of_its_own_is_refused() -> None:
    pipeline, how = twin("demo", steps=2)
    decode = pipeline.vae.decode

    def noisy(latents: Tensor, *args: object, **kwargs: object) -> object:
        return decode(latents + torch.randn_like(latents), *args, **kwargs)

    pipeline.vae.decode = noisy
    with pytest.raises(GenerationError, match="two plain calls with the same seeds differ by"):
        ImageGenerator(pipeline, how, batch_size=2).prepare(PROMPTS)


def test_a_network_that_remembers_loses_the_cache_of_its_first_call() -> None:
    """As one that keeps keys and values from its first call for the later ones."""
    pipeline, how = twin("demo", steps=2)
    network = pipeline.transformer
    seen: list[Tensor] = []
    forward = network.forward

    def remembers(hidden_states: Tensor, timestep: Tensor, **kwargs: object) -> tuple[Tensor]:
        if timestep[0] > 900:
            seen[:] = [hidden_states]
        return (forward(hidden_states, timestep=timestep, **kwargs)[0] + seen[0],)

    network.forward = remembers
    levels = [Coefficients.constant(2, level, 1.0) for level in (1.0, 1.1)]
    uncached = ImageGenerator(pipeline, how, batch_size=2, caches=frozenset())
    expected = [uncached.generate(PROMPTS, level) for level in levels]
    generator = ImageGenerator(pipeline, how, batch_size=2)
    generator.prepare(PROMPTS)
    assert generator.tested
    assert generator.tested.off == ("cache of later-calls", "cache of first-call")
    for level, images in zip(levels, expected, strict=True):
        assert torch.equal(generator.generate(PROMPTS, level), images)


class Fake:
    """'Images' of a seed and c_eps, with one fault."""

    def __init__(self, batch_size: int, caches: frozenset[str], fault: str) -> None:
        self.batch_size, self.caches, self.fault = batch_size, caches, fault

    def plain(self, prompts: Sequence[Prompt]) -> Tensor:
        return self.generate(prompts, IDENTITY, plain=True)

    def generate(
        self,
        prompts: Sequence[Prompt],
        coefficients: Coefficients | Sequence[Coefficients],
        *,
        plain: bool = False,
    ) -> Tensor:
        alike = isinstance(coefficients, Coefficients)
        each = [coefficients] if isinstance(coefficients, Coefficients) else coefficients
        level = torch.tensor([1.0 if self.fault == "coefficients" else c.model[0] for c in each])
        values = torch.tensor([(1 + prompt.seed) / 100 for prompt in prompts]) * level
        if self.fault == "own coefficients" and not alike:
            values = values + 1e-6
        if self.fault == "failing" and not alike:
            raise ScheduleError("a sample of (1, 2, 4); expected 2 rows")
        if self.fault in self.caches or (self.fault == "plain" and plain):
            values = values + 1e-6
        if self.fault == "neighbours" and self.batch_size > 1:
            values = values + 1e-6 * values.max()
        if self.fault == "range":
            values = values + 1.0
        return values.reshape(-1, 1, 1, 1).expand(-1, 3, 8, 8)

    @contextmanager
    def without_text_encoders(self) -> Iterator[None]:
        before, self.fault = self.fault, "range" if self.fault == "encoders" else self.fault
        yield
        self.fault = before


def outcome(fault: str, tolerance: str = "none") -> SelfTest:
    return self_test(
        lambda batch_size, caches: Fake(batch_size, caches, fault),
        PROMPTS,
        steps=2,
        batch_size=8,
        caches=CACHES,
        size=(8, 8),
        exact=tolerance == "none",
    )


def test_nothing_is_switched_off_without_a_fault() -> None:
    found = outcome("none")
    assert found == SelfTest(CACHES, pairs=True, batches=True, mixed=True, encoders_needed=False)
    assert found.sentence == "plain, uncached and cached images are the same to the bit"


@pytest.mark.parametrize("differs", range(len(ORDER)))
def test_the_cache_that_differs_is_switched_off_with_those_before_it(differs: int) -> None:
    found = outcome(ORDER[differs])
    off = ORDER[: differs + 1]
    assert found.caches == CACHES - set(off)
    assert found.batches
    words = ", ".join(f"cache of {name}" for name in off)
    assert found.sentence.endswith(f"switched off: {words}")


def test_what_rounding_explains_on_a_gpu_is_let_pass_and_said() -> None:
    found = outcome("first-call", tolerance="of a GPU")
    assert found.caches == CACHES
    assert found.sentence.endswith("the same within 1e-06")


def test_images_that_depend_on_neighbours_are_made_one_by_one() -> None:
    found = outcome("neighbours")
    assert (found.batches, found.mixed, found.caches) == (False, False, CACHES)
    assert found.off == ("batches (images depend on their neighbours)",)


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("own coefficients", "images depend on their neighbours' coefficients"),
        ("failing", "the pipeline fails: a sample of (1, 2, 4); expected 2 rows"),
    ],
)
def test_batches_of_several_coefficients_are_switched_off_by_themselves(
    fault: str, why: str
) -> None:
    found = outcome(fault)
    assert (found.batches, found.mixed, found.caches) == (True, False, CACHES)
    assert found.sentence.endswith(f"switched off: batches of several coefficients ({why})")
    assert outcome("own coefficients", tolerance="of a GPU").mixed


def images_along_the_second_axis(pipeline: DiffusionPipeline) -> DiffusionPipeline:
    """Its scheduler is given (1, images, ...), as frames of one video are."""
    prepare, forward, decode = (
        pipeline.prepare_latents,
        pipeline.transformer.forward,
        pipeline.vae.decode,
    )

    def denoised(hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor]:
        kwargs["timestep"] = kwargs["timestep"].expand(hidden_states.shape[1])
        return (forward(hidden_states[0], **kwargs)[0][None],)

    pipeline.prepare_latents = lambda *args, **kwargs: prepare(*args, **kwargs)[None]
    pipeline.transformer.forward = denoised
    pipeline.vae.decode = lambda latents, **kwargs: decode(latents[0], **kwargs)
    return pipeline


def test_where_rows_are_no_images_batches_go_coefficients_by_coefficients() -> None:
    pipeline, how = twin("demo", steps=2)
    generator = ImageGenerator(images_along_the_second_axis(pipeline), how, batch_size=2)
    generator.prepare(PROMPTS)
    assert generator.tested
    assert (generator.tested.batches, generator.tested.mixed) == (True, False)
    assert "a model output of (1, 2, 4, 16, 16); expected 2 rows" in generator.tested.sentence
    other = Coefficients.ramp(2, 1.1, 0.9)
    images = generator.generate(PROMPTS, [IDENTITY, other, IDENTITY, other])
    for k, each in enumerate([IDENTITY, other, IDENTITY, other]):
        assert torch.equal(images[k], generator.generate(PROMPTS, each)[k])
    assert not torch.equal(images[1], generator.generate(PROMPTS, IDENTITY)[1])
    with pytest.raises(GenerationError, match="no final latents with a row for each image"):
        generator.final_latents(PROMPTS, other)


def test_text_encoders_that_images_need_are_kept() -> None:
    assert outcome("encoders").encoders_needed


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("plain", "at the identity the images differ from plain ones"),
        ("coefficients", "coefficients change no pixel"),
        ("range", r"values are in \[1.01, 1.08\]; expected \[0, 1\]"),
    ],
)
def test_what_can_not_be_right_is_refused(fault: str, words: str) -> None:
    with pytest.raises(GenerationError, match=words):
        outcome(fault)


def test_what_was_found_before_takes_the_place_of_the_test() -> None:
    """As from a database; for other batches, or from another version, it is made again."""
    pipeline, how = twin("demo", steps=2)
    stored = SelfTest(
        frozenset(), True, False, False, True, ("batches (by an earlier worker)",)
    ).to_dict()
    known = SelfTest.from_dict(json.loads(json.dumps(stored)))
    generator = ImageGenerator(pipeline, how, batch_size=4)
    generator.prepare(PROMPTS, known)
    assert generator.tested == known
    assert (generator.batch_size, generator.network_calls) == (1, 0)
    single = ImageGenerator(pipeline, how, batch_size=1)
    single.prepare(PROMPTS, known)
    assert single.tested
    assert single.tested.caches == CACHES
    assert SelfTest.from_dict(stored | {"version": 1}) is None
    before = {key: value for key, value in stored.items() if key != "mixed"}
    assert SelfTest.from_dict(before | {"version": 1}) is None


def test_a_size_that_the_pipeline_rounds_is_refused() -> None:
    pipeline, how = twin("flux-schnell", steps=2)
    odd = how.model_copy(update={"height": 18})
    with pytest.raises(ModelError, match=r"sampling\.height = 18; .*set it to 16"):
        ImageGenerator(pipeline, odd, batch_size=2).prepare(PROMPTS)
