"""An image set on disk: numbered PNG files and the prompts that made them."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from qsched.errors import ConfigError
from qsched.pictures.pixels import eight_bit
from qsched.pipelines.generator import ImageGenerator
from qsched.pipelines.loading import load_model
from qsched.pipelines.table import Execution, Model, Sampling
from qsched.prompts import Prompt
from qsched.quantization.table import Quantization
from qsched.schedule.coefficients import Coefficients


def write_image_set(
    folder: Path,
    prompts: Sequence[Prompt],
    coefficients: Coefficients,
    *,
    model: Model,
    sampling: Sampling,
    quantization: Quantization | None = None,
    execution: Execution,
) -> tuple[Iterator[int], int]:
    """An iterator that makes the missing images a batch at a time, and how many batches there are.

    Writes `folder`/00000.png ... and `folder`/prompts.jsonl (file, prompt, seed). An image that
    exists is kept, so an interrupted call goes on where it stopped; a folder of other prompts is
    refused. Raises QschedError before the first image.
    """
    _record(folder / "prompts.jsonl", prompts)
    missing = [index for index in range(len(prompts)) if not (folder / f"{index:05}.png").is_file()]
    size = execution.batch_size

    def batches() -> Iterator[int]:
        if not missing:
            return
        pipeline = load_model(model, quantization, execution=execution).pipeline
        generator = ImageGenerator(pipeline, sampling, part=model.part, batch_size=size)
        generator.prepare(prompts)  # all, so that what is missing comes out as it would have
        for start in range(0, len(missing), size):
            batch = missing[start : start + size]
            images = generator.generate([prompts[index] for index in batch], coefficients)
            pictures = eight_bit(images.numpy()).transpose(0, 2, 3, 1)
            for index, pixels in zip(batch, pictures, strict=True):
                unfinished = folder / f"{index:05}.part"
                Image.fromarray(pixels).save(unfinished, format="PNG")
                unfinished.rename(folder / f"{index:05}.png")
            yield len(batch)

    return batches(), -(-len(missing) // size)


def _record(path: Path, prompts: Sequence[Prompt]) -> None:
    """Writes prompts.jsonl, or makes sure that the one that is there says the same."""
    rows = [
        {"file": f"{index:05}.png", "prompt": prompt.text, "seed": prompt.seed}
        for index, prompt in enumerate(prompts)
    ]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise ConfigError(f"{path}: other prompts or seeds made these images; use another --out")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
