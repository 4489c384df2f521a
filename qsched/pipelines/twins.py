"""Tiny twins of real models: the same pipeline class, scheduler and LoRA loading, random weights.

    folder = pipeline_twin("StableDiffusionXLPipeline", lora=True)     # pipeline/, lora/

A twin is written with diffusers' own `save_pretrained`, so what loads it is the code that loads the
real model. Its images are noise of the right shape; it proves that a study runs, not that it helps.
Twins are made once, with a fixed seed, and kept in the user's cache.
"""

import functools
import hashlib
import inspect
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from qsched.errors import ModelError
from qsched.libraries import quiet
from qsched.pipelines.catalog import TWIN_SIDE as SIDE

LETTERS = "abcdefghijklmnopqrstuvwxyz"
CONTEXT = 77


def made(name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name` of the cache, written by `make(folder)` where it isn't there yet.

    Written beside its place and then renamed, so other processes see all of it or nothing. Torch's
    random numbers are seeded by `name` meanwhile, and go on afterwards as if nothing had happened.
    """
    place = _cache(make) / name
    if place.is_dir():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_seed(name))
            make(unfinished)
        unfinished.rename(place)
    except OSError:
        if not place.is_dir():  # another process may have been faster
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return place


def pipeline_twin(pipeline: str, *, lora: bool = False, weights: bool = False) -> Path:
    """A folder with `pipeline`/, a twin of this diffusers pipeline class, and beside it, if asked
    for, `lora`/ with `twin.safetensors`, and `weights`/ with other weights of its denoiser, as
    `twin.safetensors` and `twin.bin`.

    Raises ModelError for a class that has no twin.
    """
    if pipeline not in _PIPELINES:
        raise ModelError(f"no twin of {pipeline}; there are twins of {', '.join(_PIPELINES)}")

    def make(folder: Path) -> None:
        torch.manual_seed(_seed(pipeline))  # the same network with and without LoRA
        with quiet():
            twin = _PIPELINES[pipeline](folder)
            twin.save_pretrained(folder / "pipeline")
            if lora:
                _save_lora(twin, folder / "lora")
            if weights:
                _save_weights(folder / "pipeline", folder / "weights")
        for leftover in ("words", "pieces"):
            shutil.rmtree(folder / leftover, ignore_errors=True)

    kinds = [pipeline, *(["lora"] if lora else []), *(["weights"] if weights else [])]
    return made("-".join(kinds), make)


def _seed(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big")


def _cache(make: Callable[[Path], None]) -> Path:
    """Where twins are kept; another place for other code that makes them, and other libraries."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.blake2b(digest_size=6)
    for source in (__file__, inspect.getsourcefile(make)):
        digest.update(Path(source or __file__).read_bytes())
    for package in ("torch", "diffusers", "transformers"):
        digest.update(version(package).encode())
    return base / "qsched" / "twins" / digest.hexdigest()


def clip_words(folder: Path) -> Any:
    """A CLIP tokenizer that spells: a token a letter."""
    from transformers import CLIPTokenizer

    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    vocabulary = {word: index for index, word in enumerate(words)}
    vocabulary |= {"<|startoftext|>": len(vocabulary), "<|endoftext|>": len(vocabulary) + 1}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=CONTEXT
    )


def clip_text(kind: str, width: int = 32) -> Any:
    """A CLIP text encoder of the class `kind` for `clip_words`."""
    import transformers

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


def _t5(folder: Path) -> tuple[Any, Any]:
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(letter, -1.0) for letter in ("▁", *LETTERS)]
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)
    encoder = T5EncoderModel(
        T5Config(vocab_size=len(pieces), d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2)
    )
    return tokenizer, encoder.eval()


def _autoencoder(latents: int = 4, **config: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        latent_channels=latents,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        sample_size=SIDE,
        **config,
    ).eval()


def _unet(**config: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=SIDE // 2,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=8,
        **config,
    ).eval()


def _stable_diffusion(folder: Path, *, consistency: bool = False) -> Any:
    from diffusers import (
        LatentConsistencyModelPipeline,
        LCMScheduler,
        PNDMScheduler,
        StableDiffusionPipeline,
    )

    parts = {
        "vae": _autoencoder(),
        "text_encoder": clip_text("CLIPTextModel"),
        "tokenizer": clip_words(folder / "words"),
        "safety_checker": _safety_checker(),
        "feature_extractor": _feature_extractor(),
    }
    noise = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    if consistency:
        return LatentConsistencyModelPipeline(
            **parts,
            unet=_unet(cross_attention_dim=32, time_cond_proj_dim=8),
            scheduler=LCMScheduler(**noise),
        )
    unet = _unet(cross_attention_dim=32)
    return StableDiffusionPipeline(
        **parts, unet=unet, scheduler=PNDMScheduler(**noise, steps_offset=1, skip_prk_steps=True)
    )


def _safety_checker() -> Any:
    """As the real ones, it would blacken images; loading has to switch it off."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig

    tower = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1}
    tower |= {"num_attention_heads": 2, "projection_dim": 8}
    vision = {**tower, "image_size": 8, "patch_size": 4}
    config = CLIPConfig(vision_config=vision, text_config=tower, projection_dim=8)
    checker = StableDiffusionSafetyChecker(config)
    checker.concept_embeds_weights.data.fill_(-2.0)  # every image is unsafe
    return checker.eval()


def _feature_extractor() -> Any:
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})


def _stable_diffusion_xl(folder: Path) -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    words = clip_words(folder / "words")
    return StableDiffusionXLPipeline(
        vae=_autoencoder(force_upcast=True),
        text_encoder=clip_text("CLIPTextModel"),
        tokenizer=words,
        text_encoder_2=clip_text("CLIPTextModelWithProjection"),
        tokenizer_2=words,
        unet=_unet(
            cross_attention_dim=64,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 32,
            use_linear_projection=True,
        ),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
        ),
    )


def _flux(folder: Path) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    tokenizer, encoder = _t5(folder)
    return FluxPipeline(
        transformer=FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            guidance_embeds=False,
            axes_dims_rope=(4, 4, 8),
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=_autoencoder(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1),
        text_encoder=clip_text("CLIPTextModel"),
        tokenizer=clip_words(folder / "words"),
        text_encoder_2=encoder,
        tokenizer_2=tokenizer,
    )


def _stable_diffusion_3(folder: Path) -> Any:
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )

    words = clip_words(folder / "words")
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=SIDE // 2,
            patch_size=2,
            in_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=64,
            caption_projection_dim=32,
            pooled_projection_dim=64,
            out_channels=4,
            pos_embed_max_size=SIDE // 2,
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_autoencoder(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1),
        text_encoder=clip_text("CLIPTextModelWithProjection"),
        tokenizer=words,
        text_encoder_2=clip_text("CLIPTextModelWithProjection"),
        tokenizer_2=words,
        text_encoder_3=None,
        tokenizer_3=None,
    )


def _save_weights(pipeline: Path, folder: Path) -> None:
    """Weights of the denoiser that are not the twin's, by safetensors and by torch."""
    import diffusers
    from safetensors.torch import save_file

    index = json.loads((pipeline / "model_index.json").read_text(encoding="utf-8"))
    part = "unet" if "unet" in index else "transformer"
    network_class = getattr(diffusers, index[part][1])
    network = network_class.from_config(network_class.load_config(pipeline, subfolder=part))
    folder.mkdir()
    save_file(network.state_dict(), folder / "twin.safetensors")
    torch.save(network.state_dict(), folder / "twin.bin")


def _save_lora(pipeline: Any, folder: Path) -> None:
    """LoRA weights of the denoiser's attention that change what it returns."""
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    part = "unet" if hasattr(pipeline, "unet") else "transformer"
    network = getattr(pipeline, part)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    network.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=targets))
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(network))
    pipeline.save_lora_weights(
        folder, weight_name="twin.safetensors", **{f"{part}_lora_layers": layers}
    )


_PIPELINES: dict[str, Callable[[Path], Any]] = {
    "StableDiffusionPipeline": _stable_diffusion,
    "LatentConsistencyModelPipeline": functools.partial(_stable_diffusion, consistency=True),
    "StableDiffusionXLPipeline": _stable_diffusion_xl,
    "StableDiffusion3Pipeline": _stable_diffusion_3,
    "FluxPipeline": _flux,
}
