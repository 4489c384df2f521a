"""An image set on disk: numbered PNG files and the prompts that made them."""

import json
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from qsched.errors import ConfigError
from qsched.pipelines.catalog import TWIN_SIDE
from qsched.pipelines.generator import ImageGenerator
from qsched.pipelines.loading import load
from qsched.prompts import Prompt, choose, locate, read_captions, with_seeds
from qsched.quantization.schemes import Scheme
from qsched.schedule.coefficients import Coefficients
from qsched.study.defaults import named, sampling_of
from qsched.study.sections import Execution, Model, Quantization, Sampling
from qsched.study.study import load_study


def image_set(
    *,
    model: str,
    prompts: str | Path,
    out: Path,
    coefficients: Path | None = None,
    steps: int | None = None,
    quantization: str | None = None,
    count: int | None = None,
    seed: int = 0,
    batch_size: int = 16,
    twin: bool = False,
) -> tuple[Iterator[int], int]:
    """An iterator that makes the missing images a batch at a time, and how many batches there are.

    `model`: a model's name, a folder, a hub repository, ``module:function``, or a study file, whose
    model, sampling and quantization are taken. `prompts`: a file of any kind that a study may name,
    or one on the hub; `count` of its captions in a seeded order, by default all in theirs.

    Writes `out`/00000.png ... and `out`/prompts.jsonl (file, prompt, seed). An image that exists is
    kept, so an interrupted call goes on where it stopped; a folder of other prompts is refused.
    Raises QschedError before the first image.
    """
    found = Coefficients.load(coefficients) if coefficients else None
    table, sampling, scheme = _settings(model, found.steps if found else steps, quantization, twin)
    for asked in (sampling.steps, steps):
        if found and asked not in (None, found.steps):
            raise ConfigError(
                f"{coefficients}: for {found.steps} steps, and {asked} are asked for; "
                f"take {found.steps} steps or other coefficients"
            )
    captions = read_captions(locate(str(prompts), Path(), where="--prompts"))
    listed = with_seeds(
        choose(captions, count, seed=seed, where=str(prompts)), seed=seed, split="images"
    )
    _record(out / "prompts.jsonl", listed)
    missing = [index for index in range(len(listed)) if not (out / f"{index:05}.png").is_file()]

    def batches() -> Iterator[int]:
        if not missing:
            return
        pipeline = load(table, scheme, execution=Execution(batch_size=batch_size)).pipeline
        generator = ImageGenerator(
            pipeline, sampling, part=table.part, batch_size=batch_size, caches=frozenset()
        )
        used = found or Coefficients.identity(sampling.steps)
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


def _settings(
    model: str, steps: int | None, quantization: str | None, twin: bool
) -> tuple[Model, Sampling, Quantization | None]:
    """What to load and how to sample it, from a study file or from the catalog."""
    chosen = None
    if quantization:
        chosen = Quantization(scheme=Scheme.parse(quantization).name)
    if model.endswith(".toml"):
        study = load_study(model, fetch=False)
        tables = (study.twin() if twin else study).tables
        return tables.model, tables.sampling, chosen or tables.quantization
    if steps is None:
        raise ConfigError("the number of steps is missing; pass --steps or --coefficients")
    table = named(model, steps)
    sampling = sampling_of(model, Sampling(steps=steps))
    if twin:
        table = table.model_copy(update={"twin": True, "dtype": "float32"})
        sampling = sampling.model_copy(update={"height": TWIN_SIDE, "width": TWIN_SIDE})
    return table, sampling, chosen


def _record(path: Path, listed: tuple[Prompt, ...]) -> None:
    """Writes prompts.jsonl, or makes sure that the one that is there says the same."""
    rows = [
        {"file": f"{index:05}.png", "prompt": prompt.text, "seed": prompt.seed}
        for index, prompt in enumerate(listed)
    ]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise ConfigError(f"{path}: other prompts or seeds made these images; use another --out")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
