"""Krea 2, whose text encoder is read at many layers."""

from pathlib import Path
from typing import Any

import diffusers

from qsched.pipelines.twins import autoencoders
from qsched.pipelines.twins.networks import stirred
from qsched.pipelines.twins.text import WIDTH, qwen_3_vl, qwen_words


def krea_2(folder: Path) -> Any:
    """Krea 2, distilled."""
    tokenizer = qwen_words()
    return diffusers.Krea2Pipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            max_image_seq_len=6400, use_dynamic_shifting=True
        ),
        vae=autoencoders.qwen(),
        text_encoder=qwen_3_vl("Qwen3VLModel", tokenizer),
        tokenizer=tokenizer,
        transformer=stirred(
            diffusers.Krea2Transformer2DModel(
                in_channels=32,
                num_layers=2,
                attention_head_dim=16,
                num_attention_heads=2,
                num_key_value_heads=1,
                intermediate_size=64,
                timestep_embed_dim=32,
                text_hidden_dim=WIDTH,
                num_text_layers=2,
                text_num_attention_heads=2,
                text_num_key_value_heads=2,
                text_intermediate_size=64,
                num_layerwise_text_blocks=1,
                num_refiner_text_blocks=1,
                axes_dims_rope=(8, 4, 4),
            )
        ),
        text_encoder_select_layers=(1, 2),
        is_distilled=True,
    )
