"""Tiny pipelines of real diffusers classes with random weights: seconds instead of gigabytes."""

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderTiny,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz "


def tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer that knows single letters."""
    words = [*LETTERS.strip(), *(f"{letter}</w>" for letter in LETTERS.strip())]
    vocabulary = {word: index for index, word in enumerate(words)}
    vocabulary |= {"<|startoftext|>": len(vocabulary), "<|endoftext|>": len(vocabulary) + 1}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=12
    )


def text_config(width: int = 16) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(LETTERS) * 2 + 4,
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=12,
        projection_dim=width,
        bos_token_id=52,
        eos_token_id=53,
    )


def autoencoder(channels: int = 4) -> AutoencoderTiny:
    return AutoencoderTiny(
        latent_channels=channels,
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        scaling_factor=1.0,
    ).eval()


def sd3(folder: Path) -> StableDiffusion3Pipeline:
    """The demo's pipeline class: flow matching, two text encoders, a transformer."""
    torch.manual_seed(0)
    words = tokenizer(folder)
    pipeline = StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8,
            patch_size=1,
            in_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=32,
            caption_projection_dim=16,
            pooled_projection_dim=32,
            out_channels=4,
            pos_embed_max_size=8,
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=autoencoder(),
        text_encoder=CLIPTextModelWithProjection(text_config()).eval(),
        tokenizer=words,
        text_encoder_2=CLIPTextModelWithProjection(text_config()).eval(),
        tokenizer_2=words,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    return _quiet(pipeline)


def lcm(folder: Path) -> LatentConsistencyModelPipeline:
    """A stochastic scheduler and a UNet: injected noise, and the latents' own scale."""
    torch.manual_seed(0)
    pipeline = LatentConsistencyModelPipeline(
        vae=autoencoder(),
        text_encoder=CLIPTextModel(text_config()).eval(),
        tokenizer=tokenizer(folder),
        unet=UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=4,
            time_cond_proj_dim=8,
        ).eval(),
        scheduler=LCMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return _quiet(pipeline)


def _quiet(pipeline: DiffusionPipeline) -> DiffusionPipeline:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
