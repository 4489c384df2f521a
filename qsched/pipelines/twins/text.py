"""Tokenizers that spell, a token a letter, and the text encoders that read them."""

import json
from pathlib import Path
from typing import Any

import transformers
from transformers.convert_slow_tokenizer import bytes_to_unicode

LETTERS = "abcdefghijklmnopqrstuvwxyz"
CONTEXT = 77
WIDTH = 32
"""The width of the text encoders that read whole sentences."""

_MARKS = ("im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad")
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% if message.content is string "
    "%}{{ message.content }}{% else %}{{ message.content[0].text }}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def clip_words(folder: Path) -> Any:
    """A CLIP tokenizer."""
    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    vocabulary = {word: index for index, word in enumerate(words)}
    vocabulary |= {"<|startoftext|>": len(vocabulary), "<|endoftext|>": len(vocabulary) + 1}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return transformers.CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=CONTEXT
    )


def clip_text(kind: str, width: int = 32) -> Any:
    """A CLIP text encoder of the class `kind` for `clip_words`."""
    config = transformers.CLIPTextConfig(
        vocab_size=2 * len(LETTERS) + 2,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT,
        projection_dim=width,
        bos_token_id=2 * len(LETTERS),
        eos_token_id=2 * len(LETTERS) + 1,
        pad_token_id=2 * len(LETTERS) + 1,
    )
    return getattr(transformers, kind)(config).eval()


def t5(width: int = 32) -> tuple[Any, Any]:
    """A T5 tokenizer and its encoder."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(letter, -1.0) for letter in ("▁", *LETTERS)]
    tokenizer = transformers.T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)
    return tokenizer, _t5_encoder(len(pieces), width)


def byt5() -> tuple[Any, Any]:
    """A tokenizer of bytes and its encoder."""
    tokenizer = transformers.ByT5Tokenizer()
    return tokenizer, _t5_encoder(len(tokenizer), 32)


def _t5_encoder(size: int, width: int) -> Any:
    config = transformers.T5Config(
        vocab_size=size, d_model=width, d_kv=16, d_ff=64, num_layers=1, num_heads=2
    )
    return transformers.T5EncoderModel(config).eval()


def qwen_words() -> Any:
    """A Qwen tokenizer with the marks of a conversation and its template."""
    tokenizer = transformers.Qwen2Tokenizer(
        vocab={letter: index for index, letter in enumerate(bytes_to_unicode().values())},
        merges=[],
        model_max_length=131072,
        extra_special_tokens=[f"<|{mark}|>" for mark in _MARKS],
    )
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


def gemma_words() -> Any:
    """A Gemma tokenizer."""
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *LETTERS, *LETTERS.upper()]
    vocabulary = {word: index for index, word in enumerate(words)}
    return transformers.GemmaTokenizer(vocab=vocabulary, merges=[], model_max_length=512)


def gemma_2(tokenizer: Any) -> Any:
    """A Gemma 2 that reads `tokenizer`."""
    config = transformers.Gemma2Config(
        **_decoder(tokenizer, 1), pad_token_id=0, eos_token_id=1, bos_token_id=2
    )
    return transformers.Gemma2Model(config).eval()


def qwen_3(kind: str, tokenizer: Any, layers: int = 2) -> Any:
    """A Qwen 3 of the class `kind` that reads `tokenizer`."""
    config = transformers.Qwen3Config(**_decoder(tokenizer, layers))
    return getattr(transformers, kind)(config).eval()


def qwen_3_vl(kind: str, tokenizer: Any, layers: int = 2) -> Any:
    """A Qwen 3 with eyes, of the class `kind`, that reads `tokenizer`."""
    rope = {"rope_type": "default", "mrope_section": [4, 2, 2], "rope_theta": 1e6}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}
    config = transformers.Qwen3VLConfig(
        text_config={**_decoder(tokenizer, layers), "rope_parameters": rope},
        vision_config={**vision, "out_hidden_size": WIDTH, "deepstack_visual_indexes": [0]},
    )
    return getattr(transformers, kind)(config).eval()


def qwen_2_5_vl(tokenizer: Any) -> Any:
    """A Qwen 2.5 with eyes that reads `tokenizer`."""
    rope = {"rope_type": "default", "mrope_section": [4, 2, 2], "rope_theta": 1e6}
    text = {key: value for key, value in _decoder(tokenizer, 3).items() if key != "head_dim"}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}
    config = transformers.Qwen2_5_VLConfig(
        text_config={**text, "rope_parameters": rope},
        vision_config={**vision, "out_hidden_size": WIDTH},
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config).eval()


def mistral_3(tokenizer: Any) -> Any:
    """A Mistral 3 with eyes and the text part of Ministral that reads `tokenizer`."""
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "head_dim": 8, "image_size": 28}
    config = transformers.Mistral3Config(
        text_config=transformers.Ministral3Config(**_decoder(tokenizer)),
        vision_config=transformers.PixtralVisionConfig(**vision),
    )
    return transformers.Mistral3Model(config).eval()


def _decoder(tokenizer: Any, layers: int = 2) -> dict[str, Any]:
    """The measures of a language model."""
    return {
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 2048,
    }
