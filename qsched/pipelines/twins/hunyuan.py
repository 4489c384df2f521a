"""HunyuanImage-2.1."""

from pathlib import Path
from typing import Any

import diffusers

from qsched.pipelines.twins import autoencoders
from qsched.pipelines.twins.networks import stirred
from qsched.pipelines.twins.text import WIDTH, byt5, qwen_2_5_vl, qwen_words


def hunyuan_image(folder: Path) -> Any:
    """HunyuanImage-2.1, distilled: its network takes guidance and the next step's time."""
    tokenizer = qwen_words()
    letters, reader = byt5()
    return diffusers.HunyuanImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=4.0),
        vae=autoencoders.hunyuan_image(),
        text_encoder=qwen_2_5_vl(tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=reader,
        tokenizer_2=letters,
        transformer=stirred(
            diffusers.HunyuanImageTransformer2DModel(
                in_channels=32,
                out_channels=32,
                num_attention_heads=2,
                attention_head_dim=16,
                num_layers=1,
                num_single_layers=1,
                num_refiner_layers=1,
                text_embed_dim=WIDTH,
                text_embed_2_dim=32,
                rope_axes_dim=(8, 8),
                guidance_embeds=True,
                use_meanflow=True,
            )
        ),
    )
