"""ERNIE-Image."""

from pathlib import Path
from typing import Any

import diffusers

from qsched.pipelines.twins import autoencoders
from qsched.pipelines.twins.networks import stirred
from qsched.pipelines.twins.text import WIDTH, mistral_3, qwen_words


def ernie_image(folder: Path) -> Any:
    """ERNIE-Image without the language model that rewrites prompts."""
    tokenizer = qwen_words()
    return diffusers.ErnieImagePipeline(
        transformer=stirred(
            diffusers.ErnieImageTransformer2DModel(
                hidden_size=32,
                num_attention_heads=2,
                num_layers=2,
                ffn_hidden_size=64,
                in_channels=32,
                out_channels=32,
                text_in_dim=WIDTH,
                rope_axes_dim=(8, 4, 4),
            )
        ),
        vae=autoencoders.flux_2(),
        text_encoder=mistral_3(tokenizer),
        tokenizer=tokenizer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=4.0),
    )
