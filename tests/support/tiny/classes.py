"""Text-to-image pipeline classes of diffusers that the catalog has no model of, tiny.

case = CLASSES["ChromaPipeline"]
pipeline = case.make()
pipeline(prompt="a cat", **case.call, **case.guided)
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from tests.support.tiny import parts
from tests.support.tiny.parts import WIDTH, flow, loud, speller


@dataclass(frozen=True)
class Case:
    """`unguided` and `guided`: what else the pipeline is called with."""

    build: Callable[[], Any]
    unguided: Mapping[str, Any] = field(default_factory=lambda: {"guidance_scale": 1.0})
    guided: Mapping[str, Any] = field(
        default_factory=lambda: {"guidance_scale": 4.0, "negative_prompt": "bad"}
    )

    def make(self) -> Any:
        torch.manual_seed(0)
        pipeline = self.build()
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def aura_flow() -> Any:
    from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel

    network = AuraFlowTransformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=WIDTH,
        out_channels=4,
        pos_embed_max_size=256,
    )
    return AuraFlowPipeline(
        tokenizer=speller(),
        text_encoder=parts.t5("UMT5"),
        vae=parts.autoencoder(),
        transformer=loud(network),
        scheduler=flow(),
    )


def bria() -> Any:
    from diffusers import BriaPipeline, BriaTransformer2DModel

    network = BriaTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=None,
        axes_dims_rope=[0, 4, 4],
    )
    return BriaPipeline(
        transformer=loud(network),
        scheduler=flow(),
        vae=parts.autoencoder(shift_factor=0),
        text_encoder=parts.t5(),
        tokenizer=speller(),
    )


def chroma() -> Any:
    from diffusers import ChromaPipeline, ChromaTransformer2DModel

    network = ChromaTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=[4, 4, 8],
        approximator_hidden_dim=32,
        approximator_layers=1,
        approximator_num_channels=16,
    )
    return ChromaPipeline(
        scheduler=flow(),
        vae=parts.plain_autoencoder(),
        text_encoder=parts.t5(),
        tokenizer=speller(),
        transformer=loud(network),
    )


def cog_view_3() -> Any:
    from diffusers import (
        CogVideoXDDIMScheduler,
        CogView3PlusPipeline,
        CogView3PlusTransformer2DModel,
    )

    network = CogView3PlusTransformer2DModel(
        patch_size=2,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        out_channels=4,
        text_embed_dim=WIDTH,
        time_embed_dim=8,
        condition_dim=2,
        pos_embed_max_size=8,
        sample_size=8,
    )
    return CogView3PlusPipeline(
        tokenizer=speller(),
        text_encoder=parts.t5(),
        vae=parts.autoencoder(),
        transformer=loud(network),
        scheduler=CogVideoXDDIMScheduler(),
    )


def cog_view_4() -> Any:
    from diffusers import CogView4Pipeline, CogView4Transformer2DModel

    network = CogView4Transformer2DModel(
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        out_channels=4,
        text_embed_dim=WIDTH,
        time_embed_dim=8,
        condition_dim=4,
    )
    return CogView4Pipeline(
        tokenizer=speller(padding_side="left"),
        text_encoder=parts.decoder_only("GlmModel"),
        vae=parts.autoencoder(),
        transformer=loud(network),
        scheduler=flow(
            base_shift=0.25,
            max_shift=0.75,
            base_image_seq_len=256,
            use_dynamic_shifting=True,
            time_shift_type="linear",
        ),
    )


def cosmos_2() -> Any:
    from diffusers import (
        AutoencoderKLWan,
        ConfigMixin,
        Cosmos2TextToImagePipeline,
        CosmosTransformer3DModel,
        ModelMixin,
    )

    class Unchecked(ModelMixin, ConfigMixin):  # type: ignore[misc]
        """In place of the guardrail, which is a package and a model of its own."""

        def __init__(self) -> None:
            super().__init__()
            self.none = torch.nn.Parameter(torch.zeros(1))

        def check_text_safety(self, text: str) -> bool:
            return True

        def check_video_safety(self, video: Any) -> Any:
            return video

    network = CosmosTransformer3DModel(
        in_channels=16,
        out_channels=16,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        mlp_ratio=2,
        text_embed_dim=WIDTH,
        adaln_lora_dim=4,
        max_size=(4, 32, 32),
        patch_size=(1, 2, 2),
        rope_scale=(2.0, 1.0, 1.0),
        concat_padding_mask=True,
        extra_pos_embed_type="learnable",
    )
    vae = AutoencoderKLWan(
        base_dim=3,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )
    return Cosmos2TextToImagePipeline(
        text_encoder=parts.t5(),
        tokenizer=speller(),
        transformer=loud(network),
        vae=vae.eval(),
        scheduler=flow(use_karras_sigmas=True),
        safety_checker=Unchecked(),
    )


def hi_dream() -> Any:
    from diffusers import HiDreamImagePipeline, HiDreamImageTransformer2DModel

    network = HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_channels=[WIDTH, WIDTH],
        text_emb_dim=2 * WIDTH,
        num_routed_experts=4,
        num_activated_experts=2,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(32, 32),
        llama_layers=(0, 1),
    )
    made = HiDreamImagePipeline(
        scheduler=flow(),
        vae=parts.plain_autoencoder(),
        text_encoder=parts.clip("CLIPTextModelWithProjection"),
        tokenizer=speller(longest=parts.CONTEXT),
        text_encoder_2=parts.clip("CLIPTextModelWithProjection"),
        tokenizer_2=speller(longest=parts.CONTEXT),
        text_encoder_3=parts.t5(),
        tokenizer_3=speller(),
        text_encoder_4=parts.decoder_only("LlamaForCausalLM", attn_implementation="eager"),
        tokenizer_4=speller(),
        transformer=loud(network),
    )
    made.default_sample_size = 16  # it makes images of this area, whatever is asked for
    return made


def hunyuan_dit(kind: str = "HunyuanDiTPipeline") -> Any:
    import diffusers
    from transformers import BertConfig, BertModel

    network = diffusers.HunyuanDiT2DModel(
        sample_size=16,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        in_channels=4,
        cross_attention_dim=WIDTH,
        cross_attention_dim_t5=WIDTH,
        pooled_projection_dim=16,
        hidden_size=24,
        activation_fn="gelu-approximate",
    )
    encoder = BertModel(
        BertConfig(
            vocab_size=len(parts.WORDS),
            hidden_size=WIDTH,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=WIDTH,
        )
    )
    return getattr(diffusers, kind)(
        vae=parts.autoencoder(levels=4),
        text_encoder=encoder.eval(),
        tokenizer=speller(longest=77),
        transformer=loud(network),
        scheduler=diffusers.DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        text_encoder_2=parts.t5(),
        tokenizer_2=speller(longest=256),
    )


def kandinsky_3() -> Any:
    from diffusers import DDPMScheduler, Kandinsky3Pipeline, Kandinsky3UNet, VQModel

    movq = VQModel(
        block_out_channels=[32, 32, 32, 32],
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=32,
        norm_type="spatial",
        num_vq_embeddings=12,
        vq_embed_dim=4,
    )
    network = Kandinsky3UNet(
        in_channels=4,
        time_embedding_dim=4,
        groups=2,
        attention_head_dim=4,
        layers_per_block=3,
        block_out_channels=(32, 64),
        cross_attention_dim=4,
        encoder_hid_dim=WIDTH,
    )
    return Kandinsky3Pipeline(
        tokenizer=speller(),
        text_encoder=parts.t5(),
        unet=network.eval(),
        scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=True),
        movq=movq.eval(),
    )


def kandinsky_5() -> Any:
    from diffusers import Kandinsky5T2IPipeline, Kandinsky5Transformer3DModel

    network = Kandinsky5Transformer3DModel(
        in_visual_dim=16,
        in_text_dim=WIDTH,
        in_text_dim2=16,
        time_dim=16,
        out_visual_dim=16,
        patch_size=(1, 2, 2),
        model_dim=16,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=2,
        axes_dims=(1, 1, 2),
        visual_cond=False,
        attention_type="regular",
    )
    made = Kandinsky5T2IPipeline(
        transformer=loud(network),
        vae=parts.plain_autoencoder(16, levels=4),
        text_encoder=parts.qwen_vl(),
        tokenizer=speller(longest=1024),
        text_encoder_2=parts.clip(width=16),
        tokenizer_2=speller(longest=77),
        scheduler=flow(shift=7.0),
    )
    made.resolutions = [(32, 32)]
    return made


def _kolors_encoder() -> Any:
    from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel

    encoder = ChatGLMModel(
        ChatGLMConfig(
            num_layers=2,
            padded_vocab_size=len(parts.WORDS),
            hidden_size=WIDTH,
            ffn_hidden_size=WIDTH,
            kv_channels=16,
            num_attention_heads=2,
            seq_length=512,
            multi_query_attention=True,
            multi_query_group_num=2,
            add_qkv_bias=True,
            rmsnorm=True,
            post_layer_norm=True,
            original_rope=True,
        )
    )
    with torch.no_grad():
        for parameter in encoder.parameters():  # they are made without being filled
            parameter.normal_(std=0.3)
    return encoder.eval()


class _WithPositions:
    """As ChatGLM's tokenizer, it also returns the tokens' positions."""

    model_max_length = 256

    def __init__(self) -> None:
        self._speller = speller(longest=256, padding_side="left")

    def __call__(self, *args: Any, **options: Any) -> Any:
        found = self._speller(*args, **options)
        if "return_tensors" in options:
            found["position_ids"] = (found["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        return found


def kolors(kind: str = "KolorsPipeline") -> Any:
    import diffusers

    return getattr(diffusers, kind)(
        vae=parts.autoencoder(),
        text_encoder=_kolors_encoder(),
        tokenizer=_WithPositions(),
        unet=parts.unet(
            cross_attention_dim=WIDTH,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + WIDTH,
            use_linear_projection=True,
        ),
        scheduler=diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear"),
    )


def long_cat() -> Any:
    from diffusers import LongCatImagePipeline, LongCatImageTransformer2DModel

    network = LongCatImageTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=[4, 4, 8],
    )
    return LongCatImagePipeline(
        scheduler=flow(),
        vae=parts.plain_autoencoder(16),
        text_encoder=parts.qwen_vl(),
        tokenizer=speller(longest=1024),
        text_processor=speller(longest=1024),
        transformer=loud(network),
    )


def lumina() -> Any:
    from diffusers import LuminaNextDiT2DModel, LuminaPipeline

    network = LuminaNextDiT2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        hidden_size=32,
        num_layers=2,
        num_attention_heads=4,
        num_kv_heads=2,
        multiple_of=16,
        ffn_dim_multiplier=None,
        norm_eps=1e-5,
        learn_sigma=True,
        qk_norm=True,
        cross_attention_dim=WIDTH,
        scaling_factor=1.0,
    )
    return LuminaPipeline(
        transformer=loud(network),
        scheduler=flow(),
        vae=parts.autoencoder(levels=4),
        text_encoder=parts.decoder_only("GemmaModel"),
        tokenizer=speller(padding_side="right"),
    )


def lumina_2() -> Any:
    from diffusers import Lumina2Pipeline, Lumina2Transformer2DModel

    network = Lumina2Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        hidden_size=32,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=2,
        multiple_of=16,
        ffn_dim_multiplier=None,
        norm_eps=1e-5,
        scaling_factor=1.0,
        axes_dim_rope=[8, 4, 4],
        axes_lens=[512, 32, 32],
        cap_feat_dim=WIDTH,
    )
    return Lumina2Pipeline(
        transformer=loud(network),
        scheduler=flow(),
        vae=parts.plain_autoencoder(levels=4),
        text_encoder=parts.decoder_only("Gemma2Model"),
        tokenizer=speller(padding_side="right"),
    )


def nucleus() -> Any:
    from diffusers import (
        AutoencoderKLQwenImage,
        NucleusMoEImagePipeline,
        NucleusMoEImageTransformer2DModel,
    )

    network = NucleusMoEImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(8, 4, 4),
        moe_enabled=False,
        capacity_factors=[8.0, 8.0],
    )
    vae = AutoencoderKLQwenImage(
        base_dim=24,
        z_dim=4,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    return NucleusMoEImagePipeline(
        transformer=loud(network),
        scheduler=flow(),
        vae=vae.eval(),
        text_encoder=parts.qwen_vl("Qwen3VL", layers=9),
        processor=speller(longest=1024),
    )


def omni_gen() -> Any:
    from diffusers import OmniGenPipeline, OmniGenTransformer2DModel

    network = OmniGenTransformer2DModel(
        hidden_size=16,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=32,
        num_layers=1,
        in_channels=4,
        time_step_dim=4,
        rope_scaling={"long_factor": [1, 2], "short_factor": [1, 2]},
    )
    return OmniGenPipeline(
        transformer=loud(network),
        scheduler=flow(invert_sigmas=True, num_train_timesteps=1),
        vae=parts.autoencoder(levels=4),
        tokenizer=speller(),
    )


def ovis() -> Any:
    from diffusers import OvisImagePipeline, OvisImageTransformer2DModel

    network = OvisImageTransformer2DModel(
        patch_size=1,
        in_channels=16,
        out_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
    )
    return OvisImagePipeline(
        scheduler=flow(),
        vae=parts.plain_autoencoder(),
        text_encoder=parts.decoder_only("Qwen3Model"),
        tokenizer=speller(),
        transformer=loud(network),
    )


def pix_art(kind: str) -> Any:
    import diffusers

    network = diffusers.PixArtTransformer2DModel(
        sample_size=16,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=WIDTH,
        in_channels=4,
        cross_attention_dim=24,
        out_channels=8,
        norm_type="ada_norm_single",
    )
    return getattr(diffusers, kind)(
        tokenizer=speller(),
        text_encoder=parts.t5(),
        vae=parts.autoencoder(),
        transformer=loud(network),
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )


def prx(*, pixels: bool = False) -> Any:
    from diffusers import PRXPipeline, PRXPixelPipeline, PRXTransformer2DModel
    from transformers.models.t5gemma.modeling_t5gemma import (
        T5GemmaEncoder,
        T5GemmaModuleConfig,
    )

    shared = {"patch_size": 1, "hidden_size": 16, "num_heads": 2, "depth": 1, "axes_dim": [4, 4]}
    if pixels:
        network = PRXTransformer2DModel(
            in_channels=3,
            context_in_dim=WIDTH,
            bottleneck_size=8,
            resolution_embeds=True,
            **shared,
        )
        return PRXPixelPipeline(
            transformer=loud(network),
            scheduler=flow(),
            text_encoder=parts.decoder_only("Qwen3Model"),
            tokenizer=speller(),
            prompt_max_tokens=64,
        )
    config = T5GemmaModuleConfig(
        vocab_size=len(parts.WORDS),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=512,
        layer_types=["full_attention"],
        pad_token_id=parts.PAD,
        dropout_rate=0.0,
        attention_bias=False,
        attention_dropout=0.0,
        hidden_activation="gelu_pytorch_tanh",
        rms_norm_eps=1e-6,
        attn_logit_softcapping=50.0,
        query_pre_attn_scalar=4,
        sliding_window=4096,
    )
    network = PRXTransformer2DModel(in_channels=4, context_in_dim=WIDTH, **shared)
    return PRXPipeline(
        transformer=loud(network),
        scheduler=flow(),
        text_encoder=T5GemmaEncoder(config).eval(),
        tokenizer=speller(longest=64),
        vae=parts.plain_autoencoder(),
    )


def sana(kind: str = "SanaPipeline") -> Any:
    import diffusers

    network = diffusers.SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=WIDTH,
        sample_size=16,
    )
    return getattr(diffusers, kind)(
        tokenizer=speller(padding_side="right"),
        text_encoder=parts.decoder_only("Gemma2Model"),
        vae=parts.deep_compression(),
        transformer=loud(network),
        scheduler=flow(shift=7.0),
    )


def stable_diffusion_pag() -> Any:
    from diffusers import DDIMScheduler, StableDiffusionPAGPipeline

    return StableDiffusionPAGPipeline(
        vae=parts.autoencoder(),
        text_encoder=parts.clip(),
        tokenizer=speller(longest=77),
        unet=parts.unet(cross_attention_dim=WIDTH),
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_xl_pag() -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPAGPipeline

    return StableDiffusionXLPAGPipeline(
        vae=parts.autoencoder(),
        text_encoder=parts.clip(),
        text_encoder_2=parts.clip("CLIPTextModelWithProjection"),
        tokenizer=speller(longest=77),
        tokenizer_2=speller(longest=77),
        unet=parts.unet(
            cross_attention_dim=2 * WIDTH,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + WIDTH,
            use_linear_projection=True,
        ),
        scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear"),
    )


def stable_diffusion_3_pag() -> Any:
    from diffusers import SD3Transformer2DModel, StableDiffusion3PAGPipeline

    network = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=2 * WIDTH,
        out_channels=4,
        pos_embed_max_size=16,
    )
    return StableDiffusion3PAGPipeline(
        transformer=network.eval(),
        scheduler=flow(shift=3.0),
        vae=parts.plain_autoencoder(),
        text_encoder=parts.clip("CLIPTextModelWithProjection"),
        tokenizer=speller(longest=77),
        text_encoder_2=parts.clip("CLIPTextModelWithProjection"),
        tokenizer_2=speller(longest=77),
        text_encoder_3=None,
        tokenizer_3=None,
        pag_applied_layers=["0"],
    )


WHOLE = {"use_resolution_binning": False}
"""The size that is asked for, rather than the nearest of a list."""

CLASSES: dict[str, Case] = {
    "AuraFlowPipeline": Case(aura_flow),
    "BriaPipeline": Case(bria),
    "ChromaPipeline": Case(chroma),
    "CogView3PlusPipeline": Case(cog_view_3),
    "CogView4Pipeline": Case(cog_view_4),
    "Cosmos2TextToImagePipeline": Case(cosmos_2),
    "HiDreamImagePipeline": Case(hi_dream),
    "HunyuanDiTPipeline": Case(
        hunyuan_dit, {"guidance_scale": 1.0} | WHOLE, {"guidance_scale": 4.0} | WHOLE
    ),
    "Kandinsky3Pipeline": Case(
        kandinsky_3,
        {"guidance_scale": 1.0, "height": 64, "width": 64},
        {"guidance_scale": 4.0, "negative_prompt": "bad", "height": 64, "width": 64},
    ),
    "Kandinsky5T2IPipeline": Case(kandinsky_5),
    "KolorsPipeline": Case(kolors),
    "LongCatImagePipeline": Case(
        long_cat,
        {"guidance_scale": 1.0, "enable_prompt_rewrite": False},
        {"guidance_scale": 4.0, "negative_prompt": "bad", "enable_prompt_rewrite": False},
    ),
    "LuminaPipeline": Case(lumina),
    "Lumina2Pipeline": Case(lumina_2),
    "NucleusMoEImagePipeline": Case(nucleus),
    "OmniGenPipeline": Case(omni_gen, guided={"guidance_scale": 3.0}),
    "OvisImagePipeline": Case(ovis),
    "PixArtAlphaPipeline": Case(
        lambda: pix_art("PixArtAlphaPipeline"),
        {"guidance_scale": 1.0} | WHOLE,
        {"guidance_scale": 4.0} | WHOLE,
    ),
    "PixArtSigmaPipeline": Case(
        lambda: pix_art("PixArtSigmaPipeline"),
        {"guidance_scale": 1.0} | WHOLE,
        {"guidance_scale": 4.0} | WHOLE,
    ),
    "PRXPipeline": Case(prx, {"guidance_scale": 1.0} | WHOLE, {"guidance_scale": 4.0} | WHOLE),
    "PRXPixelPipeline": Case(
        lambda: prx(pixels=True), {"guidance_scale": 1.0} | WHOLE, {"guidance_scale": 4.0} | WHOLE
    ),
    "SanaPipeline": Case(sana, {"guidance_scale": 1.0} | WHOLE, {"guidance_scale": 4.0} | WHOLE),
    "HunyuanDiTPAGPipeline": Case(
        lambda: hunyuan_dit("HunyuanDiTPAGPipeline"),
        {"guidance_scale": 1.0} | WHOLE,
        {"guidance_scale": 4.0} | WHOLE,
    ),
    "KolorsPAGPipeline": Case(lambda: kolors("KolorsPAGPipeline")),
    "PixArtSigmaPAGPipeline": Case(
        lambda: pix_art("PixArtSigmaPAGPipeline"),
        {"guidance_scale": 1.0} | WHOLE,
        {"guidance_scale": 4.0} | WHOLE,
    ),
    "SanaPAGPipeline": Case(
        lambda: sana("SanaPAGPipeline"),
        {"guidance_scale": 1.0} | WHOLE,
        {"guidance_scale": 4.0} | WHOLE,
    ),
    "StableDiffusionPAGPipeline": Case(stable_diffusion_pag),
    "StableDiffusionXLPAGPipeline": Case(stable_diffusion_xl_pag),
    "StableDiffusion3PAGPipeline": Case(stable_diffusion_3_pag),
}
