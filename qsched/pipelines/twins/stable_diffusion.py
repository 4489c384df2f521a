"""Stable Diffusion 1, XL and 3, and latent consistency models."""

from pathlib import Path
from typing import Any

import diffusers
import transformers

from qsched.pipelines.catalog import TWIN_SIDE
from qsched.pipelines.twins import autoencoders
from qsched.pipelines.twins.text import clip_text, clip_words, t5

_NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def stable_diffusion(folder: Path) -> Any:
    """Stable Diffusion 1."""
    return diffusers.StableDiffusionPipeline(
        **_parts(folder),
        unet=_unet(cross_attention_dim=32),
        scheduler=diffusers.PNDMScheduler(**_NOISE, steps_offset=1, skip_prk_steps=True),
    )


def latent_consistency(folder: Path) -> Any:
    """LCM, whose network takes guidance as an input."""
    return diffusers.LatentConsistencyModelPipeline(
        **_parts(folder),
        unet=_unet(cross_attention_dim=32, time_cond_proj_dim=8),
        scheduler=diffusers.LCMScheduler(**_NOISE),
    )


def stable_diffusion_xl(folder: Path) -> Any:
    """SDXL."""
    words = clip_words(folder)
    return diffusers.StableDiffusionXLPipeline(
        vae=autoencoders.kl(force_upcast=True),
        text_encoder=clip_text("CLIPTextModel"),
        tokenizer=words,
        text_encoder_2=clip_text("CLIPTextModelWithProjection"),
        tokenizer_2=words,
        unet=_unet(
            cross_attention_dim=64,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 32,
            use_linear_projection=True,
        ),
        scheduler=diffusers.EulerDiscreteScheduler(**_NOISE),
    )


def stable_diffusion_3(folder: Path) -> Any:
    """Stable Diffusion 3 without its T5."""
    return _stable_diffusion_3(folder, None, None)


def stable_diffusion_3_5(folder: Path) -> Any:
    """Stable Diffusion 3.5 with its T5."""
    return _stable_diffusion_3(folder, *t5(width=64), qk_norm="rms_norm")


def _stable_diffusion_3(folder: Path, tokenizer: Any, encoder: Any, **config: Any) -> Any:
    words = clip_words(folder)
    return diffusers.StableDiffusion3Pipeline(
        transformer=diffusers.SD3Transformer2DModel(
            sample_size=TWIN_SIDE // 2,
            patch_size=2,
            in_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=64,
            caption_projection_dim=32,
            pooled_projection_dim=64,
            out_channels=4,
            pos_embed_max_size=TWIN_SIDE // 2,
            **config,
        ).eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoders.flow_kl(),
        text_encoder=clip_text("CLIPTextModelWithProjection"),
        tokenizer=words,
        text_encoder_2=clip_text("CLIPTextModelWithProjection"),
        tokenizer_2=words,
        text_encoder_3=encoder,
        tokenizer_3=tokenizer,
    )


def _parts(folder: Path) -> dict[str, Any]:
    """What Stable Diffusion 1 and LCM have in common."""
    return {
        "vae": autoencoders.kl(),
        "text_encoder": clip_text("CLIPTextModel"),
        "tokenizer": clip_words(folder),
        "safety_checker": _safety_checker(),
        "feature_extractor": transformers.CLIPImageProcessor(
            size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}
        ),
    }


def _unet(**config: Any) -> Any:
    return diffusers.UNet2DConditionModel(
        sample_size=TWIN_SIDE // 2,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=8,
        **config,
    ).eval()


def _safety_checker() -> Any:
    """As the real ones, it would blacken images; loading has to switch it off."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

    tower = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1}
    tower |= {"num_attention_heads": 2, "projection_dim": 8}
    vision = {**tower, "image_size": 8, "patch_size": 4}
    config = transformers.CLIPConfig(vision_config=vision, text_config=tower, projection_dim=8)
    checker = StableDiffusionSafetyChecker(config)
    checker.concept_embeds_weights.data.fill_(-2.0)  # every image is unsafe
    return checker.eval()
