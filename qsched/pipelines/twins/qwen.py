"""Qwen-Image, whose captions are padded to the longest, and Qwen-Image-2.1, with transparency."""

from pathlib import Path
from typing import Any

import diffusers
import transformers

from qsched.pipelines.twins import autoencoders
from qsched.pipelines.twins.networks import stirred
from qsched.pipelines.twins.text import WIDTH, qwen_2_5_vl, qwen_3_vl, qwen_words


def qwen_image(folder: Path) -> Any:
    """Qwen-Image; a mask is None where nothing is padded."""
    tokenizer = qwen_words()
    return diffusers.QwenImagePipeline(
        scheduler=_scheduler(),
        vae=autoencoders.qwen(),
        text_encoder=qwen_2_5_vl(tokenizer),
        tokenizer=tokenizer,
        transformer=stirred(
            diffusers.QwenImageTransformer2DModel(
                in_channels=32,
                out_channels=8,
                num_layers=2,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=WIDTH,
                axes_dims_rope=(8, 4, 4),
            )
        ),
    )


def qwen_image_21(folder: Path) -> Any:
    """Qwen-Image-2.1, which may keep the keys and values of its text."""
    tokenizer = qwen_words()
    processor = transformers.Qwen3VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(),
        tokenizer=tokenizer,
        video_processor=transformers.Qwen3VLVideoProcessor(),
        chat_template=tokenizer.chat_template,
    )
    return diffusers.QwenImage21Pipeline(
        scheduler=_scheduler(),
        vae=autoencoders.qwen_21(),
        text_encoder=qwen_3_vl("Qwen3VLForConditionalGeneration", tokenizer),
        processor=processor,
        transformer=stirred(
            diffusers.QwenImage21Transformer2DModel(
                in_channels=32,
                out_channels=32,
                num_layers=2,
                attention_head_dim=16,
                num_attention_heads=2,
                context_in_dim=WIDTH,
                axes_dims_rope=(8, 4, 4),
            )
        ),
    )


def _scheduler() -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(
        base_shift=0.5,
        max_shift=0.9,
        max_image_seq_len=8192,
        shift_terminal=0.02,
        use_dynamic_shifting=True,
    )
