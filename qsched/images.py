"""An image set on disk: numbered PNG files and the prompts that made them."""

import json
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from qsched.catalog import model_entry
from qsched.coefficients import Coefficients
from qsched.config import sampling_of
from qsched.errors import ConfigError
from qsched.generate import ImageGenerator
from qsched.models import denoiser, load_pipeline
from qsched.prompts import choose, read_captions, with_seeds
from qsched.quantize import quantize
from qsched.sections import Sampling


def image_set(
    *,
    model: str,
    prompts: Path,
    out: Path,
    coefficients: Path | None = None,
    steps: int | None = None,
    quantization: str = "none",
    seed: int = 0,
    batch_size: int = 16,
) -> tuple[Iterator[int], int]:
    """An iterator that makes the missing images a batch at a time, and how many batches there are.

    Writes `out`/00000.png ... and `out`/prompts.jsonl (file, prompt, seed). An image that exists is
    kept, so an interrupted call goes on where it stopped; a folder of other prompts is refused.
    Raises QschedError before the first image.
    """
    found = Coefficients.load(coefficients) if coefficients else None
    if found is None and steps is None:
        raise ConfigError("the number of steps is missing; pass --steps or --coefficients")
    count = found.steps if found else steps or 1
    if found and steps not in (None, count):
        found.require_steps(steps or 0)
    entry = model_entry(model)
    sampling = sampling_of(entry, Sampling(steps=count))
    captions = choose(read_captions(prompts), None, seed=seed, where=str(prompts))
    listed = with_seeds(captions, seed=seed, split="images")
    _record(
        out / "prompts.jsonl",
        [
            {"file": f"{index:05}.png", "prompt": prompt.text, "seed": prompt.seed}
            for index, prompt in enumerate(listed)
        ],
    )
    missing = [index for index in range(len(listed)) if not (out / f"{index:05}.png").is_file()]

    def batches() -> Iterator[int]:
        if not missing:
            return
        pipeline = load_pipeline(model)
        if quantization != "none":
            quantize(denoiser(pipeline, entry.part), quantization)
        generator = ImageGenerator(
            pipeline, sampling, part=entry.part, batch_size=batch_size, caches=frozenset()
        )
        used = found or Coefficients.identity(count)
        for start in range(0, len(missing), batch_size):
            batch = missing[start : start + batch_size]
            images = generator.generate([listed[index] for index in batch], used)
            for index, image in zip(batch, images, strict=True):
                pixels = (image.permute(1, 2, 0) * 255).round().byte().numpy()
                unfinished = out / f"{index:05}.part"
                Image.fromarray(pixels).save(unfinished, format="PNG")
                unfinished.rename(out / f"{index:05}.png")
            yield len(batch)

    return batches(), -(-len(missing) // batch_size)


def _record(path: Path, rows: list[dict[str, object]]) -> None:
    """Writes prompts.jsonl, or makes sure that the one that is there says the same."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise ConfigError(f"{path}: other prompts or seeds made these images; use another --out")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
