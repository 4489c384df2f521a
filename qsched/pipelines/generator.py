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
  costs N - 1 network calls. Its **later calls** are the same as long as c_eps and c_x are, so a
  trial that only weighs the steps' x0 predictions otherwise costs none.

Each is kept per prompt, in the computer's memory, the last under a digest of everything that enters
the denoiser. `prepare` encodes all prompts first and then frees the text encoders. Images are
made in batches of one fixed shape (the last one padded), so an image doesn't depend on its
neighbours, and caches change the time but never the pixels.
"""

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from qsched.errors import GenerationError, QschedError
from qsched.libraries import quiet
from qsched.pipelines.agreement import NAMED, require_taken
from qsched.pipelines.failures import explained
from qsched.pipelines.interception import Row, input_digests, joined, replaced, rows
from qsched.pipelines.loading import denoiser, text_encoders
from qsched.pipelines.memory import free_memory
from qsched.pipelines.table import OWN_KEYS, Sampling
from qsched.prompts import Prompt
from qsched.schedule.coefficients import Coefficients
from qsched.schedule.preconditioning import precondition

logger = logging.getLogger(__name__)

CACHES = frozenset({"embeddings", "noise", "first-call", "later-calls"})
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
        require_taken(pipeline, sampling)
        self.pipeline = pipeline
        self.sampling = sampling
        self.batch_size = batch_size
        self.network_calls = 0
        self.images = 0
        self._denoiser = denoiser(pipeline, part)
        self._caches = caches
        self._encoders_freed = False
        self._embeddings: dict[str, Row] = {}
        self._noise: dict[int, tuple[Row, Tensor]] = {}
        self._first_outputs: dict[bytes, Tensor] = {}
        self._later_outputs: dict[bytes, Tensor] = {}
        self._pass: tuple[Coefficients | None, set[Prompt]] = (None, set())
        self._network_device = torch.device("cpu")

    def prepare(self, prompts: Sequence[Prompt]) -> None:
        """Encodes all captions that will be asked for, then frees the memory of the text encoders.

        Warns of captions that are longer than the text encoders read. Needs the cache of
        embeddings; afterwards other captions than these raise GenerationError.
        """
        if "embeddings" not in self._caches:
            raise ValueError("prepare needs the cache of embeddings")
        first = {prompt.text: prompt for prompt in reversed(prompts)}
        new = [first[text] for text in sorted(first.keys() - self._embeddings.keys())]
        self._warn_of_long([prompt.text for prompt in new])
        for start in range(0, len(new), self.batch_size):
            batch = self._padded(new[start : start + self.batch_size])
            encode = self._encoder(self.pipeline.encode_prompt, batch)

            def encode_and_stop(
                *args: Any, encode: Callable[..., Any] = encode, **kwargs: Any
            ) -> Any:
                encode(*args, **kwargs)
                raise _EncodedError

            with replaced(self.pipeline, "encode_prompt", encode_and_stop), suppress(_EncodedError):
                self._call(batch, [torch.Generator() for _ in batch])
        self._free_text_encoders()

    def _free_text_encoders(self) -> None:
        for name in text_encoders(self.pipeline):
            setattr(self.pipeline, name, None)
        self._encoders_freed = True
        self.pipeline.maybe_free_model_hooks()  # hooks of offloading hold them as well
        free_memory()

    def _warn_of_long(self, captions: Sequence[str]) -> None:
        """Says which captions are cut, by the text encoder that reads the most."""
        limits = {
            name: min(tokenizer.model_max_length, self._read_by(name))
            for name, tokenizer in self.pipeline.components.items()
            if name.startswith("tokenizer") and tokenizer is not None
        }
        if not limits:
            return
        name = max(limits, key=lambda each: limits[each])
        tokenizer = getattr(self.pipeline, name)
        for caption in captions:
            length = len(tokenizer(caption, truncation=False, verbose=False).input_ids)
            if length > limits[name]:
                logger.warning(
                    "the prompt %r has %d tokens; %s reads %d, the rest is cut",
                    caption if len(caption) < 60 else caption[:57] + "...",
                    length,
                    name,
                    limits[name],
                )

    def _read_by(self, tokenizer: str) -> int:
        """Tokens that the pipeline lets a T5 read; any number for the others."""
        named = inspect.signature(type(self.pipeline).__call__).parameters.get(
            "max_sequence_length"
        )
        kind = type(getattr(self.pipeline, tokenizer)).__name__
        if named is None or not kind.startswith("T5"):
            return 10**9
        return int(self.sampling.call.get("max_sequence_length", named.default))

    def generate(self, prompts: Sequence[Prompt], coefficients: Coefficients) -> Tensor:
        """(N, 3, H, W) float32 images in [0, 1] on the CPU, one for each prompt, in their order.

        Raises CoefficientsError if the number of steps differs from the sampling's, and
        GenerationError, with the prompt, if an image is not finite.
        """
        coefficients.require_steps(self.sampling.steps)
        if self._pass[0] != coefficients.scalars:
            self._later_outputs.clear()
            self._pass = (coefficients.scalars, set())
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

    def shrink(self, batch_size: int) -> None:
        """Makes batches of this size from here on, after the device ran out of memory.

        Images of another batch size may differ in their last bits.
        """
        self.batch_size = batch_size
        logger.warning("out of memory: batches of %d images from here on", batch_size)
        self._noise.clear()
        self._first_outputs.clear()
        self._later_outputs.clear()

    def _batch(self, prompts: Sequence[Prompt]) -> Tensor:
        padded = self._padded(prompts)
        noise = [torch.Generator("cpu").manual_seed(prompt.seed) for prompt in padded]
        seen = self._pass[1]
        repeated = seen.issuperset(prompts)
        with ExitStack() as stack:
            for owner, method, replacement in self._interceptions(padded, noise, repeated):
                stack.enter_context(replaced(owner, method, replacement))
            output = self._call(padded, noise)
        seen.update(prompts)
        images: Tensor = output.images[: len(prompts)].float().cpu()
        self.images += len(images)
        self._refuse_spoilt(images, prompts)
        return images

    def _padded(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """`prompts` and the last one again, up to the batch's fixed size."""
        return [*prompts, *[prompts[-1]] * (self.batch_size - len(prompts))]

    def _call(self, prompts: Sequence[Prompt], noise: list[torch.Generator]) -> Any:
        """The pipeline itself."""
        name = type(self.pipeline).__name__
        with quiet(), explained(GenerationError, name, "change [sampling]", self._settings()):
            return self.pipeline(
                prompt=[prompt.text for prompt in prompts],
                generator=noise,
                output_type="pt",
                **self.sampling.arguments(),
            )

    def _settings(self) -> list[str]:
        """The keys of the study file that the pipeline may be called with."""
        keys = inspect.signature(type(self.pipeline).__call__).parameters
        return [
            f"sampling.{key}" if key in NAMED else f"sampling.call.{key}"
            for key in keys
            if key in NAMED or key not in OWN_KEYS
        ]

    @staticmethod
    def _refuse_spoilt(images: Tensor, prompts: Sequence[Prompt]) -> None:
        """Raises GenerationError for an image that is not finite, or black all over."""
        finite = images.isfinite().flatten(1).all(dim=1)
        black = images.flatten(1).amax(dim=1) < 1 / 255
        for bad, what, remedy in (
            (
                ~finite,
                "not finite",
                "model.dtype = 'bfloat16' or 'float32', or narrower search.bounds",
            ),
            (black, "black all over", "model.dtype = 'bfloat16', and no safety checker"),
        ):
            if bad.any():
                broken = prompts[int(bad.int().argmax())]
                raise GenerationError(
                    f"the image of {broken.text!r} (seed {broken.seed}) is {what}; try {remedy}"
                )

    def _interceptions(
        self, prompts: Sequence[Prompt], noise: Sequence[torch.Generator], repeated: bool
    ) -> Iterator[tuple[object, str, Callable[..., Any]]]:
        """What to replace while the pipeline runs: (owner, method, replacement)."""
        yield self._denoiser, "forward", self._network(self._denoiser.forward, repeated)
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
                return joined([self._embeddings[prompt.text] for prompt in prompts])
            if self._encoders_freed:
                unknown = next(p.text for p in prompts if p.text not in self._embeddings)
                raise GenerationError(
                    f"the text encoders were freed before {unknown!r} was encoded; "
                    "expected one of the prompts that were prepared"
                )
            output = encode(*args, **kwargs)
            for prompt, row in zip(prompts, rows(output, len(prompts)), strict=True):
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
                return joined([self._noise[prompt.seed][0] for prompt in prompts])
            output = prepare(*args, **kwargs)
            apart = rows(output, len(prompts))
            for prompt, row, generator in zip(prompts, apart, noise, strict=True):
                self._noise.setdefault(prompt.seed, (row, generator.get_state()))
            return output

        return cached

    def _network(self, forward: Callable[..., Any], repeated: bool) -> Callable[..., Any]:
        """The denoiser's forward for one run of the pipeline; what it returns may be remembered.

        `repeated`: these prompts went the same way before, so that the later calls may be as well:
        kept from the second time on, since most searches never go the same way twice.
        """
        first = True

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.network_calls += 1
            return forward(*args, **kwargs)

        def cached(*args: Any, **kwargs: Any) -> Any:
            nonlocal first
            cache, outputs = (
                ("first-call", self._first_outputs)
                if first
                else ("later-calls", self._later_outputs)
            )
            wanted = (first or repeated) and cache in self._caches
            first = False
            if not wanted or kwargs.get("return_dict") is not False:
                return counted(*args, **kwargs)
            keys = input_digests(inspect.signature(forward).bind(*args, **kwargs).arguments)
            if all(key in outputs for key in keys):
                kept = torch.stack([outputs[key] for key in keys])
                return (kept.to(self._network_device),)
            output = counted(*args, **kwargs)
            self._network_device = output[0].device
            for key, row in zip(keys, output[0], strict=True):
                outputs.setdefault(key, row.to("cpu", copy=True))
            return output

        return cached


class _EncodedError(QschedError):
    """The prompts are encoded; the rest of the pipeline's call is not wanted."""
