"""The self-test: caches and batches compared with plain calls, on the pipeline that will be used.

Two captions, the shortest and the longest, are drawn at the identity: by the pipeline alone, by the
generator without caches, and with them, together and apart. What differs is switched off, from what
saves the least: later calls, first call, embeddings, batches. A pipeline that doesn't repeat
itself, or doesn't follow the coefficients, is refused.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from qsched.errors import GenerationError
from qsched.prompts import Prompt
from qsched.schedule.coefficients import Coefficients

TOLERANCE = 1 / 512
"""The largest difference of a pixel in [0, 1] that counts as none on a GPU, half a step of an 8-bit
image: its kernels may add in another order. On the CPU there is none."""

ORDER = ("embeddings", "first-call", "later-calls")
"""The caches, from what saves the most."""


class Draws(Protocol):
    """What the self-test asks of an `ImageGenerator`, in its words."""

    batch_size: int

    def plain(self, prompts: Sequence[Prompt]) -> Tensor: ...

    def generate(self, prompts: Sequence[Prompt], coefficients: Coefficients) -> Tensor: ...

    def without_text_encoders(self) -> AbstractContextManager[None]: ...


class Makes(Protocol):
    """Makes a new generator of the same pipeline."""

    def __call__(self, batch_size: int, caches: frozenset[str]) -> Draws: ...


@dataclass(frozen=True)
class SelfTest:
    """What may be used. `off`: what was switched off, in words; `largest`: the largest difference
    of a pixel that was let pass. `encoders_needed`: images need the text encoders after encoding.
    `own_noise`: the pipeline gives its scheduler no generator, so plain calls can't be repeated.
    """

    caches: frozenset[str]
    batch_size: int
    encoders_needed: bool
    off: tuple[str, ...]
    largest: float
    own_noise: bool = False

    @property
    def sentence(self) -> str:
        """What was found, in one line."""
        how = f"within {self.largest:.2g}" if self.largest else "to the bit"
        same = f"plain, uncached and cached images are the same {how}"
        if self.own_noise:
            same = (
                f"uncached and cached images are the same {how}, their noise from their own seeds"
            )
        return f"{same}; switched off: {', '.join(self.off)}" if self.off else same


def self_test(
    make: Makes,
    prompts: Sequence[Prompt],
    *,
    steps: int,
    batch_size: int,
    caches: frozenset[str],
    size: tuple[int | None, int | None],
    exact: bool,
) -> SelfTest:
    """What of `caches` and batches may be used for `prompts`.

    `size`: the images' height and width, where they are set. `exact`: equal means equal to the bit,
    else within TOLERANCE. Raises GenerationError where plain calls are not images in [0, 1], can't
    be repeated, or don't follow the coefficients.
    """
    ordered = sorted(prompts, key=lambda prompt: len(prompt.text))
    test = _Test(make, (ordered[0], ordered[-1]), steps, 0.0 if exact else TOLERANCE)
    together = min(2, batch_size)
    off: list[str] = []
    if together > 1 and (why := test.neighbours(size)):
        off.append(f"batches ({why})")
        together = 1
    if together == 1:
        test.alone(size)
    found = test.caches(caches)
    off += [f"cache of {name}" for name in reversed(ORDER) if name in caches - found]
    if test.size < together:
        off.append("batches (the captions' embeddings can't be put together exactly)")
    return SelfTest(
        found,
        batch_size if test.size > 1 else 1,
        "embeddings" not in found or not test.spares_encoders(found),
        tuple(off),
        test.largest,
        test.own_noise,
    )


class _Test:
    """The comparisons, each in its turn. `size`: images a batch; `largest`, `own_noise`: as in
    `SelfTest`, so far."""

    def __init__(
        self, make: Makes, pair: tuple[Prompt, Prompt], steps: int, tolerance: float
    ) -> None:
        self.size = 2
        self.largest = 0.0
        self._make = make
        self._pair = pair
        self._other = replace(pair[1], seed=pair[1].seed ^ 1)
        self._tolerance = tolerance
        self._identity = Coefficients.identity(steps)
        self._changed = Coefficients.constant(steps, 1.1, 0.93)
        self.own_noise = False
        self._expected = torch.empty(0)

    def neighbours(self, size: tuple[int | None, int | None]) -> str | None:
        """Why captions can't be in one batch; None if their images are as beside themselves."""
        try:
            self._expected = self._reference(self._pair, size)
            apart = [self._drawn((each, each))[:1] for each in self._pair]
        except GenerationError as error:
            try:  # an error of this batch, or of any call
                self.alone(size)
            except GenerationError:
                raise error from None
            return f"the pipeline fails: {error}"
        same = self._same(torch.cat(apart), self._expected)
        return None if same else "images depend on their neighbours"

    def alone(self, size: tuple[int | None, int | None]) -> None:
        """Batches of one from here on."""
        self.size = 1
        short, long = self._pair
        self._expected = torch.cat([self._reference((short,), size), self._drawn((long,))])

    def _reference(
        self, prompts: tuple[Prompt, ...], size: tuple[int | None, int | None]
    ) -> Tensor:
        """What a batch looks like: the plain images, which the preconditioned scheduler's are equal
        to at the identity. Where plain calls can't be repeated, since the pipeline gives its
        scheduler no generator, the images with their own generators."""
        generator = self._make(len(prompts), frozenset())
        plain = generator.plain(prompts)
        _require_images(plain, size)
        ours = generator.generate(prompts, self._identity)
        if self._same(ours, plain):
            return plain
        if self._same(again := generator.plain(prompts), plain):
            raise GenerationError(
                f"self-test: at the identity the images differ from plain ones by "
                f"{_difference(ours, plain):.2g}; expected none; the pipeline treats its scheduler "
                "in a way of its own; take another model.scheduler"
            )
        if self._same(generator.generate(prompts, self._identity), ours):
            self.own_noise = True
            return ours
        raise GenerationError(
            f"self-test: two plain calls with the same seeds differ by "
            f"{_difference(again, plain):.2g}; expected the same images; a part of the pipeline "
            "draws numbers or keeps a state of its own; take another model.scheduler or pipeline"
        )

    def _drawn(self, prompts: tuple[Prompt, ...]) -> Tensor:
        """A batch drawn as the reference was."""
        generator = self._make(len(prompts), frozenset())
        if self.own_noise:
            return generator.generate(prompts, self._identity)
        return generator.plain(prompts)

    def caches(self, wanted: frozenset[str]) -> frozenset[str]:
        """Those of `wanted` that change no pixel. Raises GenerationError if coefficients don't."""
        uncached = self._make(self.size, frozenset())
        changed = uncached.generate(self._pair, self._changed)
        if torch.equal(changed, self._expected):
            raise GenerationError(
                "self-test: coefficients change no pixel; expected other images; the pipeline "
                "doesn't use its scheduler's step"
            )
        found = wanted
        if not self._holds(wanted, changed):
            found = frozenset()
            for name in ORDER:
                if name in wanted and self._holds(found | {name}, changed):
                    found |= {name}
        return found

    def _holds(self, caches: frozenset[str], changed: Tensor) -> bool:
        """Whether these caches change no pixel: filled, read, and read in another order."""
        generator = self._make(self.size, caches)
        there, back = (self._pair, self._expected), (self._pair[::-1], self._expected.flip(0))
        try:
            for prompts, expected in (there, there, back):
                images = generator.generate(prompts, self._identity)
                if generator.batch_size < self.size:
                    return self._shrunk(caches)
                if not self._same(images, expected):
                    return False
            self._drawn((self._other,) * self.size)  # what a network may remember is another's now
            return self._same(generator.generate(self._pair, self._changed), changed)
        except GenerationError:
            return False

    def _shrunk(self, caches: frozenset[str]) -> bool:
        """The same with batches of one, where a cache has to have them."""
        self.alone((None, None))
        uncached = self._make(1, frozenset())
        return self._holds(caches, uncached.generate(self._pair, self._changed))

    def spares_encoders(self, caches: frozenset[str]) -> bool:
        """Whether images of encoded captions come out without the text encoders."""
        generator = self._make(self.size, caches)
        generator.generate(self._pair, self._identity)
        try:
            with generator.without_text_encoders():
                images = generator.generate(self._pair, self._identity)
        except GenerationError:
            return False
        return self._same(images, self._expected)

    def _same(self, one: Tensor, other: Tensor) -> bool:
        difference = _difference(one, other)
        if difference <= self._tolerance:
            self.largest = max(self.largest, difference)
            return True
        return False


def _difference(one: Tensor, other: Tensor) -> float:
    """The largest difference of a pixel; infinite for other shapes."""
    return float((one - other).abs().max()) if one.shape == other.shape else float("inf")


def _require_images(images: Tensor, size: tuple[int | None, int | None]) -> None:
    """Raises GenerationError for values outside [0, 1], and for another size than was asked for."""
    low, high = float(images.min()), float(images.max())
    if not (low >= 0.0 and high <= 1.0):
        raise GenerationError(
            f"self-test: the images' values are in [{low:.3g}, {high:.3g}]; expected [0, 1]; "
            "take a text-to-image pipeline with the usual image processor"
        )
    for asked, made, name in zip(size, images.shape[2:], ("height", "width"), strict=True):
        if asked not in (None, made):
            raise GenerationError(
                f"sampling.{name} = {asked}: the pipeline makes {made}; "
                f"set sampling.{name} = {made}"
            )
