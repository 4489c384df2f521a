"""LoRA weights of twins, in the naming of their models' own files."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FILE = "twin.safetensors"
_RANK = 2
_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


def save_lora(pipeline: Any, folder: Path) -> None:
    """LoRA weights of the denoiser's attention that change what it returns."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    part = "unet" if hasattr(pipeline, "unet") else "transformer"
    network = getattr(pipeline, part)
    network.add_adapter(LoraConfig(r=_RANK, lora_alpha=_RANK, target_modules=_TARGETS))
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    save = _NAMINGS.get(type(pipeline).__name__, _diffusers_own)
    save(pipeline, part, get_peft_model_state_dict(network), folder)


def _diffusers_own(pipeline: Any, part: str, layers: Mapping[str, Tensor], folder: Path) -> None:
    """As diffusers writes them: PCM's, Hyper-FLUX's and Qwen-Image-2.1-Lightning's."""
    from diffusers.utils import convert_state_dict_to_diffusers

    converted = convert_state_dict_to_diffusers(dict(layers))
    pipeline.save_lora_weights(folder, weight_name=FILE, **{f"{part}_lora_layers": converted})


def _down_up_alpha(pipeline: Any, part: str, layers: Mapping[str, Tensor], folder: Path) -> None:
    """With down, up and alpha and no component's name: Qwen-Image-Lightning's."""
    from safetensors.torch import save_file

    named = {}
    for name, weights in layers.items():
        layer, half = name.rsplit(".lora_", 1)
        if half.startswith("A"):
            named[f"{layer}.lora_down.weight"] = weights.contiguous()
            named[f"{layer}.alpha"] = torch.tensor(float(_RANK))
        else:
            named[f"{layer}.lora_up.weight"] = weights.contiguous()
    folder.mkdir(parents=True)
    save_file(named, folder / FILE)


_NAMINGS: Mapping[str, Callable[[Any, str, Mapping[str, Tensor], Path], None]] = {
    "QwenImagePipeline": _down_up_alpha
}
