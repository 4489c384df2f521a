"""Small networks with random weights, and how to call them: one by hand, denoisers of diffusers."""

from collections.abc import Mapping, Sequence
from typing import TypedDict

import torch
from diffusers import (
    FluxTransformer2DModel,
    ModelMixin,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from torch import Tensor, nn


class Chosen(TypedDict, total=False):
    """Which layers are quantized otherwise: arguments of `quantize`."""

    skip: Sequence[str]
    overrides: Mapping[str, str]


class Network(nn.Module):
    """A convolution, two hidden layers and an output, as a denoiser has them."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, stride=4)
        self.norm = nn.LayerNorm(16)
        self.blocks = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
        self.out = nn.Linear(16, 5)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.norm(self.patch(images).flatten(2).transpose(1, 2))
        for block in self.blocks:
            tokens = torch.relu(block(tokens))
        result: Tensor = self.out(tokens)
        return result


def by_hand() -> Network:
    torch.manual_seed(0)
    return Network().eval()


def images(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def linear(rows: list[list[float]], dtype: torch.dtype = torch.float32) -> nn.Sequential:
    weight = torch.tensor(rows, dtype=dtype)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=dtype)
    layer.weight = nn.Parameter(weight)
    return nn.Sequential(layer)


def weight_of(network: nn.Sequential) -> nn.Parameter:
    """Of its first layer."""
    return network.get_parameter("0.weight")


def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
    ).eval()


def flux() -> FluxTransformer2DModel:
    """One layer, context_embedder, has 40 inputs. Each single block has a proj_out of its own."""
    torch.manual_seed(0)
    return FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=40,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 6, 6),
    ).eval()


def sd3() -> SD3Transformer2DModel:
    torch.manual_seed(0)
    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=64,
        pooled_projection_dim=32,
        out_channels=4,
        pos_embed_max_size=8,
    ).eval()


@torch.no_grad()
def denoise(network: ModelMixin, loud: int | None = None) -> Tensor:
    """The output for a fixed batch of two images. `loud`: the one with 100 times larger inputs."""

    dtype: torch.dtype = network.dtype

    def noise(*shape: int) -> Tensor:
        numbers = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
        if loud is not None:
            numbers[loud] *= 100
        return numbers.to(dtype)

    time = torch.tensor([500, 20])
    if isinstance(network, FluxTransformer2DModel):
        output = network(
            hidden_states=noise(2, 16, 16),
            encoder_hidden_states=noise(2, 5, 40),
            pooled_projections=noise(2, 32),
            timestep=torch.tensor([0.5, 0.2], dtype=dtype),
            img_ids=torch.zeros(16, 3),
            txt_ids=torch.zeros(5, 3),
        )
    elif isinstance(network, SD3Transformer2DModel):
        output = network(noise(2, 4, 8, 8), noise(2, 5, 32), noise(2, 32), time)
    else:
        output = network(noise(2, 4, 8, 8), time, noise(2, 5, 32))
    result: Tensor = output.sample
    return result


def distance(outcome: Tensor, exact: Tensor) -> float:
    """Relative to the exact output's norm."""
    return float((outcome - exact).norm() / exact.norm())
