"""Four captions drawn by the full-precision and by the quantized network, and how they look."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qsched.evidence import appearance
from qsched.evidence.impression import Alignment, Impression
from qsched.pictures.pixels import eight_bit
from qsched.pictures.sheets import Pictures
from qsched.pipelines.devices import device_for, free_memory, in_batches
from qsched.pipelines.loading import Loaded, load_model
from qsched.prompts import Prompt
from qsched.proof.controls import full_precision
from qsched.proof.image_sets import generator_of
from qsched.schedule.coefficients import Coefficients
from qsched.scoring.scorers import Scorers, load_scorers
from qsched.study.study import Study

CAPTIONS = 4


@dataclass(frozen=True)
class Preview:
    """`impressions`: by row of the pictures. `network`: what quantization covered, in a line."""

    pictures: Pictures
    impressions: dict[str, Impression]
    network: str


def draw(study: Study) -> Preview:
    """Draws a study's first calibration captions under the unmodified schedule.

    Of a network that is quantized already and has no other to compare with there is one row. Raises
    ModelError, QuantizationError, GenerationError or ScoreError.
    """
    tables = study.tables
    small = tables.execution.model_dump()
    small["batch_size"] = min(CAPTIONS, tables.execution.batch_size)
    study = study.with_tables({"execution": small})
    prompts = study.calibration[:CAPTIONS]
    device, twin = device_for(tables.model, tables.execution), tables.model.twin
    rows: dict[str, np.ndarray] = {}
    model, execution = tables.model, study.tables.execution
    if model.full_precision or tables.quantization.scheme != "none":
        reference = full_precision(model, tables.sampling.steps)
        rows["full_precision"] = _images(study, load_model(reference, execution=execution), prompts)
        free_memory()
    loaded = load_model(model, tables.quantization, execution=execution)
    summary = loaded.summary
    rows["identity"] = _images(study, loaded, prompts)
    del loaded
    free_memory()
    scorers = {name: load_scorers([name], device, twin=twin) for name in study.scorers}
    impressions = {
        name: _impression(torch.from_numpy(images).to(device) / 255, prompts, scorers)
        for name, images in rows.items()
    }
    captions = tuple(prompt.text for prompt in prompts)
    shown = {name: images.transpose(0, 2, 3, 1) for name, images in rows.items()}
    return Preview(Pictures(captions, shown, {}), impressions, summary)


def _images(study: Study, loaded: Loaded, prompts: Sequence[Prompt]) -> np.ndarray:
    """(N, 3, H, W) uint8 under the identity."""
    generator = generator_of(study, loaded)
    generator.prepare(prompts)
    plain = Coefficients.identity(study.tables.sampling.steps)
    batches = in_batches(
        prompts,
        generator.batch_size,
        lambda batch: eight_bit(generator.generate(batch, plain).numpy()),
        doing="is made",
        on_halved=generator.shrink,
    )
    return np.concatenate(list(batches))


def _impression(
    images: Tensor, prompts: Sequence[Prompt], scorers: dict[str, Scorers]
) -> Impression:
    looks = (appearance.contrast, appearance.saturation, appearance.sharpness)
    contrast, saturation, sharpness = (float(look(images).mean()) for look in looks)
    return Impression(contrast, saturation, sharpness, _alignment(images, prompts, scorers))


def _alignment(
    images: Tensor, prompts: Sequence[Prompt], scorers: dict[str, Scorers]
) -> Alignment | None:
    """By the first scorer whose values depend on the captions, or are clipped for all of them."""
    for name, scorer in scorers.items():
        by_caption = [scorer.score(images, [prompt] * len(images))[name] for prompt in prompts]
        by_image = list(zip(*by_caption, strict=True))
        if any(values != by_caption[0] for values in by_caption) or len({*by_image}) == 1:
            return Alignment.of(name, by_image)
    return None
