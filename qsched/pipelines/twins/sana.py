"""SANA-Sprint."""

from pathlib import Path
from typing import Any

import diffusers

from qsched.pipelines.twins import autoencoders
from qsched.pipelines.twins.networks import stirred
from qsched.pipelines.twins.text import WIDTH, gemma_2, gemma_words


def sana_sprint(folder: Path) -> Any:
    """SANA-Sprint, whose network takes guidance as an input."""
    tokenizer = gemma_words()
    return diffusers.SanaSprintPipeline(
        tokenizer=tokenizer,
        text_encoder=gemma_2(tokenizer),
        vae=autoencoders.deep_compression(),
        transformer=stirred(
            diffusers.SanaTransformer2DModel(
                in_channels=32,
                out_channels=32,
                num_layers=2,
                num_attention_heads=2,
                attention_head_dim=16,
                num_cross_attention_heads=2,
                cross_attention_head_dim=16,
                cross_attention_dim=32,
                caption_channels=WIDTH,
                sample_size=32,
                qk_norm="rms_norm_across_heads",
                guidance_embeds=True,
            )
        ),
        scheduler=diffusers.SCMScheduler(),
    )
