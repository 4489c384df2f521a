"""A diffusers pipeline + prompts with seeds + coefficients -> images, with nothing computed twice.

    generator = ImageGenerator(pipeline, Sampling(steps=4, guidance_scale=0.0))
    generator.prepare(prompts)
    images = generator.generate(prompts, Coefficients.ramp(4, 1.05, 0.97))    # (N, 3, H, W)
    images = generator.generate([cat, owl], [one, other])           # coefficients for each image
    latents = generator.final_latents(prompts, coefficients)        # not decoded

The pipeline's own ``__call__`` makes the images; two of its parts are intercepted while it runs,
because what they return can't depend on the coefficients and so is the same in every trial:

- ``encode_prompt``: the prompt embeddings, by caption and all other arguments of the call;
- the denoiser's **first** call: it sees x_0 and the embeddings only, the coefficients act after it
  (arXiv 2509.01624, section 4: x_{i+1} = step(c_eps[i] eps_i, t_i, c_x[i] x_i)). A trial of N steps
  costs N - 1 network calls. Its **later calls** are the same as long as c_eps and c_x are, so a
  trial that only weighs the steps' x0 predictions otherwise costs none.

Each is kept per image, in the computer's memory, under a digest of everything that enters. What
can't be digested exactly is not kept. Images are made in batches of one fixed shape (the last one
padded), so an image doesn't depend on its neighbours; captions whose embeddings differ in shape are
never padded to each other, they go in batches of one. What a scheduler's step injects is drawn from
the image's own generator, also where the pipeline passes it none. Images of other coefficients may
share a batch: their scheduler scales row by row.

None of this is assumed: `prepare` runs the self-test on the pipeline itself, and what changes a
pixel is switched off.
"""

import copy
import functools
import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TypeVar

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from qsched.errors import CoefficientsError, GenerationError, QschedError
from qsched.libraries import quiet
from qsched.pipelines.agreement.settings import NAMED, require_taken
from qsched.pipelines.devices import free_memory
from qsched.pipelines.failures import explained
from qsched.pipelines.interception import (
    ApartError,
    UnknownValueError,
    apart,
    digest,
    joined,
    kept,
    network_rows,
    replaced,
    row_digests,
)
from qsched.pipelines.loading import denoiser, text_encoders
from qsched.pipelines.self_test import SelfTest, self_test
from qsched.pipelines.table import OWN_KEYS, Sampling
from qsched.prompts import Prompt
from qsched.schedule.coefficients import Coefficients
from qsched.schedule.mixed import precondition_mixed
from qsched.schedule.preconditioning import is_last_step, precondition

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

CACHES = frozenset({"embeddings", "first-call", "later-calls"})
"""The caches of an ImageGenerator, by name."""

Drawing = tuple[Prompt, Coefficients]
"""What an image is drawn from."""


