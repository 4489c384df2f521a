"""Every text-to-image class of diffusers, tiny: right to the bit, or refused in one line.

Right: the generator's images, caches filled, read and read in another order, are the plain ones of
the same batch, or where the self-test switched batches off, of single calls. Images and final
latents under coefficients of their own are what they are beside others of the same.
"""

from contextlib import nullcontext

import pytest
import torch
from diffusers import FlowMatchLCMScheduler

from qsched.errors import GenerationError
from qsched.pipelines.generator import ImageGenerator
from qsched.pipelines.table import Sampling
from qsched.prompts import Prompt
from qsched.schedule.coefficients import Coefficients
from tests.support.tiny.classes import CLASSES

CAPTIONS = ("a cat", "a dog in the rain at night, " * 20, "a cat", "")
PROMPTS = [Prompt(caption, 5 * index + 2) for index, caption in enumerate(CAPTIONS)]
IDENTITY = Coefficients.identity(2)

KINDS = {
    ("BriaPipeline", True): "asks for the scheduler's very class",
    ("CogView4Pipeline", True): "pads to the longest caption, and attends to the padding",
    ("HiDreamImagePipeline", True): "embeddings (layers, images, ...), experts that share a batch",
    ("Kandinsky5T2IPipeline", False): "returns `image`, embeddings of all captions in a row",
    ("Kandinsky3Pipeline", False): 'its "pt" is not in [0, 1]',
    ("Lumina2Pipeline", True): "two calls of the network a step, one of them for guidance",
    ("OmniGenPipeline", True): "has no encode_prompt",
    ("StableDiffusionPAGPipeline", True): "takes no negative text beside a list of captions",
}
"""One of each kind; the rest are slow together."""

REFUSED = {("HunyuanDiTPAGPipeline", False): "Sizes of tensors must match"}
"""What the class can't do itself."""


def sampling(name: str, *, guided: bool) -> Sampling:
    call = dict(CLASSES[name].guided if guided else CLASSES[name].unguided)
    scale = call.pop("guidance_scale")
    size = {key: call.pop(key, 32) for key in ("height", "width")}
    return Sampling(steps=2, guidance_scale=scale, call=call, **size)


def assert_right(name: str, how: Sampling, prompts: list[Prompt], size: int) -> None:
    generator = ImageGenerator(CLASSES[name].make(), how, batch_size=size)
    generator.prepare(prompts)
    step = generator.batch_size
    alone = ImageGenerator(CLASSES[name].make(), how, batch_size=step, caches=frozenset())
    padded = [*prompts, *[prompts[-1]] * (-len(prompts) % step)]
    batches = [alone.plain(padded[at : at + step]) for at in range(0, len(padded), step)]
    expected = torch.cat(batches)[: len(prompts)]
    backwards = list(reversed(range(len(prompts))))
    for order in (range(len(prompts)), range(len(prompts)), backwards):
        images = generator.generate([prompts[index] for index in order], IDENTITY)
        assert torch.equal(images, expected[list(order)])
    assert (expected[0] - expected[1]).abs().max() > 0.01
    own = [IDENTITY, *[Coefficients.ramp(2, 1.1, 0.9)] * (len(prompts) - 1)]
    for draw in (generator.generate, generator.final_latents):
        first, rest = (draw(prompts, each) for each in own[:2])
        assert torch.equal(draw(prompts, own), torch.cat([first[:1], rest[1:]]))
        assert not torch.equal(first[1:], rest[1:])


@pytest.mark.parametrize(("name", "guided"), KINDS, ids=str)
def test_one_class_of_each_kind_is_right(name: str, guided: bool) -> None:
    """With an odd last batch, a long caption, and one twice with another seed."""
    assert_right(name, sampling(name, guided=guided), PROMPTS[:3], 2)


@pytest.mark.slow
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("name", CLASSES)
def test_each_class_is_right_or_refused(name: str, guided: bool) -> None:
    """In batches of 2; `python -m bench.pipelines` has those of 1 and 4."""
    how = sampling(name, guided=guided)
    words = REFUSED.get((name, guided))
    with pytest.raises(GenerationError, match=words) if words else nullcontext():
        assert_right(name, how, PROMPTS, 2)


@pytest.mark.parametrize("name", ["ChromaPipeline", "Lumina2Pipeline"])
def test_noise_of_a_stochastic_scheduler_is_the_images_own(name: str) -> None:
    """Where the pipeline gives the scheduler no generator."""
    pipeline = CLASSES[name].make()
    pipeline.scheduler = FlowMatchLCMScheduler()
    generator = ImageGenerator(pipeline, sampling(name, guided=True), batch_size=2)
    generator.prepare(PROMPTS)
    assert generator.tested
    assert generator.tested.own_noise
    images = generator.generate(PROMPTS, IDENTITY)
    assert torch.equal(generator.generate(PROMPTS[::-1], IDENTITY).flip(0), images)
    assert not torch.equal(images[0], images[2])
