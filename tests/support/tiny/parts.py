"""Tokenizers that spell, tiny text encoders for them, tiny autoencoders; with random weights."""

import string
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

SPECIAL = ("<pad>", "<eos>", "<unk>", "<bos>", "<|im_start|>", "<|im_end|>")
WORDS = (*SPECIAL, *string.printable)
PAD, EOS, UNK, BOS = range(4)
WIDTH = 32
CONTEXT = 128


def speller(kind: str = "PreTrainedTokenizerFast", *, longest: int = 512, **options: Any) -> Any:
    """A tokenizer of the class `kind`: a token a character, and one at the end."""
    import transformers

    tokenizer = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", EOS)]
    )
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        bos_token="<bos>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        model_max_length=longest,
        **options,
    )
    made.chat_template = (
        "{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }}{% else %}"
        "{% for part in m['content'] %}{{ part['text'] }}{% endfor %}{% endif %}{% endfor %}"
    )
    return made


def t5(kind: str = "T5") -> Any:
    """A T5 encoder, or an UMT5."""
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(WORDS), d_model=WIDTH, d_kv=16, d_ff=32, num_layers=1, num_heads=2
    )
    return getattr(transformers, f"{kind}EncoderModel")(config).eval()


def clip(kind: str = "CLIPTextModel", width: int = WIDTH) -> Any:
    import transformers

    config = transformers.CLIPTextConfig(
        vocab_size=len(WORDS),
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT,
        projection_dim=width,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    return getattr(transformers, kind)(config).eval()


def decoder_only(kind: str, **config: Any) -> Any:
    """A language model: a class of transformers and what else its config needs."""
    import transformers

    prefix = kind.removesuffix("ForCausalLM").removesuffix("Model")
    settings = {
        "vocab_size": len(WORDS),
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 1024,
        "pad_token_id": PAD,
        "eos_token_id": EOS,
        "bos_token_id": BOS,
    }
    made = getattr(transformers, f"{prefix}Config")(**settings | config)
    return getattr(transformers, kind)(made).eval()


def qwen_vl(kind: str = "Qwen2_5_VL", layers: int = 2) -> Any:
    """Of the text model and as little of the vision model as there can be."""
    import transformers

    rope = {"rope_type": "default", "mrope_section": [2, 2, 4], "rope_theta": 1e6}
    text: dict[str, Any] = {
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": layers,
    }
    text |= {"num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": len(WORDS)}
    text |= {"head_dim": 16, "max_position_embeddings": 1024, "rope_parameters": rope}
    text |= {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}
    config = getattr(transformers, f"{kind}Config")(
        text_config=text,
        vision_config=vision | {"out_hidden_size": WIDTH},
        vision_end_token_id=0,
        vision_start_token_id=1,
        vision_token_id=2,
    )
    return getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()


def autoencoder(latents: int = 4, levels: int = 2, **config: Any) -> Any:
    """An image is `2**(levels - 1)` times as wide as its latents."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        latent_channels=latents,
        block_out_channels=(8,) * levels,
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        sample_size=32,
        **config,
    ).eval()


def plain_autoencoder(latents: int = 4, levels: int = 2) -> Any:
    """As flow matching models have it, with a shift."""
    return autoencoder(
        latents, levels, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1
    )


def deep_compression() -> Any:
    from diffusers import AutoencoderDC

    return AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
    ).eval()


def unet(**config: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        **{
            "sample_size": 16,
            "block_out_channels": (32, 64),
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "attention_head_dim": 8,
            **config,
        }
    ).eval()


def flow(**config: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**config)


def loud(network: torch.nn.Module, factor: float = 3.0) -> Any:
    """The network with larger weights, so that captions differ in their images."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "pad_token" in name:  # they are made without being filled
                parameter.normal_()
            elif parameter.ndim > 1:
                parameter.mul_(factor)
    return network.eval()