class ImageGenerator:
    """Generates images of fixed prompts under many coefficients.

    One instance belongs to one pipeline with fixed weights and one way of sampling; quantize the
    pipeline first. Not thread-safe. `network_calls` and `images` count what was really done; final
    latents are no images. `tested`: what the self-test found, from `prepare` on.
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
        self.tested: SelfTest | None = None
        self._part = part
        self._denoiser = denoiser(pipeline, part)
        self._caches = caches if hasattr(pipeline, "encode_prompt") else caches - {"embeddings"}
        self._encoders_freed = False
        self._embeddings: dict[bytes, Any] = {}
        self._first_outputs: dict[bytes, Any] = {}
        self._later_outputs: dict[bytes, Any] = {}
        self._ways: frozenset[Coefficients] = frozenset()
        self._went: set[Drawing] = set()

    def prepare(self, prompts: Sequence[Prompt], known: SelfTest | None = None) -> None:
        """Tests caches and batches on the pipeline itself, encodes all captions that will be asked
        for, then frees the memory of the text encoders.

        The self-test is made once; what it finds different is switched off, with a warning.
        `known`, what it found for the same study on the same hardware before, takes its place,
        unless that was for other batches; `tested` is what counts. Warns of captions that are
        longer than the text encoders read. Afterwards other captions than
        these raise GenerationError, and so does here a pipeline whose images can't be repeated or
        don't follow the coefficients.
        """
        if self.tested is None:
            fits = known is not None and known.suits(self.batch_size)
            self._take(known if known and fits else self._test(prompts))
        if "embeddings" not in self._caches or self._encoders_freed:
            return
        first = {prompt.text: prompt for prompt in reversed(prompts)}
        new = [first[text] for text in sorted(first)]
        self._warn_of_long([prompt.text for prompt in new])
        try:
            self._encode(new)
        except _OneByOneError as error:
            self._one_by_one(error)
            self._encode(new)
        if self.tested and not self.tested.encoders_needed:
            self._free_text_encoders()

    def _test(self, prompts: Sequence[Prompt]) -> SelfTest:
        def make(batch_size: int, caches: frozenset[str]) -> ImageGenerator:
            return ImageGenerator(
                self.pipeline, self.sampling, part=self._part, batch_size=batch_size, caches=caches
            )

        return self_test(
            make,
            prompts,
            steps=self.sampling.steps,
            batch_size=self.batch_size,
            caches=self._caches,
            size=(self.sampling.height, self.sampling.width),
            exact=self.pipeline._execution_device.type == "cpu",
        )

    def _take(self, tested: SelfTest) -> None:
        """What the self-test found holds from here on."""
        self.tested = tested
        self._caches &= tested.caches
        self.batch_size = self.batch_size if tested.batches else 1
        if tested.off:
            logger.warning("%s: self-test: %s", type(self.pipeline).__name__, tested.sentence)

    def _encode(self, prompts: Sequence[Prompt]) -> None:
        """Runs the pipeline up to its denoiser, which keeps what `encode_prompt` returns."""

        def encoded(*args: Any, **kwargs: Any) -> Any:
            raise _EncodedError

        identity = Coefficients.identity(self.sampling.steps)
        with self._scheduled([identity]):
            for start in range(0, len(prompts), self.batch_size):
                batch = self._padded(prompts[start : start + self.batch_size])
                encode = self._encoder(self.pipeline.encode_prompt, batch)
                with (
                    replaced(self.pipeline, "encode_prompt", encode),
                    replaced(self._denoiser, "forward", encoded),
                    suppress(_EncodedError),
                ):
                    self._call(batch, [torch.Generator() for _ in batch])

    @contextmanager
    def without_text_encoders(self) -> Iterator[None]:
        """The pipeline as it is when they are freed, for a while."""
        encoders = text_encoders(self.pipeline)
        freed, self._encoders_freed = self._encoders_freed, True
        for name in encoders:
            setattr(self.pipeline, name, None)
        try:
            yield
        finally:
            self._encoders_freed = freed
            for name, encoder in encoders.items():
                setattr(self.pipeline, name, encoder)

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

    def generate(
        self, prompts: Sequence[Prompt], coefficients: Coefficients | Sequence[Coefficients]
    ) -> Tensor:
        """(N, 3, H, W) float32 images in [0, 1] on the CPU, one for each prompt, in their order;
        transparent ones on white.

        `coefficients`: of all images, or of each one. Images of different coefficients share a
        batch unless the self-test found that they can't, with the same pixels as apart.

        Raises CoefficientsError if the number of steps differs from the sampling's, or if there
        are not as many as prompts; and GenerationError, with the prompt, if an image is not finite.
        """
        return self._drawn(prompts, coefficients, self._image_batch)

    def final_latents(
        self, prompts: Sequence[Prompt], coefficients: Coefficients | Sequence[Coefficients]
    ) -> Tensor:
        """(N, ...) float32 on the CPU: what the last step returns, an average of x0 predictions
        included, in the pipeline's own layout; nothing is decoded.

        Arguments, batches, caches and errors are those of `generate`.
        """
        return self._drawn(prompts, coefficients, self._latent_batch)

    def _drawn(
        self,
        prompts: Sequence[Prompt],
        coefficients: Coefficients | Sequence[Coefficients],
        draw: Callable[[Sequence[Drawing]], Tensor],
    ) -> Tensor:
        """What `draw` makes of each batch, in the order of the prompts."""
        drawings = _drawings(prompts, coefficients)
        for each in {each for _, each in drawings}:
            each.require_steps(self.sampling.steps)
        ways = frozenset(each.scalars for _, each in drawings)
        if not ways <= self._ways:
            self._later_outputs.clear()
            self._ways, self._went = ways, set()
        try:
            return self._batches(drawings, draw)
        except _OneByOneError as error:
            self._one_by_one(error)
            return self._batches(drawings, draw)

    def plain(self, prompts: Sequence[Prompt]) -> Tensor:
        """The images of one batch as the pipeline makes them without qsched: nothing is
        intercepted, the stock scheduler is used."""
        noise = [torch.Generator("cpu").manual_seed(prompt.seed) for prompt in prompts]
        stock = self.pipeline.scheduler
        self.pipeline.scheduler = copy.deepcopy(stock)  # its timesteps stay as they are
        try:
            return self._images(self._call(prompts, noise), prompts)
        finally:
            self.pipeline.scheduler = stock

    def shrink(self, batch_size: int) -> None:
        """Makes batches of this size from here on, after the device ran out of memory.

        Images of another batch size may differ in their last bits.
        """
        logger.warning("out of memory: batches of %d images from here on", batch_size)
        self._resize(batch_size)

    def _one_by_one(self, why: Exception) -> None:
        if self.tested:  # else it is the self-test's, which says what it finds
            logger.warning(
                "batches of one image from here on: the captions' embeddings can't be put together "
                "exactly, %s",
                why,
            )
        self._embeddings.clear()
        self._resize(1)

    def _resize(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self._first_outputs.clear()
        self._later_outputs.clear()

    @contextmanager
    def _scheduled(self, coefficients: Sequence[Coefficients]) -> Iterator[None]:
        """The pipeline with a scheduler that follows each image's coefficients, for a while."""
        stock = self.pipeline.scheduler
        same = len(set(coefficients)) == 1
        self.pipeline.scheduler = (
            precondition(stock, coefficients[0])
            if same
            else precondition_mixed(stock, coefficients)
        )
        try:
            yield
        finally:
            self.pipeline.scheduler = stock

    def _batches(
        self, drawings: Sequence[Drawing], draw: Callable[[Sequence[Drawing]], Tensor]
    ) -> Tensor:
        """What is drawn batch by batch; where images of different coefficients may not share one,
        coefficients by coefficients."""
        groups: dict[Coefficients | None, list[int]] = {}
        mixed = self.tested is None or self.tested.mixed
        for place, (_, each) in enumerate(drawings):
            groups.setdefault(None if mixed else each, []).append(place)
        batches = [
            places[at : at + self.batch_size]
            for places in groups.values()
            for at in range(0, len(places), self.batch_size)
        ]
        drawn = torch.cat([draw([drawings[place] for place in batch]) for batch in batches])
        return drawn[torch.tensor([place for batch in batches for place in batch]).argsort()]

    def _image_batch(self, drawings: Sequence[Drawing]) -> Tensor:
        with self._intercepted(drawings) as (prompts, noise):
            output = self._call(prompts, noise)
        images = self._images(output, [prompt for prompt, _ in drawings])
        self.images += len(images)
        return images

    def _latent_batch(self, drawings: Sequence[Drawing]) -> Tensor:
        with self._intercepted(drawings) as (prompts, noise):
            scheduler = self.pipeline.scheduler
            with replaced(scheduler, "step", _with_an_end(scheduler)):
                try:
                    self._call(prompts, noise)
                    found: Any = None
                except _DenoisedError as done:
                    found = done.latents
                    self.pipeline.maybe_free_model_hooks()  # as at the end of its call
        if not isinstance(found, Tensor) or not found.ndim or len(found) != len(prompts):
            raise GenerationError(
                f"{type(self.pipeline).__name__}: no final latents with a row for each image come "
                "out of its last step; take a text-to-image pipeline"
            )
        latents = found[: len(drawings)].float().cpu()
        _refuse_infinite(latents, [prompt for prompt, _ in drawings], "the final latent")
        return latents

    @contextmanager
    def _intercepted(
        self, drawings: Sequence[Drawing]
    ) -> Iterator[tuple[list[Prompt], list[torch.Generator]]]:
        """The pipeline readied for a batch of drawings: the prompts, up to the batch's fixed size,
        and the noise that it is to be called with."""
        padded = self._padded(drawings)
        prompts = [prompt for prompt, _ in padded]
        noise = [torch.Generator("cpu").manual_seed(prompt.seed) for prompt in prompts]
        ways = {(prompt, each.scalars) for prompt, each in drawings}
        repeated = self._went >= ways
        with self._scheduled([each for _, each in padded]), ExitStack() as stack:
            for owner, method, replacement in self._interceptions(prompts, noise, repeated):
                stack.enter_context(replaced(owner, method, replacement))
            yield prompts, noise
        self._went |= ways

    def _images(self, output: Any, prompts: Sequence[Prompt]) -> Tensor:
        """The images of `prompts` in what the pipeline returned."""
        images = getattr(output, "images", getattr(output, "image", None))
        if isinstance(images, np.ndarray) and images.ndim == 4:
            images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
        images = _opaque(images)
        if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != 3:
            held = [name for name in ("frames", "audios", "image_embeds") if hasattr(output, name)]
            found = tuple(images.shape) if isinstance(images, Tensor) else ", ".join(held)
            raise GenerationError(
                f"{type(self.pipeline).__name__}: it returns {found or type(output).__name__}; "
                "expected images, (N, 3, H, W); take a text-to-image pipeline"
            )
        images = images[: len(prompts)].float().cpu()
        _refuse_infinite(images, prompts, "the image")
        _refuse_black(images, prompts)
        return images

    def _padded(self, batch: Sequence[Item]) -> list[Item]:
        """`batch` and its last one again, up to the fixed size."""
        return [*batch, *[batch[-1]] * (self.batch_size - len(batch))]

    def _call(self, prompts: Sequence[Prompt], noise: list[torch.Generator]) -> Any:
        """The pipeline itself."""
        name = type(self.pipeline).__name__
        with quiet(), explained(GenerationError, name, "change [sampling]", self._settings()):
            return self.pipeline(
                prompt=[prompt.text for prompt in prompts],
                generator=noise,
                output_type="np",  # "pt" is in [-1, 1] where a pipeline decodes by itself
                **self._arguments(len(prompts)),
            )

    def _arguments(self, images: int) -> dict[str, Any]:
        """What the study sets, a negative prompt once for each image: some pipelines take no text
        beside a list."""
        return {
            name: [value] * images if _is_negative(name, value) else value
            for name, value in self.sampling.arguments().items()
        }

    def _settings(self) -> list[str]:
        """The keys of the study file that the pipeline may be called with."""
        keys = inspect.signature(type(self.pipeline).__call__).parameters
        return [
            f"sampling.{key}" if key in NAMED else f"sampling.call.{key}"
            for key in keys
            if key in NAMED or key not in OWN_KEYS
        ]

    def _interceptions(
        self, prompts: Sequence[Prompt], noise: Sequence[torch.Generator], repeated: bool
    ) -> Iterator[tuple[object, str, Callable[..., Any]]]:
        """What to replace while the pipeline runs: (owner, method, replacement)."""
        yield self._denoiser, "forward", self._network(self._denoiser.forward, prompts, repeated)
        scheduler = self.pipeline.scheduler
        if "generator" in inspect.signature(scheduler.step).parameters:
            yield scheduler, "step", _with_noise(scheduler.step, noise)
        if "embeddings" in self._caches:
            encode = self.pipeline.encode_prompt
            yield self.pipeline, "encode_prompt", self._encoder(encode, prompts)

    def _encoder(self, encode: Callable[..., Any], prompts: Sequence[Prompt]) -> Callable[..., Any]:
        """`encode_prompt` that encodes a caption, with the same other arguments, once."""
        signature = inspect.signature(encode)
        captions = [prompt.text for prompt in prompts]

        def cached(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            calls = _by_image(bound, len(prompts))
            try:
                keys = [digest(call.arguments) for call in calls]
            except UnknownValueError:
                self._refuse_if_freed(captions[0])
                return encode(*args, **kwargs)
            missing = {key: k for k, key in enumerate(keys) if key not in self._embeddings}
            if not missing:
                return joined([self._embeddings[key] for key in keys])
            self._refuse_if_freed(captions[min(missing.values())])
            output = encode(*args, **kwargs)
            with suppress(UnknownValueError):
                if len(calls) == 1:
                    self._embeddings[keys[0]] = kept(output)
                    return output
                distinct = {
                    key: encode(*call.args, **call.kwargs)
                    for key, call in dict(zip(keys, calls, strict=True)).items()
                }
                try:
                    found = apart(output, [distinct[key] for key in keys])
                except ApartError as error:
                    raise _OneByOneError(str(error)) from None
                for key, row in zip(keys, found, strict=True):
                    self._embeddings.setdefault(key, row)
            return output

        return cached

    def _refuse_if_freed(self, caption: str) -> None:
        if self._encoders_freed:
            raise GenerationError(
                f"the text encoders were freed before {caption!r} was encoded; "
                "expected one of the prompts that were prepared"
            )

    def _network(
        self, forward: Callable[..., Any], prompts: Sequence[Prompt], repeated: bool
    ) -> Callable[..., Any]:
        """The denoiser's forward for one run of the pipeline; what it returns may be remembered.

        `repeated`: these prompts went the same way before, so that the later calls may be as well:
        kept from the second time on, since most searches never go the same way twice.
        """
        signature = inspect.signature(forward)
        first = True

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.network_calls += 1
            return forward(*args, **kwargs)

        def digests(*args: Any, **kwargs: Any) -> list[bytes]:
            arguments = signature.bind(*args, **kwargs).arguments
            if len(prompts) == 1:
                return [digest(arguments)]
            return row_digests(arguments, len(prompts))

        def cached(*args: Any, **kwargs: Any) -> Any:
            nonlocal first
            cache, outputs = (
                ("first-call", self._first_outputs)
                if first
                else ("later-calls", self._later_outputs)
            )
            wanted = (first or repeated) and cache in self._caches
            first = False
            if not wanted:
                return counted(*args, **kwargs)
            try:
                keys = digests(*args, **kwargs)
            except UnknownValueError:
                return counted(*args, **kwargs)
            if all(key in outputs for key in keys):
                return joined([outputs[key] for key in keys])
            output = counted(*args, **kwargs)
            with suppress(UnknownValueError):
                if digests(*args, **kwargs) == keys:  # else it changes what it is given
                    whole = len(prompts) == 1
                    found = [kept(output)] if whole else network_rows(output, len(keys))
                    for key, row in zip(keys, found, strict=True):
                        outputs.setdefault(key, row)
            return output

        return cached


def _opaque(images: Any) -> Any:
    """Images with a fourth channel, transparency, laid on white; others as they are."""
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != 4:
        return images
    colours, alpha = images[:, :3], images[:, 3:]
    return colours * alpha + (1 - alpha)


def _drawings(
    prompts: Sequence[Prompt], coefficients: Coefficients | Sequence[Coefficients]
) -> list[Drawing]:
    """Each prompt with its coefficients."""
    if isinstance(coefficients, Coefficients):
        return [(prompt, coefficients) for prompt in prompts]
    if len(coefficients) != len(prompts):
        raise CoefficientsError(
            f"{len(coefficients)} coefficients for {len(prompts)} prompts; expected one for each "
            "prompt, or one for all"
        )
    return list(zip(prompts, coefficients, strict=True))


def _refuse_infinite(values: Tensor, prompts: Sequence[Prompt], what: str) -> None:
    """Raises GenerationError for an image's values that are not all finite."""
    finite = values.isfinite().flatten(1).all(dim=1)
    remedy = "model.dtype = 'bfloat16' or 'float32', or narrower search.bounds"
    _refuse(~finite, prompts, what, f"not finite; try {remedy}")


def _refuse_black(images: Tensor, prompts: Sequence[Prompt]) -> None:
    """Raises GenerationError for an image that is black all over."""
    black = images.flatten(1).amax(dim=1) < 1 / 255
    remedy = "model.dtype = 'bfloat16', and no safety checker"
    _refuse(black, prompts, "the image", f"black all over; try {remedy}")


def _refuse(bad: Tensor, prompts: Sequence[Prompt], what: str, why: str) -> None:
    if bad.any():
        broken = prompts[int(bad.int().argmax())]
        raise GenerationError(f"{what} of {broken.text!r} (seed {broken.seed}) is {why}")


def _is_negative(name: str, value: Any) -> bool:
    return name.startswith("negative_prompt") and isinstance(value, str)


def _by_image(bound: inspect.BoundArguments, images: int) -> list[inspect.BoundArguments]:
    """A call of `encode_prompt` taken apart into one for each image; the call itself where none of
    its prompts is a list with one caption for each image."""
    lists = {
        name: list(value)
        for name, value in bound.arguments.items()
        if "prompt" in name
        and isinstance(value, list | tuple)
        and len(value) == images
        and all(isinstance(caption, str) for caption in value)
    }
    if images == 1 or not lists:
        return [bound]
    alone = {"batch_size": 1} if bound.arguments.get("batch_size") == images else {}
    calls = []
    for index in range(images):
        call = copy.copy(bound)
        changed = alone | {name: [captions[index]] for name, captions in lists.items()}
        call.arguments = dict(bound.arguments) | changed
        calls.append(call)
    return calls


def _with_noise(step: Callable[..., Any], noise: Sequence[torch.Generator]) -> Callable[..., Any]:
    """A scheduler's step that draws from the images' own generators where it is given none."""
    signature = inspect.signature(step)

    @functools.wraps(step)
    def drawn(*args: Any, **kwargs: Any) -> Any:
        if signature.bind(*args, **kwargs).arguments.get("generator") is None:
            kwargs["generator"] = list(noise)
        return step(*args, **kwargs)

    return drawn


def _with_an_end(scheduler: Any) -> Callable[..., Any]:
    """A preconditioned scheduler's step; the last one ends the pipeline's call."""
    step = scheduler.step
    signature = inspect.signature(step)

    @functools.wraps(step)
    def ending(*args: Any, **kwargs: Any) -> Any:
        last = is_last_step(scheduler, signature.bind(*args, **kwargs).arguments["timestep"])
        output = step(*args, **kwargs)
        if last:
            raise _DenoisedError(output[0])
        return output

    return ending


class _OneByOneError(ApartError):
    """The embeddings of these captions can't be in one batch."""


class _EncodedError(QschedError):
    """The prompts are encoded; the rest of the pipeline's call is not wanted."""


class _DenoisedError(QschedError):
    """The last step was made, and returned `latents`; the rest of the call is not wanted."""

    def __init__(self, latents: Any) -> None:
        super().__init__("denoised")
        self.latents = latents
