"""The demo model's text encoders and transformer, and sampling with the stock pipeline."""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderTiny,
    DPMSolverMultistepScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from training.autoencoder import LATENT_CHANNELS, LATENT_SIZE, PATCH, new_autoencoder
from training.scenes import SIZE
from training.training import Training, batches
from training.words import TOKENS, new_tokenizer, tokenize

TEXT_WIDTHS = (96, 64)
SIGMAS = (1.0, 0.75, 0.5, 0.25)
EARLY = {0.08: 0.9, 0.2: 0.6}  # share of the generator's training -> severity for the critic


def new_text_encoder(
    width: int, layers: int, tokenizer: CLIPTokenizer
) -> CLIPTextModelWithProjection:
    """A small CLIP text tower. Stable Diffusion 3 reads its last but one layer, and its pooled
    output."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        max_position_embeddings=TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config)


def new_transformer() -> SD3Transformer2DModel:
    """64 image tokens; modulation and output start at zero (Peebles & Xie 2023)."""
    model = SD3Transformer2DModel(
        sample_size=LATENT_SIZE,
        patch_size=PATCH,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=5,
        attention_head_dim=32,
        num_attention_heads=5,
        joint_attention_dim=sum(TEXT_WIDTHS),
        caption_projection_dim=160,
        pooled_projection_dim=sum(TEXT_WIDTHS),
        pos_embed_max_size=LATENT_SIZE // PATCH,
        qk_norm="rms_norm",
    )
    zero = [model.proj_out, model.norm_out.linear]
    for block in model.transformer_blocks:
        zero += [block.norm1.linear, block.norm1_context.linear]
    for layer in zero:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return model


def new_pipeline() -> StableDiffusion3Pipeline:
    """The whole pipeline, untrained, its text encoders reading the same tokens."""
    tokenizer = new_tokenizer()
    return StableDiffusion3Pipeline(
        transformer=new_transformer(),
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0, solver_order=1
        ),
        vae=new_autoencoder(),
        text_encoder=new_text_encoder(TEXT_WIDTHS[0], 3, tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=new_text_encoder(TEXT_WIDTHS[1], 2, tokenizer),
        tokenizer_2=new_tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    )


def encode_tokens(modules: nn.ModuleDict, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Prompt embeddings and pooled embeddings of token numbers, as the pipeline computes them."""
    outputs = [
        modules[name](tokens, output_hidden_states=True)
        for name in ("text_encoder", "text_encoder_2")
    ]
    hidden = torch.cat([output.hidden_states[-2] for output in outputs], -1)
    return hidden, torch.cat([output.text_embeds for output in outputs], -1)


def noise_levels(count: int) -> Tensor:
    """The levels at which 1, 2 and 4 steps call the network, give or take 0.02; the first, where
    there is least to learn, half as often as the others."""
    own = torch.tensor(SIGMAS)[torch.multinomial(torch.tensor([1.0, 2, 2, 2]), count, True)]
    return (own + 0.04 * torch.rand(count) - 0.02).clamp(max=1)


def train_generator(work: Path, seed: int, steps: int) -> None:
    """Writes pipeline/: transformer and text encoders, trained together for few steps at once.

    The target is the velocity noise - latents of the straight path between them (Lipman et al.
    2023), weighted by the noise level.
    """
    torch.manual_seed(seed)
    pipe = new_pipeline()
    latents = torch.load(work / "latents.pt")
    texts = torch.load(work / "data.pt", mmap=True)["train"]["captions"]
    tokens = tokenize(pipe.tokenizer, texts)
    names = ("transformer", "text_encoder", "text_encoder_2")
    modules = nn.ModuleDict({name: getattr(pipe, name) for name in names})
    rows = batches(len(latents), 64)

    def loss() -> Tensor:
        row = next(rows)
        clean: Tensor = latents[row].float()
        noise = torch.randn_like(clean)
        sigma = noise_levels(len(row))
        level = sigma.view(-1, 1, 1, 1)
        hidden, pooled = encode_tokens(modules, tokens[row])
        velocity: Tensor = modules["transformer"](
            (1 - level) * clean + level * noise, hidden, pooled, 1000 * sigma
        ).sample
        return (level * (velocity - (noise - clean)).square()).mean()

    early = tuple(int(steps * share) for share in EARLY)
    Training(
        "generator", modules, loss, steps, 2e-3, work, warmup=200, decay=0.999, snapshots=early
    ).run()
    pipe.vae = AutoencoderTiny.from_pretrained(work / "autoencoder" / "vae")
    pipe.to(torch.float16).save_pretrained(work / "pipeline")


def load_pipeline(folder: Path) -> StableDiffusion3Pipeline:
    """The stock pipeline in float32; it has no third text encoder."""
    pipe = StableDiffusion3Pipeline.from_pretrained(
        folder, dtype=torch.float32, text_encoder_3=None, tokenizer_3=None
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(
    pipe: StableDiffusion3Pipeline, texts: list[str], steps: int, seed: int = 0, batch: int = 50
) -> Tensor:
    """Images (N, 3, 64, 64) in [0, 1]; caption i starts from the noise of seed + i."""
    images = []
    for start in range(0, len(texts), batch):
        part = texts[start : start + batch]
        generators = [
            torch.Generator().manual_seed(seed + start + offset) for offset in range(len(part))
        ]
        result = pipe(
            part,
            num_inference_steps=steps,
            guidance_scale=0.0,
            max_sequence_length=0,
            height=SIZE,
            width=SIZE,
            generator=generators,
            output_type="pt",
        )
        images.append(result.images.float())
    return torch.cat(images)


@torch.no_grad()
def decode(pipe: StableDiffusion3Pipeline, latents: Tensor) -> Tensor:
    """Images in [0, 1] of normalised latents, as the pipeline decodes them."""
    vae = pipe.vae
    raw = latents / vae.config.scaling_factor + vae.config.shift_factor
    chunks = [vae.decode(chunk).sample for chunk in raw.split(100)]
    return (torch.cat(chunks) / 2 + 0.5).clamp(0, 1)
