"""A diffusers pipeline + prompts with seeds + coefficients -> images, with nothing computed twice.

    generator = ImageGenerator(pipeline, Sampling(steps=4, guidance_scale=0.0))
    images = generator.generate(prompts, Coefficients.ramp(4, 1.05, 0.97))    # (N, 3, H, W)

The pipeline's own ``__call__`` makes the images; three of its parts are intercepted while it runs,
because what they return can't depend on the coefficients and so is the same in every trial:

- ``encode_prompt``: the prompt embeddings;
- ``prepare_latents``: the initial noise of each prompt's own random generator, whose state is kept
  too, so that the noise a stochastic scheduler injects is the same in every trial;
- the denoiser's **first** call: it sees x_0 and the embeddings only, the coefficients act after it
  (arXiv 2509.01624, section 4: x_{i+1} = step(c_eps[i] eps_i, t_i, c_x[i] x_i)). A trial of N steps
  costs N - 1 network calls.

Each is kept per prompt, the last under a digest of everything that enters the denoiser. Images are
made in batches of one fixed shape (the last one padded), so an image doesn't depend on its
neighbours, and caches change the time but never the pixels.
"""

import hashlib
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from qsched.coefficients import Coefficients
from qsched.errors import GenerationError
from qsched.models import denoiser
from qsched.prompts import Prompt
from qsched.schedule import precondition
from qsched.sections import Sampling

OutOfMemory = torch.OutOfMemoryError
"""What a device raises that is out of memory."""

logger = logging.getLogger(__name__)

CACHES = frozenset({"embeddings", "noise", "first-call"})
"""The caches of an ImageGenerator, by name."""


