"""The self-test: caches and batches compared with plain calls, on the pipeline that will be used.

Two captions, the shortest and the longest, are drawn by the pipeline alone, together and apart, by
the generator without caches, and with them: filled under other coefficients, read at the identity
in another order, and at last without the text encoders. Then each under coefficients of its own, in
one batch, three times over. That is ten batches of two images, and one that needs no network. What
differs is switched off, each with those before it: the cache of later calls, of the first call, of
embeddings, and batches; and by itself, batches of images with coefficients of their own. A pipeline
that doesn't repeat itself, or doesn't follow the coefficients, is refused.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor

from qsched.errors import GenerationError, ScheduleError
from qsched.prompts import Prompt
from qsched.schedule.coefficients import Coefficients

TOLERANCE = 1 / 512
"""The largest difference of a pixel in [0, 1] that counts as none on a GPU, half a step of an 8-bit
image: its kernels may add in another order. It was never run on one. On the CPU there is none."""

ORDER = ("later-calls", "first-call", "embeddings")
"""The caches, in the order in which they are switched off."""

VERSION = 2
"""Of the stored form of a `SelfTest`, and of what it was compared by."""


class Draws(Protocol):
    """What the self-test asks of an `ImageGenerator`, in its words."""

    batch_size: int

    def plain(self, prompts: Sequence[Prompt]) -> Tensor: ...

    def generate(
        self, prompts: Sequence[Prompt], coefficients: Coefficients | Sequence[Coefficients]
    ) -> Tensor: ...

    def without_text_encoders(self) -> AbstractContextManager[None]: ...


class Makes(Protocol):
    """Makes a new generator of the same pipeline."""

    def __call__(self, batch_size: int, caches: frozenset[str]) -> Draws: ...


@dataclass(frozen=True)
class SelfTest:
    """What may be used. `pairs`: it was made for batches, else for batches of one image; `batches`:
    they may have more than one, and `mixed`: these may have coefficients of their own.
    `encoders_needed`: images need the text encoders after encoding.
    `off`: what was switched off, in words; `largest`: the largest difference of a pixel that was
    let pass. `own_noise`: the pipeline gives its scheduler no generator, so plain calls can't be
    repeated.
    """

    caches: frozenset[str]
    pairs: bool
    batches: bool
    mixed: bool
    encoders_needed: bool
    off: tuple[str, ...] = ()
    largest: float = 0.0
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

    def suits(self, batch_size: int) -> bool:
        """Whether it was made for batches of this size."""
        return self.pairs == (batch_size > 1)

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold of it, for `from_dict`."""
        return asdict(self) | {
            "version": VERSION,
            "caches": sorted(self.caches),
            "off": list(self.off),
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "SelfTest | None":
        """What `to_dict` stored; None for that of another version, which has to be made again."""
        found = dict(stored)
        names = {field.name for field in fields(cls)}
        if found.pop("version", None) != VERSION or found.keys() != names:
            return None
        return cls(**found | {"caches": frozenset(found["caches"]), "off": tuple(found["off"])})


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
    test = _Test(make, (ordered[0], ordered[-1]), steps, size, 0.0 if exact else TOLERANCE)
    pairs = batch_size > 1
    if pairs:
        test.together()
    else:
        test.alone("")
    found = test.held(caches)
    off = [f"cache of {name}" for name in ORDER if name in caches - found]
    off += [f"batches ({test.why})"] if test.why else []
    unlike = test.unlike(found) if test.images > 1 else ""
    off += [f"batches of several coefficients ({unlike})"] if unlike else []
    return SelfTest(
        found,
        pairs,
        test.images > 1,
        test.images > 1 and not unlike,
        not test.spares_encoders,
        tuple(off),
        test.largest,
        test.own_noise,
    )


class _Test:
    """The comparisons, each in its turn. `images`: of a batch, and `why` no more;
    `spares_encoders`: images come out without them; `largest`, `own_noise`: as in `SelfTest`."""

    def __init__(
        self,
        make: Makes,
        pair: tuple[Prompt, Prompt],
        steps: int,
        size: tuple[int | None, int | None],
        tolerance: float,
    ) -> None:
        self.images = 2
        self.why = ""
        self.spares_encoders = False
        self.largest = 0.0
        self.own_noise = False
        self._make = make
        self._pair = pair
        self._size = size
        self._tolerance = tolerance
        self._identity = Coefficients.identity(steps)
        self._changed = Coefficients.constant(steps, 1.1, 0.93)
        self._expected = self._moved = torch.empty(0)

    def together(self) -> None:
        """Batches of two captions, if their images are as beside themselves."""
        try:
            self._expected = self._reference(self._pair)
            apart = [self._drawn((each, each))[:1] for each in self._pair]
        except GenerationError as error:
            try:  # an error of this batch, or of any call
                self.alone(f"the pipeline fails: {error}")
            except GenerationError:
                raise error from None
            return
        if not self._same(torch.cat(apart), self._expected):
            self.alone("images depend on their neighbours")

    def alone(self, why: str) -> None:
        """Batches of one from here on."""
        self.images, self.why = 1, why
        short, long = self._pair
        self._expected = torch.cat([self._reference((short,)), self._drawn((long,))])

    def _reference(self, prompts: tuple[Prompt, ...]) -> Tensor:
        """What a batch looks like: the plain images, which the preconditioned scheduler's are equal
        to at the identity. Where plain calls can't be repeated, since the pipeline gives its
        scheduler no generator, the images with their own generators."""
        generator = self._make(len(prompts), frozenset())
        plain = generator.plain(prompts)
        _require_images(plain, self._size)
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

    def held(self, caches: frozenset[str]) -> frozenset[str]:
        """Those of `caches` that change no pixel, in batches of one if there are none in others.
        Raises GenerationError where images without any differ, too."""
        for left in dict.fromkeys(
            caches.intersection(ORDER[off:]) for off in range(len(ORDER) + 1)
        ):
            if self._holds(left):
                return left
        if self.images > 1:
            self.alone("images depend on their order")
            return self.held(caches)
        raise GenerationError(
            "self-test: images in another order differ, without any cache; expected the same; a "
            "part of the pipeline keeps a state of its own; take another pipeline"
        )

    def _holds(self, caches: frozenset[str]) -> bool:
        """Whether these caches change no pixel: filled under other coefficients, read in another
        order, and read again, with the later calls, without the text encoders. Raises
        GenerationError if coefficients change none, either."""
        generator = self._make(self.images, caches)
        there, back = (self._pair, self._expected), (self._pair[::-1], self._expected.flip(0))
        try:
            self._moved = generator.generate(self._pair, self._changed)
            if generator.batch_size < self.images:
                self.alone("the captions' embeddings can't be put together exactly")
                return self._holds(caches)
            same = all(self._as_expected(generator, *each) for each in (back, there))
            if same:
                spared = "embeddings" in caches and self._without_encoders(generator, *back)
                same = spared or self._as_expected(generator, *back)
                self.spares_encoders = spared
        except GenerationError:
            if not caches:
                raise
            return False
        if torch.equal(self._moved, self._expected):
            raise GenerationError(
                "self-test: coefficients change no pixel; expected other images; the pipeline "
                "doesn't use its scheduler's step"
            )
        return same

    def unlike(self, caches: frozenset[str]) -> str:
        """Why images under coefficients of their own can't share a batch, with these caches; ""
        where they are what they are beside images under the same: either way, and once more, so
        that later calls come from the cache."""
        generator = self._make(self.images, caches)
        ways = (self._changed, self._identity), (self._identity, self._changed)
        expected = (
            torch.stack([self._moved[0], self._expected[1]]),
            torch.stack([self._expected[0], self._moved[1]]),
        )
        try:
            same = all(
                self._same(generator.generate(self._pair, ways[k]), expected[k]) for k in (0, 1, 0)
            )
        except (GenerationError, ScheduleError) as error:
            return f"the pipeline fails: {error}"
        return "" if same else "images depend on their neighbours' coefficients"

    def _as_expected(self, generator: Draws, prompts: Sequence[Prompt], expected: Tensor) -> bool:
        return self._same(generator.generate(prompts, self._identity), expected)

    def _without_encoders(
        self, generator: Draws, prompts: Sequence[Prompt], expected: Tensor
    ) -> bool:
        """Whether images of encoded captions come out without the text encoders."""
        try:
            with generator.without_text_encoders():
                return self._as_expected(generator, prompts, expected)
        except GenerationError:
            return False

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
