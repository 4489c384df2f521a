"""What qsched knows by name: models, scorers and held-out metrics. Declarations only, no torch.

A study file names its model and scorers; this table says what each one is, so that files are
checked, listed and fingerprinted on machines without a GPU stack. The code that loads them is in
`models` and `score`, keyed by the same names (a test holds the two together).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qsched.errors import ModelError

DEMO_FOLDER = Path(__file__).parent / "demo"


@dataclass(frozen=True)
class ModelEntry:
    """A text-to-image model: where its diffusers pipeline comes from and how it is sampled.

    `source` is a diffusers folder, a hub repository or ``module:function``. `part` names the
    denoiser, the module that is called once per step and quantized. `call` holds further arguments
    of the pipeline's own ``__call__``.
    """

    name: str
    source: str
    description: str
    licence: str
    part: str | None = None
    steps: tuple[int, ...] | None = None
    guidance_scale: float | None = None
    height: int | None = None
    width: int | None = None
    call: Mapping[str, Any] = field(default_factory=dict)


MODELS: Mapping[str, ModelEntry] = {
    "demo": ModelEntry(
        name="demo",
        source=str(DEMO_FOLDER / "pipeline"),
        description="emoji scenes, 64 x 64 pixels, a StableDiffusion3Pipeline for 1, 2 or 4 steps",
        licence="Apache-2.0; trained on Noto Emoji (Apache-2.0) and Twemoji (CC-BY 4.0)",
        part="transformer",
        steps=(1, 2, 4),
        guidance_scale=0.0,
        height=64,
        width=64,
        call={"max_sequence_length": 0},
    )
}


SCHEMES = ("none", "w8a16", "w8a8", "w8a4", "w4a16", "w4a8", "w4a4")
"""Quantization schemes: bits of the weights and of the activations."""


@dataclass(frozen=True)
class MetricEntry:
    """A per-image metric, higher is better. `reference`: it compares with the full-precision image.

    `independent` metrics share no network with the scorers, so an improvement in one of them is
    evidence from outside the search.
    """

    name: str
    description: str
    reference: bool = False
    independent: bool = False


SCORERS: Mapping[str, MetricEntry] = {
    entry.name: entry
    for entry in (
        MetricEntry("demo-alignment", "100 * cosine of caption and image, the demo's open_clip"),
        MetricEntry("demo-quality", "no-reference quality in (0, 1), the demo's critic"),
    )
}
"""What a search may optimise: needs the image and its caption only."""

METRICS: Mapping[str, MetricEntry] = {
    entry.name: entry
    for entry in (
        MetricEntry("attributes", "share of the caption's attributes that the image shows"),
        MetricEntry(
            "similarity",
            "cosine to the full-precision image of the same seed, ImageNet EfficientNet features",
            reference=True,
            independent=True,
        ),
        MetricEntry(
            "pixels",
            "minus the RMS difference to the full-precision image, in grey levels",
            reference=True,
            independent=True,
        ),
    )
}
"""What validation may measure besides the objective: the search never sees these."""


def model_entry(name: str) -> ModelEntry:
    """The entry of a known model, or one made for ``module:function`` or a diffusers folder.

    Raises ModelError for any other name, with the names that exist.
    """
    if name in MODELS:
        return MODELS[name]
    if ":" in name or (Path(name) / "model_index.json").is_file():
        return ModelEntry(name=name, source=name, description="your own pipeline", licence="yours")
    raise ModelError(
        f"model.name = {name!r}; expected one of {', '.join(MODELS)}, a folder with a "
        "model_index.json, or 'module:function' that returns a diffusers pipeline"
    )


def weights_identity(entry: ModelEntry) -> str:
    """What tells one set of weights from another: a digest of the folder's files, or the name.

    Large files count by name, size and their first and last mebibyte, so a 10 GB checkpoint takes
    no longer than a small one.
    """
    folder = Path(entry.source)
    if not folder.is_dir():
        return entry.source
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()}:{size};".encode())
        with path.open("rb") as stream:
            digest.update(stream.read(1 << 20))
            stream.seek(max(0, size - (1 << 20)))
            digest.update(stream.read())
    return digest.hexdigest()
