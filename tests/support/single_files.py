"""A Stable Diffusion XL folder as one file in the layout of its authors, the inverse of what
diffusers does with such files; for twins, whose blocks have one layer each."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_AROUND = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE = (
    (r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2"),
    (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
    (r"conv_norm_out", "norm_out"),
    (r"conv_shortcut", "nin_shortcut"),
)
_OPEN_CLIP = (
    ("text_model.encoder.layers.", "transformer.resblocks."),
    ("layer_norm", "ln_"),
    (".fc1.", ".c_fc."),
    (".fc2.", ".c_proj."),
    (".self_attn.", ".attn."),
    ("text_model.embeddings.token_embedding", "token_embedding"),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.final_ln_.", "ln_final."),
    ("text_projection.weight", "text_projection"),
)


def in_one_file(folder: Path) -> dict[str, Tensor]:
    """The tensors of a twin's folder under their authors' names."""

    def tensors(part: str) -> Iterator[tuple[str, Tensor]]:
        for file in (folder / part).glob("*.safetensors"):
            yield from load_file(file).items()

    found = {f"model.diffusion_model.{_unet(name)}": value for name, value in tensors("unet")}
    found |= {f"first_stage_model.{_vae(name)}": value for name, value in tensors("vae")}
    clip = "conditioner.embedders.0.transformer.text_model."
    found |= {
        f"{clip}{name.removeprefix('text_model.')}": value
        for name, value in tensors("text_encoder")
    }
    found |= _open_clip(dict(tensors("text_encoder_2")))
    return {name: value.clone().contiguous() for name, value in found.items()}


def _unet(name: str) -> str:
    around, _, rest = name.rpartition(".")
    if around in _AROUND:
        return f"{_AROUND[around]}.{rest}"
    if match := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name):
        kind, number, rest = match.groups()
        place = 1 if kind == "attentions" else 2 * int(number)
        return f"middle_block.{place}.{_layer(kind, rest)}"
    match = re.match(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.(.*)", name)
    assert match, name
    way, block, kind, number, rest = match.groups()
    first = 2 * int(block) + (1 if way == "down" else 0)
    blocks = "input_blocks" if way == "down" else "output_blocks"
    if kind == "downsamplers":
        return f"{blocks}.{first + 1}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        return f"{blocks}.{first + 1}.1.{rest}"
    column = 1 if kind == "attentions" else 0
    return f"{blocks}.{first + int(number)}.{column}.{_layer(kind, rest)}"


def _layer(kind: str, name: str) -> str:
    layer, _, rest = name.partition(".")
    return f"{_RESNET[layer]}.{rest}" if kind == "resnets" else name


def _vae(name: str) -> str:
    if match := re.match(r"decoder\.up_blocks\.(\d)\.(resnets|upsamplers)\.(\d)\.(.*)", name):
        block, kind, number, rest = match.groups()
        place = f"block.{number}" if kind == "resnets" else "upsample"
        name = f"decoder.up.{1 - int(block)}.{place}.{rest}"
    for pattern, replacement in _VAE:
        name = re.sub(pattern, replacement, name)
    return name


def _open_clip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Queries, keys and values are one matrix there."""
    found: dict[str, Tensor] = {}
    for name, value in tensors.items():
        renamed = name
        for old, new in _OPEN_CLIP:
            renamed = renamed.replace(old, new)
        if match := re.match(r"(.*\.attn)\.q_proj\.(weight|bias)", renamed):
            parts = [tensors[name.replace("q_proj", f"{each}_proj")] for each in "qkv"]
            found[f"{match[1]}.in_proj_{match[2]}"] = torch.cat(parts)
        elif not re.search(r"\.[kv]_proj\.", renamed):
            found[renamed] = value.T if renamed == "text_projection" else value
    return {f"conditioner.embedders.1.model.{name}": value for name, value in found.items()}
