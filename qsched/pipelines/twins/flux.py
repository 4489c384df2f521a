"""FLUX.1, of which [dev] takes guidance as an input and [schnell] none, and FLUX.2 [klein]."""

from pathlib import Path
from typing import Any

import diffusers

from qsched.pipelines.twins import autoencoders
from qsched.pipelines.twins.networks import stirred
from qsched.pipelines.twins.text import WIDTH, clip_text, clip_words, qwen_3, qwen_words, t5

_KLEIN_LAYERS = (9, 18, 27)
"""The text encoder's layers that the pipeline reads, unless it is told otherwise."""


def flux(folder: Path, *, guided: bool = False) -> Any:
    """FLUX.1; `guided`: its network takes guidance as an input."""
    tokenizer, encoder = t5()
    return diffusers.FluxPipeline(
        transformer=diffusers.FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            guidance_embeds=guided,
            axes_dims_rope=(4, 4, 8),
        ).eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            shift=3.0 if guided else 1.0, use_dynamic_shifting=guided
        ),
        vae=autoencoders.flow_kl(),
        text_encoder=clip_text("CLIPTextModel"),
        tokenizer=clip_words(folder),
        text_encoder_2=encoder,
        tokenizer_2=tokenizer,
    )


def flux_2_klein(folder: Path) -> Any:
    """FLUX.2 [klein], distilled."""
    tokenizer = qwen_words()
    return diffusers.Flux2KleinPipeline(
        transformer=stirred(
            diffusers.Flux2Transformer2DModel(
                in_channels=32,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=len(_KLEIN_LAYERS) * WIDTH,
                timestep_guidance_channels=32,
                axes_dims_rope=(4, 4, 4, 4),
                guidance_embeds=False,
            )
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=autoencoders.flux_2(),
        text_encoder=qwen_3("Qwen3ForCausalLM", tokenizer, max(_KLEIN_LAYERS) + 1),
        tokenizer=tokenizer,
        is_distilled=True,
    )
