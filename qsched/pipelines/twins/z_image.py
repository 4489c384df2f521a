"""Z-Image, whose embeddings, network inputs and outputs are lists with a tensor for each image."""

from pathlib import Path
from typing import Any

import diffusers

from qsched.pipelines.twins import autoencoders
from qsched.pipelines.twins.networks import stirred
from qsched.pipelines.twins.text import WIDTH, qwen_3, qwen_words


def z_image(folder: Path) -> Any:
    """Z-Image."""
    tokenizer = qwen_words()
    return diffusers.ZImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoders.kl(8, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1),
        text_encoder=qwen_3("Qwen3Model", tokenizer),
        tokenizer=tokenizer,
        transformer=stirred(
            diffusers.ZImageTransformer2DModel(
                in_channels=8,
                dim=96,
                n_layers=2,
                n_refiner_layers=1,
                n_heads=2,
                n_kv_heads=2,
                cap_feat_dim=WIDTH,
                axes_dims=[16, 16, 16],
                axes_lens=[1024, 32, 32],
            )
        ),
    )
