"""Autoencoders of few channels, each of its model's own class."""

from typing import Any

import diffusers

from qsched.pipelines.catalog import TWIN_SIDE

_BLOCKS = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": TWIN_SIDE,
}


def kl(latents: int = 4, **config: Any) -> Any:
    """Of Stable Diffusion, FLUX.1 and Z-Image; pixels by 2."""
    config = {"block_out_channels": (8, 8), **_BLOCKS, **config}
    return diffusers.AutoencoderKL(latent_channels=latents, **config).eval()


def flow_kl() -> Any:
    """As `kl`, as those of flow-matching models are set."""
    return kl(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1)


def flux_2(latents: int = 8) -> Any:
    """Of FLUX.2 and ERNIE-Image; pixels by 2, and by 2 again in patches."""
    config = {"block_out_channels": (8, 8), **_BLOCKS}
    return diffusers.AutoencoderKLFlux2(latent_channels=latents, **config).eval()


def qwen(latents: int = 8) -> Any:
    """Of Qwen-Image and Krea 2; pixels by 4."""
    return diffusers.AutoencoderKLQwenImage(
        base_dim=16,
        z_dim=latents,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.0] * latents,
        latents_std=[1.0] * latents,
    ).eval()


def qwen_21(latents: int = 32) -> Any:
    """Of Qwen-Image-2.1, with transparency; pixels by 16."""
    return diffusers.AutoencoderKLQwenImage21(
        base_dim=8,
        decoder_base_dim=8,
        z_dim=latents,
        dim_mult=[1, 1, 2, 2, 2],
        num_res_blocks=1,
        latents_mean=[0.0] * latents,
        latents_std=[1.0] * latents,
    ).eval()


def hunyuan_image(latents: int = 32) -> Any:
    """Of HunyuanImage-2.1; pixels by 4."""
    return diffusers.AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=latents,
        block_out_channels=(32, 32, 64),
        layers_per_block=1,
        spatial_compression_ratio=4,
        sample_size=TWIN_SIDE,
        scaling_factor=0.75,
    ).eval()


def deep_compression(latents: int = 32) -> Any:
    """Of SANA; pixels by 4."""
    kinds = ("ResBlock", "ResBlock", "EfficientViTBlock")
    return diffusers.AutoencoderDC(
        latent_channels=latents,
        attention_head_dim=4,
        encoder_block_types=kinds,
        decoder_block_types=kinds,
        encoder_block_out_channels=(8, 16, 32),
        decoder_block_out_channels=(8, 16, 32),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), (5,)),
        decoder_qkv_multiscales=((), (), (5,)),
        upsample_block_type="interpolate",
        scaling_factor=0.41407,
    ).eval()