class ImageGenerator:
    """Generates images of fixed prompts under many coefficients.

    One instance belongs to one pipeline with fixed weights and one way of sampling; quantize the
    pipeline first. Not thread-safe. `network_calls` and `images` count what was really done.
    """

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        sampling: Sampling,
        *,
        part: str | None = None,
        batch_size: int = 16,
        caches: frozenset[str] = CACHES,
    ) -> None:
        if caches - CACHES:
            raise ValueError(
                f"caches: {sorted(caches - CACHES)}; expected some of {sorted(CACHES)}"
            )
        self.pipeline = pipeline
        self.sampling = sampling
        self.batch_size = batch_size
        self.network_calls = 0
        self.images = 0
        self._denoiser = denoiser(pipeline, part)
        self._caches = caches
        self._embeddings: dict[str, _Row] = {}
        self._noise: dict[int, tuple[_Row, Tensor]] = {}
        self._first_outputs: dict[bytes, Tensor] = {}

    def generate(self, prompts: Sequence[Prompt], coefficients: Coefficients) -> Tensor:
        """(N, 3, H, W) float32 images in [0, 1] on the CPU, one for each prompt, in their order.

        Raises CoefficientsError if the number of steps differs from the sampling's, and
        GenerationError, with the prompt, if an image is not finite.
        """
        coefficients.require_steps(self.sampling.steps)
        stock = self.pipeline.scheduler
        self.pipeline.scheduler = precondition(stock, coefficients)
        try:
            batches = [
                self._batch(prompts[start : start + self.batch_size])
                for start in range(0, len(prompts), self.batch_size)
            ]
        finally:
            self.pipeline.scheduler = stock
        return torch.cat(batches)

    def halve(self) -> None:
        """Makes batches of half the size from here on, after the device ran out of memory.

        Images of another batch size may differ in their last bits. Raises GenerationError where
        there is nothing to halve.
        """
        if self.batch_size == 1:
            raise GenerationError("out of memory with a batch of one image; use a larger device")
        self.batch_size //= 2
        logger.warning("out of memory: batches of %d images from here on", self.batch_size)
        self._embeddings.clear()
        self._noise.clear()
        self._first_outputs.clear()

    def _batch(self, prompts: Sequence[Prompt]) -> Tensor:
        padded = [*prompts, *[prompts[-1]] * (self.batch_size - len(prompts))]
        noise = [torch.Generator("cpu").manual_seed(prompt.seed) for prompt in padded]
        with ExitStack() as stack:
            for owner, method, replacement in self._interceptions(padded, noise):
                stack.enter_context(_replaced(owner, method, replacement))
            output = self.pipeline(
                prompt=[prompt.text for prompt in padded],
                generator=noise,
                output_type="pt",
                **self.sampling.arguments(),
            )
        images: Tensor = output.images[: len(prompts)].float().cpu()
        self.images += len(images)
        finite = images.isfinite().flatten(1).all(dim=1)
        if not finite.all():
            broken = prompts[int(finite.int().argmin())]
            raise GenerationError(
                f"the image of {broken.text!r} (seed {broken.seed}) is not finite; "
                "try model.dtype = 'float32' or narrower search.bounds"
            )
        return images

    def _interceptions(
        self, prompts: Sequence[Prompt], noise: Sequence[torch.Generator]
    ) -> Iterator[tuple[object, str, Callable[..., Any]]]:
        """What to replace while the pipeline runs: (owner, method, replacement)."""
        yield self._denoiser, "forward", self._network(self._denoiser.forward)
        if "embeddings" in self._caches:
            encode = self.pipeline.encode_prompt
            yield self.pipeline, "encode_prompt", self._encoder(encode, prompts)
        if "noise" in self._caches:
            prepare = self.pipeline.prepare_latents
            yield self.pipeline, "prepare_latents", self._latents(prepare, prompts, noise)

    def _encoder(self, encode: Callable[..., Any], prompts: Sequence[Prompt]) -> Callable[..., Any]:
        """`encode_prompt` that encodes a caption once."""

        def cached(*args: Any, **kwargs: Any) -> Any:
            if all(prompt.text in self._embeddings for prompt in prompts):
                return _joined([self._embeddings[prompt.text] for prompt in prompts])
            output = encode(*args, **kwargs)
            for prompt, row in zip(prompts, _rows(output, len(prompts)), strict=True):
                self._embeddings.setdefault(prompt.text, row)
            return output

        return cached

    def _latents(
        self,
        prepare: Callable[..., Any],
        prompts: Sequence[Prompt],
        noise: Sequence[torch.Generator],
    ) -> Callable[..., Any]:
        """`prepare_latents` that draws a seed's initial noise once and keeps its generator's state.

        The generators are left as the pipeline would have left them, so what a scheduler draws
        later is the same as well.
        """

        def cached(*args: Any, **kwargs: Any) -> Any:
            if all(prompt.seed in self._noise for prompt in prompts):
                for prompt, generator in zip(prompts, noise, strict=True):
                    generator.set_state(self._noise[prompt.seed][1])
                return _joined([self._noise[prompt.seed][0] for prompt in prompts])
            output = prepare(*args, **kwargs)
            rows = _rows(output, len(prompts))
            for prompt, row, generator in zip(prompts, rows, noise, strict=True):
                self._noise.setdefault(prompt.seed, (row, generator.get_state()))
            return output

        return cached

    def _network(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """The denoiser's forward for one run of the pipeline; its first call may be remembered."""
        first = True

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.network_calls += 1
            return forward(*args, **kwargs)

        def cached(*args: Any, **kwargs: Any) -> Any:
            nonlocal first
            cacheable = (
                first and "first-call" in self._caches and kwargs.get("return_dict") is False
            )
            first = False
            if not cacheable:
                return counted(*args, **kwargs)
            keys = _input_digests(inspect.signature(forward).bind(*args, **kwargs).arguments)
            if all(key in self._first_outputs for key in keys):
                return (torch.stack([self._first_outputs[key] for key in keys]),)
            output = counted(*args, **kwargs)
            for key, row in zip(keys, output[0], strict=True):
                self._first_outputs.setdefault(key, row.clone())
            return output

        return cached


_Row = list[tuple[bool, Any]]
"""One image's share of a pipeline method's output: for each part, (is it per image, the value)."""


def _rows(output: Any, count: int) -> list[_Row]:
    """`output` (a tensor, or a tuple of tensors and shared values) taken apart by image."""
    parts = output if isinstance(output, tuple) else (output,)
    return [
        [
            (True, part[index].clone())
            if isinstance(part, Tensor) and part.ndim and len(part) == count
            else (False, part)
            for part in parts
        ]
        for index in range(count)
    ]


def _joined(rows: Sequence[_Row]) -> Any:
    """What `_rows` took apart, for other images in another order."""
    parts = tuple(
        torch.stack([row[part][1] for row in rows]) if per_image else value
        for part, (per_image, value) in enumerate(rows[0])
    )
    return parts if len(parts) > 1 else parts[0]


def _input_digests(arguments: Mapping[str, Any]) -> list[bytes]:
    """A digest of the denoiser's inputs for each row of its batch.

    The first tensor is the sample; its length is the number of rows (twice the images under
    classifier-free guidance). Tensors of that length count row by row, all else counts for every
    row.
    """
    leaves = list(_leaves(arguments))
    count = len(next(value for _, value in leaves if isinstance(value, Tensor) and value.ndim))
    shared = hashlib.blake2b(digest_size=20)
    rows = []
    for name, value in leaves:
        if isinstance(value, Tensor) and value.ndim and len(value) == count:
            rows.append(_bytes(value).reshape(count, -1))
            shared.update(f"{name}:{value.dtype}:{tuple(value.shape[1:])};".encode())
        elif isinstance(value, Tensor):
            shared.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
            shared.update(_bytes(value.reshape(-1)).numpy().data)
        else:
            shared.update(f"{name}={value!r};".encode())
    digests = []
    for index in range(count):
        digest = shared.copy()
        for row in rows:
            digest.update(row[index].numpy().data)
        digests.append(digest.digest())
    return digests


def _leaves(arguments: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested arguments, such as SDXL's added_cond_kwargs, with their names."""
    return chain.from_iterable(
        _leaves(value, f"{prefix}{name}.")
        if isinstance(value, Mapping)
        else ((f"{prefix}{name}", value),)
        for name, value in arguments.items()
    )


def _bytes(tensor: Tensor) -> Tensor:
    """The memory of a tensor of at least one dimension as uint8 on the CPU."""
    # A copy, since a single expanded element has stride 0 and yet counts as contiguous.
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format).view(torch.uint8)


@contextmanager
def _replaced(owner: object, name: str, replacement: Callable[..., Any]) -> Iterator[None]:
    """An instance's method replaced for a while; an earlier replacement is put back."""
    own = vars(owner)
    before = own.get(name)
    object.__setattr__(owner, name, replacement)
    try:
        yield
    finally:
        if before is None:
            object.__delattr__(owner, name)
        else:
            object.__setattr__(owner, name, before)
