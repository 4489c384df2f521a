"""A file of weights in the place of the denoiser's own, as few-step models are often published.

    network, put = network_of(table, UNet2DConditionModel, folder / "unet", torch.float16)
    str(put)      # "weights sdxl_lightning_4step_unet.safetensors: 1680 tensors"

The file has to hold each tensor of the network in its shape, and no other: what torch and diffusers
leave out with a warning at most is an error here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from qsched import hub
from qsched.errors import HubError, ModelError
from qsched.files.documents import is_file, is_folder
from qsched.pipelines import catalog
from qsched.pipelines.failures import explained
from qsched.pipelines.folders import config_at, part_of
from qsched.pipelines.table import LoraTable, WeightsTable
from qsched.pipelines.twins import made, pipeline_twin

_LORA = ("lora_", ".lora.", "lora.down", "lora.up")
"""What names of LoRA weights have in them, in any naming."""

_ORIGINAL = ("model.diffusion_model.", "first_stage_model.", "conditioner.", "cond_stage_model.")
"""How names begin in checkpoints of whole models in the layout of their authors."""


@dataclass(frozen=True)
class PutWeights:
    """Weights that took the place of the denoiser's: their file, and of how many tensors."""

    file: str
    tensors: int

    def __str__(self) -> str:
        return f"weights {self.file}: {self.tensors} tensors"


def network_of(
    table: WeightsTable, network_class: Any, folder: Path, dtype: torch.dtype
) -> tuple[nn.Module, PutWeights]:
    """The denoiser that the config in `folder` describes, with the weights of the table's file.

    Raises ModelError, in one line, for a file that can't be had or that is not of this network.
    """
    from accelerate import init_empty_weights

    file = file_of(table, "model.weights")
    with init_empty_weights():
        network: nn.Module = network_class.from_config(network_class.load_config(folder))
    tensors = _tensors(file)
    _require_match(file, network.state_dict(), tensors)
    network.load_state_dict(tensors, assign=True)
    return network.to(dtype).eval(), PutWeights(file.name, len(tensors))


def twin_weights(twin: str) -> Path:
    """A folder with other weights for the denoiser of a pipeline's twin, as `twin.safetensors` and
    `twin.bin`. Raises ModelError if there is no such twin."""
    import diffusers
    from safetensors.torch import save_file

    pipeline = pipeline_twin(twin) / "pipeline"

    def make(folder: Path) -> None:
        index = config_at(pipeline / "model_index.json")
        part = str(part_of(index))
        network_class = getattr(diffusers, index[part][1])
        network = network_class.from_config(network_class.load_config(pipeline, subfolder=part))
        save_file(network.state_dict(), folder / "twin.safetensors")
        torch.save(network.state_dict(), folder / "twin.bin")

    return made(f"{twin}-weights", make)


def file_of(table: LoraTable | WeightsTable, key: str) -> Path:
    """The file of a table of the study file, from its folder here or from the hub.

    `key`: of the table, for errors. Raises ModelError if it can't be had.
    """
    folder = Path(table.source)
    if is_folder(folder):
        if not is_file(folder / table.file):
            raise ModelError(f"{key}.file = {table.file!r}: not in {folder}; correct it")
        return folder / table.file
    try:
        return hub.fetch_file(table.source, table.file, revision=table.revision)
    except HubError as error:
        raise ModelError(f"{key}: {error}") from error


def _tensors(file: Path) -> Mapping[str, Tensor]:
    """All tensors of a file by name. A pickle is read as weights only: no code of it runs."""
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        with explained(ModelError, f"model.weights: {file} can't be read", "copy it again"):
            return dict(load_file(file))
    if file.suffix not in catalog.PICKLES:
        raise ModelError(
            f"model.weights: {file}; expected a .safetensors file, or what torch saved "
            f"({', '.join(catalog.PICKLES)}); for GGUF name a function that builds the pipeline"
        )
    with explained(ModelError, f"model.weights: {file} can't be read", "copy it again"):
        try:
            found = torch.load(file, map_location="cpu", weights_only=True)
        except UnpicklingError as error:
            raise ModelError(
                f"model.weights: {file} holds more than weights, which could be code; convert it "
                "to safetensors"
            ) from error
    if not isinstance(found, Mapping) or not all(
        isinstance(each, Tensor) for each in found.values()
    ):
        raise ModelError(f"model.weights: {file} is no table of tensors; save a state_dict")
    return found


def _require_match(file: Path, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raises ModelError unless a file has the network's tensors, in their shapes, and no others."""
    if any(part in name for name in found for part in _LORA):
        raise ModelError(f"model.weights: {file} is a LoRA; name it as model.lora")
    if any(name.startswith(_ORIGINAL) for name in found):
        raise ModelError(
            f"model.weights: {file} is a whole model in its authors' layout; name it as "
            "model.source, with model.config"
        )
    missing, unknown = expected.keys() - found.keys(), found.keys() - expected.keys()
    shaped = [
        name for name in expected.keys() & found.keys() if expected[name].shape != found[name].shape
    ]
    if not (missing or unknown or shaped):
        return
    prefix = _prefix(expected, found)
    if prefix:
        raise ModelError(
            f"model.weights: the names in {file} begin with {prefix!r}, those of the network "
            "don't; save its state_dict alone"
        )
    first = min(missing or unknown or shaped)
    raise ModelError(
        f"model.weights: {file} is of another network: of {len(expected)} tensors {len(missing)} "
        f"are missing, {len(shaped)} have another shape, and {len(unknown)} are unknown, among "
        f"them {first!r}; take the file made for this base, or another base"
    )


def _prefix(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """What stands before each name of the network in a file that has them all; "" otherwise."""
    name = next(iter(expected))
    for candidate in (each.removesuffix(name) for each in found if each.endswith(name)):
        if candidate and all(candidate + each in found for each in expected):
            return candidate
    return ""
