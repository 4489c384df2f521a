"""What a diffusers folder, or a single file, says of its pipeline, read from its index and headers.

Nothing is loaded, so it takes no torch and no time: the class, the scheduler, the denoiser, what
its weights are stored in, and the size that it draws. Of a repository on the hub only that much is
fetched.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qsched import hub
from qsched.errors import DocumentError, HubError, ModelError, in_one_line
from qsched.files.documents import from_json, is_file, is_folder, json_object
from qsched.pipelines import catalog
from qsched.pipelines.agreement.kinds import denoisers
from qsched.signatures import of_diffusers

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_FLOW_SIDE = 128
"""Latents that pipelines take for a transformer without sample_size: Flux, Qwen-Image, Z-Image."""


@dataclass(frozen=True)
class Contents:
    """A pipeline as its folder describes it; None for what the folder doesn't tell.

    `pipeline`, `scheduler`: diffusers' classes. `part`: the denoiser's name. `dtype`: what most of
    its weights in floating point are stored in. `variant`: the only one that there is of its files.
    `side`: width and height that the pipeline draws where none is asked for, in pixels. `bits`: the
    library that has quantized it. `guided`: it takes guidance as an input of the network, so that
    none at all is no setting of it. `config`: of a single file, the model that it is laid out as.
    """

    pipeline: str
    scheduler: str | None = None
    part: str | None = None
    dtype: str | None = None
    variant: str | None = None
    side: int | None = None
    bits: str | None = None
    guided: bool = False
    config: str | None = None


_LAYOUTS = (
    ("conditioner.embedders.1.model.", "sdxl-base", 1024),
    ("cond_stage_model.transformer.", "lcm-lora-sd15", 512),
)
"""How names begin in single files of SDXL and of SD 1.5: (prefix, a model of the catalogue that is
laid out so, the side that it draws)."""


def contents_of(source: str, revision: str | None = None) -> Contents:
    """What a folder, a single file, or a repository on the hub, says. Raises ModelError, in words,
    if it can't be had."""
    if catalog.is_folder(source):
        return contents(Path(source))
    if catalog.is_checkpoint(source):
        return _contents_of_file(Path(source))
    if source.startswith(("/", ".", "~")) or is_folder(Path(source)):
        raise ModelError(f"no model_index.json in {source}; expected a diffusers folder")
    try:
        folder = hub.fetch_file(source, "model_index.json", revision=revision).parent
        index = config_at(folder / "model_index.json")
        for name in (*catalog.PARTS, "vae"):
            if _present(index.get(name)):
                hub.fetch_file(source, f"{name}/config.json", revision=revision)
        found = contents(folder)
        if found.dtype is None and found.part and not hub.offline():
            stored = hub.stored_weights(source, found.part, revision=revision)
            variant = _variant(list(stored))
            return replace(found, dtype=_most(stored.values()), variant=variant)
    except HubError as error:
        raise ModelError(str(error)) from error
    return found


def _contents_of_file(file: Path) -> Contents:
    """Raises ModelError for a file that isn't here, or that has no known layout."""
    names = list(_header(file)) if is_file(file) and file.suffix == ".safetensors" else []
    for prefix, model, side in _LAYOUTS:
        if any(name.startswith(prefix) for name in names):
            return Contents(
                pipeline=str(catalog.model_entry(model).pipeline),
                part=catalog.PARTS[1],
                dtype=_most([_numbers(file)]),
                side=side,
                config=model,
            )
    raise ModelError(
        f"{file}: expected a .safetensors file here with a whole SDXL or SD 1.5 in it; write the "
        "study of another by hand, with model.config and model.pipeline"
    )


def contents(folder: Path) -> Contents:
    """What a diffusers folder says. Raises ModelError if it isn't one."""
    try:
        return _contents(folder)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{folder}: its JSON files are not as diffusers writes them: {in_one_line(error)}; "
            "copy it again"
        ) from error


