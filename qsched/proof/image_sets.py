"""Held-out image sets: made by one network after the other, measured batch by batch, not kept.

Of each set stay its scores, how it looks, its features and the first pictures; only the reference,
the full-precision images under the unmodified schedule, is kept whole, as uint8. So memory does not
grow with the number of candidates and controls.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from qsched.evidence.appearance import Appearance
from qsched.evidence.real_images import SIDE, RealImages, load_real_images
from qsched.pictures.pixels import eight_bit
from qsched.pipelines.devices import device_for, in_batches
from qsched.pipelines.generator import ImageGenerator
from qsched.pipelines.loading import Loaded
from qsched.prompts import Prompt
from qsched.proof.outcome import JAQ
from qsched.schedule.coefficients import Coefficients
from qsched.scoring import catalog as metrics
from qsched.scoring import jaq
from qsched.scoring.scorers import load_scorers
from qsched.statistics import Values
from qsched.study.study import Study

PICTURES = 8
"""Held-out prompts whose images are kept for the picture."""


@dataclass(frozen=True)
class Measured:
    """What is kept of an image set.

    `scores`: {metric: (N,)}, JAQ among them. `appearance`: a number for each guard. `features`:
    (N, D) for the distance to real images, where there are some. `pictures`: uint8 (K, H, W, 3),
    each caption's first seed.
    """

    scores: Mapping[str, Values]
    appearance: Mapping[str, float]
    features: Values | None
    pictures: np.ndarray


class Instruments:
    """What an image set is measured with: the study's scorers and held-out metrics, and the network
    of its real images.

    `objective`: the study's, in the units of the search. Raises ScoreError for what can't be had.
    """

    def __init__(self, study: Study, objective: jaq.Objective) -> None:
        tables = study.tables
        device, twin = device_for(tables.model, tables.execution), tables.model.twin
        self._scorers = load_scorers(study.scorers, device, twin=twin)
        self._metrics = load_scorers(tables.validation.metrics, device, twin=twin)
        self._real = load_real_images(
            tables.validation.reference,
            (tables.sampling.height or SIDE, tables.sampling.width or SIDE),
            device,
            twin=twin,
        )
        self._objective = objective
        self._device = device

    @property
    def weights(self) -> dict[str, Mapping[str, str]]:
        """What scorers and metrics were loaded from, {name: {file: its SHA-256}}."""
        return {**self._scorers.weights, **self._metrics.weights}

    @property
    def real(self) -> RealImages | None:
        """The real images, if the study names some."""
        return self._real

    def score(
        self, images: Tensor, prompts: Sequence[Prompt], reference: Tensor
    ) -> dict[str, list[float]]:
        """{metric: one value an image} of uint8 images beside the reference's. Smaller pieces where
        memory is short; raises GenerationError where one image is too much."""

        def scored(indices: Sequence[int]) -> dict[str, list[float]]:
            part = slice(indices[0], indices[-1] + 1)
            seen, beside = self._on_device(images[part]), self._on_device(reference[part])
            found = self._scorers.score(seen, prompts[part])
            return found | self._metrics.score(seen, prompts[part], beside)

        values: dict[str, list[float]] = {}
        for found in in_batches(range(len(images)), len(images), scored, doing="is scored"):
            for name, listed in found.items():
                values.setdefault(name, []).extend(listed)
        return values

    def features(self, images: Tensor) -> Values | None:
        """(n, D) of uint8 images; None without real images to compare with."""
        return self._real.features(images) if self._real else None

    def with_jaq(self, values: Mapping[str, list[float]]) -> dict[str, Values]:
        """{metric: (N,)}, and JAQ."""
        scores = {name: np.asarray(listed) for name, listed in values.items()}
        return {**scores, JAQ: self._objective.values(scores)}

    def _on_device(self, images: Tensor) -> Tensor:
        """uint8 images as floats in [0, 1] where the scorers are."""
        return images.to(self._device) / 255


class Measures(Protocol):
    """What `ImageSets` asks of `Instruments`, in its words."""

    def score(
        self, images: Tensor, prompts: Sequence[Prompt], reference: Tensor
    ) -> dict[str, list[float]]: ...

    def features(self, images: Tensor) -> Values | None: ...

    def with_jaq(self, values: Mapping[str, list[float]]) -> dict[str, Values]: ...


class Generates(Protocol):
    """What `ImageSets` asks of an `ImageGenerator`, in its words."""

    batch_size: int

    def prepare(self, prompts: Sequence[Prompt]) -> None: ...

    def generate(self, prompts: Sequence[Prompt], coefficients: Coefficients) -> Tensor: ...

    def shrink(self, batch_size: int) -> None: ...


class Looks(Protocol):
    """What `ImageSets` asks of an `Appearance`, in its words."""

    def add(self, images: Tensor) -> None: ...

    def values(self, captions: Sequence[str]) -> dict[str, float]: ...


class ImageSets:
    """Makes and measures the held-out images of `prompts`.

    `appearance`: a new one for each set. `on_images(n)` is called after each batch with its number
    of images. `images` counts them.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        instruments: Measures,
        on_images: Callable[[int], None],
        appearance: Callable[[], Looks] = Appearance,
    ) -> None:
        self._prompts = prompts
        self._instruments = instruments
        self._on_images = on_images
        self._appearance = appearance
        self._reference: Tensor | None = None
        self._captions = [prompt.text for prompt in prompts]
        self._shown = first_of_each(self._captions)[:PICTURES]
        self.images = 0

    @property
    def shown(self) -> tuple[str, ...]:
        """The captions of the pictures."""
        return tuple(self._captions[index] for index in self._shown)

    def measure(
        self, generator: Generates, wanted: Iterable[Coefficients]
    ) -> dict[Coefficients, Measured]:
        """One network's image sets under each of the coefficients, each distinct one once.

        The first set of all that is measured becomes the reference. Raises ScoreError or
        GenerationError.
        """
        generator.prepare(self._prompts)
        return {each: self._set(generator, each) for each in dict.fromkeys(wanted)}

    def _set(self, generator: Generates, coefficients: Coefficients) -> Measured:
        prompts = self._prompts
        becomes_reference: list[Tensor] = []
        values: dict[str, list[float]] = {}
        appearance = self._appearance()
        features: list[Values] = []
        pictures: list[np.ndarray] = []
        start = 0
        for pixels in in_batches(
            prompts,
            generator.batch_size,
            lambda batch: eight_bit(generator.generate(batch, coefficients).numpy()),
            doing="is made",
            on_halved=generator.shrink,
        ):
            images = torch.from_numpy(pixels)
            batch = prompts[start : start + len(images)]
            if self._reference is None:
                becomes_reference.append(images)
                reference = images
            else:
                reference = self._reference[start : start + len(batch)]
            for name, listed in self._instruments.score(images, batch, reference).items():
                values.setdefault(name, []).extend(listed)
            appearance.add(images / 255)
            if (seen := self._instruments.features(images)) is not None:
                features.append(seen)
            inside = range(start, start + len(batch))
            pictures += [
                images[index - start].permute(1, 2, 0).numpy()
                for index in self._shown
                if index in inside
            ]
            start += len(batch)
            self.images += len(batch)
            self._on_images(len(batch))
        if becomes_reference:
            self._reference = torch.cat(becomes_reference)
        return Measured(
            scores=self._instruments.with_jaq(values),
            appearance=appearance.values(self._captions),
            features=np.concatenate(features) if features else None,
            pictures=np.stack(pictures),
        )


def generator_of(study: Study, loaded: Loaded) -> ImageGenerator:
    """What makes a study's held-out images with one of its networks."""
    tables = study.tables
    return ImageGenerator(
        loaded.pipeline,
        tables.sampling,
        part=tables.model.part,
        batch_size=tables.execution.batch_size,
    )


def unseen(study: Study) -> tuple[str, ...]:
    """The held-out metrics that are evidence from outside the search."""
    names = study.tables.validation.metrics
    return tuple(name for name in names if metrics.independent(name, study.scorers))


def first_of_each(captions: Sequence[str]) -> list[int]:
    """The index of each caption's first seed."""
    return [captions.index(caption) for caption in dict.fromkeys(captions)]
