"""An image set on disk: numbered PNG files, the prompts of each, and what made them."""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from qsched import __version__
from qsched.errors import ConfigError, DocumentError
from qsched.files import outputs
from qsched.files.documents import is_file, json_object, shown
from qsched.libraries import installed_version
from qsched.pictures.pixels import eight_bit
from qsched.pipelines.generator import ImageGenerator
from qsched.pipelines.loading import load_model
from qsched.pipelines.table import (
    Execution,
    Model,
    Sampling,
    origins_of_model,
    packages_of_model,
    weights_of,
)
from qsched.prompts import Prompt
from qsched.quantization.backend import origin_of
from qsched.quantization.table import Quantization
from qsched.schedule.coefficients import Coefficients
from qsched.seeds import digest

MANIFEST, PROMPTS = "manifest.json", "prompts.jsonl"

_PLACES = {"name", "source", "revision", "lora", "full_precision"}
"""Keys of the model that `weights_of` tells more of, or that make none of its images."""


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

    Writes `folder`/00000.png ..., `folder`/prompts.jsonl (file, prompt, seed) and
    `folder`/manifest.json, all that an image depends on. An image that is there and whole is kept,
    so an interrupted call goes on where it stopped; images of other prompts or settings are
    refused, with what differs. Raises QschedError before the first image.
    """
    outputs.settle(folder)
    there = {index for index in range(len(prompts)) if _whole(folder / _file(index))}
    rows = [
        {"file": _file(index), "prompt": prompt.text, "seed": prompt.seed}
        for index, prompt in enumerate(prompts)
    ]
    listed = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    made_by = _settings(model, sampling, quantization, coefficients) | {"prompts": digest(listed)}
    if there:
        _require_same(folder, made_by)
    with outputs.whole(folder) as unfinished:
        manifest = json.dumps(made_by, indent=2, ensure_ascii=False) + "\n"
        (unfinished / MANIFEST).write_text(manifest, encoding="utf-8")
        (unfinished / PROMPTS).write_text(listed, encoding="utf-8")
    missing = [index for index in range(len(prompts)) if index not in there]
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
                encoded = io.BytesIO()
                Image.fromarray(pixels).save(encoded, format="PNG")
                outputs.write(folder / _file(index), encoded.getvalue())
            yield len(batch)

    return batches(), -(-len(missing) // size)


def _file(index: int) -> str:
    return f"{index:05}.png"


def _whole(path: Path) -> bool:
    """Whether an image is there, and decodes to its last pixel."""
    if not is_file(path):
        return False
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.load()
    except Exception:  # noqa: BLE001 - of a broken file its decoder raises whatever comes
        return False
    return True


def _settings(
    model: Model,
    sampling: Sampling,
    quantization: Quantization | None,
    coefficients: Coefficients,
) -> dict[str, Any]:
    """{key: value} of all that an image of a caption and seed depends on; not where weights lie."""
    backend, group_size = quantization.resolved() if quantization else (None, None)
    packages = {*packages_of_model(model), *(backend.packages if backend else ())}
    origins = dict(origins_of_model(model))
    if backend:
        origins[backend.name] = origin_of(backend.name)
    tables = {
        "model": model.model_dump(mode="json", exclude=_PLACES),
        "sampling": sampling.model_dump(mode="json"),
        "quantization": quantization.model_dump(mode="json") if quantization else {},
        "coefficients": coefficients.to_dict(),
        "versions": {"qsched": __version__}
        | {name: installed_version(name) for name in sorted(packages)},
        "plugins": {name: str(origin) for name, origin in origins.items() if origin},
    }
    found = {
        f"{table}.{key}": value for table, keys in tables.items() for key, value in keys.items()
    }
    found["quantization.group_size"] = group_size
    return found | {"model.weights": weights_of(model)}


def _require_same(folder: Path, made_by: Mapping[str, Any]) -> None:
    """Raises ConfigError, with the first key that differs, unless this made what is there."""
    try:
        before = json_object(folder / MANIFEST)
    except DocumentError as error:
        raise ConfigError(
            f"{folder / MANIFEST}: {error}, so nobody knows what made the images beside it; use "
            "another --out"
        ) from error
    if before.get("prompts") != made_by["prompts"]:
        raise ConfigError(
            f"{folder}: other prompts or seeds made these images ({PROMPTS}); use another --out"
        )
    for key in [*made_by, *(before.keys() - made_by.keys())]:
        if before.get(key) != made_by.get(key):
            raise ConfigError(
                f"{folder}: its images were made with {key} = {shown(before.get(key))}, now it is "
                f"{shown(made_by.get(key))}; use another --out"
            )