def _contents(folder: Path) -> Contents:
    """The same; what files of another make raise is not in words yet."""
    index = config_at(folder / "model_index.json")
    name = catalog.class_in(str(folder))
    if name is None:
        raise ModelError(f"{folder}: no model_index.json; expected a diffusers folder")
    part = part_of(index)
    config = _optional(folder / (part or "") / "config.json") if part else {}
    files = sorted(filter(is_file, (folder / part).glob("*.safetensors"))) if part else []
    scheduler: Any = index.get("scheduler")
    return Contents(
        pipeline=name,
        scheduler=str(scheduler[1]) if _present(scheduler) else None,
        part=part,
        dtype=_most(_numbers(file) for file in files),
        variant=_variant([file.name for file in files]),
        side=_side(config, _optional(folder / "vae" / "config.json"), part),
        bits=(config.get("quantization_config") or {}).get("quant_method"),
        guided=bool(config.get("guidance_embeds") or config.get("time_cond_proj_dim")),
    )


def part_of(index: Mapping[str, Any]) -> str | None:
    """The denoiser's name in a model index; None where nothing tells."""
    kind = of_diffusers(str(index.get("_class_name")))
    names = (*catalog.PARTS, *(denoisers(kind) if kind else ()))
    return next((name for name in names if _present(index.get(name))), None)


def stored_dtype(source: str) -> str | None:
    """What the weights of a folder or safetensors file on this machine are stored in; None for any
    other source."""
    if source.endswith(".safetensors") and is_file(Path(source)):
        return _most([_numbers(Path(source))])
    return contents(Path(source)).dtype if catalog.is_folder(source) else None


def predicts_v(file: str) -> bool:
    """Whether a single file on this machine is marked as trained to predict v, as some of SDXL's
    are; diffusers doesn't read the mark."""
    return file.endswith(".safetensors") and "v_pred" in _header(Path(file))


def quantized_by(source: str) -> str | None:
    """The library whose bits a folder on this machine holds; None for any other source."""
    return contents(Path(source)).bits if catalog.is_folder(source) else None


def _present(component: Any) -> bool:
    return isinstance(component, list) and component[:1] != [None]


def _variant(files: list[str]) -> str | None:
    """fp16, where the denoiser is diffusion_pytorch_model.fp16.safetensors and no other file."""
    names = {".".join(name.split(".")[1:-1]).partition("-")[0] for name in files}
    return names.pop() or None if len(names) == 1 else None


def _most(counts: Iterable[Mapping[str, int]]) -> str | None:
    """What most of the numbers in floating point are stored in."""
    numbers: Counter[str] = Counter()
    for each in counts:
        numbers.update({_DTYPES[kind]: count for kind, count in each.items() if kind in _DTYPES})
    return numbers.most_common(1)[0][0] if numbers else None


def _numbers(file: Path) -> Mapping[str, int]:
    """{kind, as the file has it: how many numbers}."""
    found: Counter[str] = Counter()
    for name, tensor in _header(file).items():
        if name != "__metadata__":
            found[tensor["dtype"]] += math.prod(tensor["shape"])
    return found


def _header(file: Path) -> dict[str, Any]:
    """What stands before the numbers of a safetensors file. Raises ModelError for a broken one."""
    try:
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = stream.read(size if size < file.stat().st_size else 0)
            found = from_json(header.decode())
    except (OSError, ValueError, DocumentError) as error:
        raise ModelError(f"{file}: no safetensors file; copy it again") from error
    return found if isinstance(found, dict) else {}


def _side(config: Mapping[str, Any], vae: Mapping[str, Any], part: str | None) -> int | None:
    """sample_size of the denoiser times what the autoencoder makes of a latent."""
    kinds = ("block_out_channels", "encoder_block_out_channels", "dim_mult")
    levels = next((vae[kind] for kind in kinds if vae.get(kind)), None)
    side = config.get("sample_size", _FLOW_SIDE if part == "transformer" else None)
    if isinstance(side, list):
        side = side[0] if len(set(side)) == 1 else None
    if not (levels and isinstance(side, int)):
        return None
    return int(side * 2 ** (len(levels) - 1))


def _optional(path: Path) -> dict[str, Any]:
    return config_at(path) if is_file(path) else {}


def config_at(path: Path) -> dict[str, Any]:
    """A JSON file of a pipeline's folder. Raises ModelError for one that can't be read."""
    try:
        return json_object(path)
    except DocumentError as error:
        raise ModelError(f"{path}: {error}; copy it again") from error
