"""Trains and evaluates the demo model shipped in `qsched/demo`, from emoji sprites, on a CPU.

    python scripts/train_demo.py all                  # everything, in order (about 75 minutes)
    python scripts/train_demo.py generator --work runs/demo-model --seed 0

Each stage leaves its result in --work and can be run again: a stage that was interrupted goes on
from its last checkpoint, with the random numbers it would have had.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderTiny,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from open_clip.tokenizer import bytes_to_unicode
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from qsched.demo import captions as language
from qsched.demo.captions import Caption

SIZE = 64
POOL = 50_000
VALIDATION = 2_000
PACKAGES = {
    "shaded": (
        "emoji-datasource-google",
        "16.0.0",
        "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    ),
    "flat": (
        "emoji-datasource-twitter",
        "16.0.0",
        "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
    ),
}


# --- sprites and scenes ---------------------------------------------------------------------


def download(package: str, version: str, checksum: str, folder: Path) -> Path:
    """The tarball of an npm package, downloaded once; RuntimeError if its sha256 is another."""
    path = folder / f"{package}-{version}.tgz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", f"{package}@{version}", "--silent"]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != checksum:
        raise RuntimeError(f"{path}: sha256 is {found}; expected {checksum}; delete the file")
    return path


def load_sprites(folder: Path) -> Tensor:
    """(styles, objects, 4, 64, 64), red, green, blue times alpha, and alpha, in [0, 1]."""
    sprites = torch.empty(len(language.STYLES), len(language.OBJECTS), 4, SIZE, SIZE)
    for style, package in PACKAGES.items():
        vendor = package[0].rsplit("-", 1)[1]
        with tarfile.open(download(*package, folder)) as archive:
            entries = json.load(archive.extractfile("package/emoji.json"))
            images = {entry["short_name"]: entry["image"] for entry in entries}
            for index, name in enumerate(language.SPRITES.values()):
                file = archive.extractfile(f"package/img/{vendor}/64/{images[name]}")
                pixels = np.asarray(Image.open(file).convert("RGBA"), dtype=np.float32) / 255
                sprite = torch.from_numpy(pixels).permute(2, 0, 1)
                sprite[:3] *= sprite[3:]
                sprites[language.STYLES.index(style), index] = sprite
    return sprites


@dataclass(frozen=True)
class Layout:
    """Where a thing lies: centre and size in pixels, before the free variation."""

    x: float
    y: float
    size: float


def layouts(caption: Caption) -> list[Layout]:
    """One layout per thing of the caption."""
    middle = SIZE / 2
    offset = {"left": (-15, 0), "right": (15, 0), "top": (0, -15), "bottom": (0, 15), "": (0, 0)}
    if not caption.relation:
        dx, dy = offset[caption.position]
        return [Layout(middle + dx, middle + dy, 50 if caption.size == "large" else 28.5)]
    first = {"left of": "left", "right of": "right", "above": "top", "below": "bottom"}
    dx, dy = offset[first[caption.relation]]
    return [Layout(middle + dx, middle + dy, 28), Layout(middle - dx, middle - dy, 28)]


def render(captions: list[Caption], sprites: Tensor, random: torch.Generator) -> Tensor:
    """Scenes (N, 3, 64, 64) in [0, 1]; what the captions leave open is drawn from `random`."""

    def uniform(count: int, low: float, high: float) -> Tensor:
        return torch.rand(count, generator=random) * (high - low) + low

    count = len(captions)
    base = torch.tensor([language.COLOURS[c.colour] for c in captions]) / 255
    base = base + uniform(count * 3, -0.025, 0.025).view(count, 3)
    slope = uniform(count, -0.13, 0.13)[:, None] * torch.linspace(1, -1, SIZE)
    images = (base[:, :, None] * (1 + slope[:, None])).clamp(0, 1)
    images = images[..., None].repeat(1, 1, 1, SIZE)
    for layer in range(2):
        rows = [row for row, c in enumerate(captions) if layer < len(c.things)]
        things = [captions[row].things[layer] for row in rows]
        places = [layouts(captions[row])[layer] for row in rows]
        n = len(rows)
        if not n:
            continue
        size = torch.tensor([p.size for p in places]) * uniform(n, 0.92, 1.08)
        x = torch.tensor([p.x for p in places]) + uniform(n, -3, 3)
        y = torch.tensor([p.y for p in places]) + uniform(n, -3, 3)
        angle = uniform(n, -math.pi / 16, math.pi / 16)
        style = torch.tensor([language.STYLES.index(t.style) for t in things])
        index = torch.tensor([language.OBJECTS.index(t.object) for t in things])
        sprite = _recolour(sprites[style, index], uniform(n, -0.25, 0.25), uniform(n, 0.9, 1.1))
        layer_images = _place(sprite, size, x, y, angle)
        images[rows] = images[rows] * (1 - layer_images[:, 3:]) + layer_images[:, :3]
    return images.clamp(0, 1)


def _recolour(sprites: Tensor, hue: Tensor, gain: Tensor) -> Tensor:
    """Rotates colours by `hue` radians about the grey axis and multiplies them by `gain`."""
    cos, sin = hue.cos(), hue.sin()
    third, root = (1 - cos) / 3, sin / math.sqrt(3)
    a, b, c = cos + third, third - root, third + root
    rotation = torch.stack([a, b, c, c, a, b, b, c, a], 1).view(-1, 3, 3) * gain[:, None, None]
    colour = torch.einsum("nij,njhw->nihw", rotation, sprites[:, :3])
    alpha = sprites[:, 3:]
    return torch.cat([colour.clamp(min=0).minimum(alpha), alpha], 1)


def _place(sprites: Tensor, size: Tensor, x: Tensor, y: Tensor, angle: Tensor) -> Tensor:
    """Scaled, tilted and moved; sampled at twice the resolution against aliasing."""
    zoom = SIZE / size
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    centre = torch.stack([x, y], 1) / (SIZE / 2) - 1
    linear = torch.stack([cos, sin, -sin, cos], 1).view(-1, 2, 2)
    shift = -(linear @ centre[:, :, None])
    theta = torch.cat([linear, shift], 2)
    grid = F.affine_grid(theta, [len(sprites), 4, 2 * SIZE, 2 * SIZE], align_corners=False)
    return F.avg_pool2d(F.grid_sample(sprites, grid, align_corners=False), 2)


def to_bytes(images: Tensor) -> Tensor:
    """Images in [0, 1] as uint8."""
    return (images * 255).round().clamp(0, 255).to(torch.uint8)


def to_unit(images: Tensor) -> Tensor:
    """uint8 images in [0, 1]."""
    return images.float() / 255


def make_data(work: Path, sprites_folder: Path, seed: int) -> None:
    """Writes data.pt: scenes of trained captions, and of held-out ones for validation."""
    sprites = load_sprites(sprites_folder)
    data = {}
    for name, count, held_out in (("train", POOL, False), ("held_out", VALIDATION, True)):
        captions = language.sample_many(count, seed, held_out=held_out)
        random = torch.Generator().manual_seed(seed + held_out)
        chunks = [
            to_bytes(render(captions[start : start + 250], sprites, random))
            for start in range(0, count, 250)
        ]
        data[name] = {"captions": [str(c) for c in captions], "images": torch.cat(chunks)}
    save(data, work / "data.pt")


def save(value: object, path: Path) -> None:
    """Writes by way of a temporary file, so that an interrupt leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    torch.save(value, temporary)
    temporary.replace(path)


# --- the training loop ------------------------------------------------------------------------


@dataclass
class Training:
    """One run of AdamW with warm-up, linear decay to zero, a running average, and checkpoints.

    `loss` computes the loss of one fresh batch. The random state is part of a checkpoint, so an
    interrupted run repeats the undisturbed one. Afterwards the modules hold averaged weights.
    """

    name: str
    modules: nn.ModuleDict
    loss: Callable[[], Tensor]
    steps: int
    rate: float
    work: Path
    warmup: int = 100
    decay: float = 0.995
    weight_decay: float = 0.01
    every: int = 100

    def run(self) -> None:
        """Trains, or goes on from the checkpoint, or returns at once what is finished."""
        parameters = list(self.modules.parameters())
        optimiser = torch.optim.AdamW(
            parameters, lr=self.rate, betas=(0.9, 0.98), weight_decay=self.weight_decay
        )
        average = [p.detach().clone() for p in parameters]
        path = self.work / self.name / "checkpoint.pt"
        step, seconds = 0, 0.0
        if path.exists():
            state = torch.load(path)
            self.modules.load_state_dict(state["modules"])
            optimiser.load_state_dict(state["optimiser"])
            average, step, seconds = state["average"], state["step"], state["seconds"]
            torch.set_rng_state(state["random"])
        self.modules.train()
        started, total = time.perf_counter() - seconds, 0.0
        while step < self.steps:
            for group in optimiser.param_groups:
                group["lr"] = self.rate * self._schedule(step)
            loss = self.loss()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            optimiser.zero_grad()
            step += 1
            weight = 1 - min(self.decay, step / (step + 10))
            torch._foreach_lerp_(average, [p.detach() for p in parameters], weight)
            total += loss.item()
            if step % self.every == 0 or step == self.steps:
                seconds = time.perf_counter() - started
                mean, total = total / self.every, 0.0
                print(f"{self.name}: step {step}/{self.steps} loss {mean:.4f} {seconds:.0f} s")
                state = {
                    "modules": self.modules.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "average": average,
                    "step": step,
                    "seconds": seconds,
                    "random": torch.get_rng_state(),
                }
                save(state, path)
        with torch.no_grad():
            for parameter, mean in zip(parameters, average, strict=True):
                parameter.copy_(mean)
        self.modules.eval()

    def _schedule(self, step: int) -> float:
        return min((step + 1) / self.warmup, (self.steps - step) / (self.steps - self.warmup))


def batches(count: int, size: int) -> Iterator[Tensor]:
    """Endless random batches of row numbers below `count`."""
    while True:
        yield torch.randint(count, (size,))


# --- autoencoder ------------------------------------------------------------------------------

LATENT_CHANNELS = 16


def new_autoencoder() -> AutoencoderTiny:
    """64 x 64 pixels to 8 x 8 latents of 16 channels; few layers at full resolution."""
    return AutoencoderTiny(
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        num_encoder_blocks=(0, 0, 1, 2),
        num_decoder_blocks=(3, 2, 1, 0),
        latent_channels=LATENT_CHANNELS,
    )


def edges(images: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of neighbouring pixels, along rows and along columns."""
    return images.diff(dim=-1), images.diff(dim=-2)


def train_autoencoder(work: Path, seed: int, steps: int) -> None:
    """Writes autoencoder/ and latents.pt: the pool's latents with zero mean and unit variance."""
    torch.manual_seed(seed)
    data = torch.load(work / "data.pt", mmap=True)["train"]["images"]
    model = new_autoencoder().to(memory_format=torch.channels_last)
    rows = batches(len(data), 16)

    def loss() -> Tensor:
        images = to_unit(data[next(rows)]) * 2 - 1
        images = images.contiguous(memory_format=torch.channels_last)
        latents = model.encode(images).latents
        noisy = latents + 0.1 * torch.randn_like(latents)
        decoded = model.decode(noisy).sample
        sharpness = sum(F.l1_loss(a, b) for a, b in zip(edges(decoded), edges(images), strict=True))
        return F.l1_loss(decoded, images) + sharpness + 1e-3 * latents.square().mean()

    Training("autoencoder", nn.ModuleDict({"vae": model}), loss, steps, 2e-3, work).run()
    with torch.no_grad():
        chunks = [
            model.encode(to_unit(chunk) * 2 - 1).latents.half() for chunk in data.split(100)
        ]
    latents = torch.cat(chunks)
    mean, deviation = latents.float().mean().item(), latents.float().std().item()
    model.register_to_config(scaling_factor=1 / deviation, shift_factor=mean)
    model.save_pretrained(work / "autoencoder" / "vae")
    save(((latents.float() - mean) / deviation).half(), work / "latents.pt")


# --- generator --------------------------------------------------------------------------------

TOKENS = 16
TEXT_WIDTHS = (96, 64)
SIGMAS = (1.0, 0.75, 0.5, 0.25)
BYTES = bytes_to_unicode().values()


def merges() -> list[tuple[str, str]]:
    """Byte-pair merges that make one token of every word of the caption language."""
    words = {word for c in language.sample_many(20_000, 0, held_out=False) for word in str(c).split()}
    found: list[tuple[str, str]] = []
    for word in sorted(words):
        parts = [*word[:-1], word[-1] + "</w>"]
        for left, right in found:
            at = 0
            while at < len(parts) - 1:
                if (parts[at], parts[at + 1]) == (left, right):
                    parts[at : at + 2] = [left + right]
                at += 1
        while len(parts) > 1:
            found.append((parts[0], parts[1]))
            parts[:2] = [parts[0] + parts[1]]
    return found


def new_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer with a vocabulary of bytes, the merges, and CLIP's two special tokens."""
    tokens = [*BYTES, *(b + "</w>" for b in BYTES), *(a + b for a, b in merges())]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges(), model_max_length=TOKENS)


def new_text_encoder(width: int, layers: int, tokenizer: CLIPTokenizer) -> nn.Module:
    """A small CLIP text tower. Stable Diffusion 3 reads its last but one layer, and its pooled
    output."""
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
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
    )


def new_transformer() -> SD3Transformer2DModel:
    """64 image tokens of 16 channels; modulation and output start at zero (Peebles & Xie 2023)."""
    model = SD3Transformer2DModel(
        sample_size=SIZE // 8,
        patch_size=1,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=5,
        attention_head_dim=32,
        num_attention_heads=5,
        joint_attention_dim=sum(TEXT_WIDTHS),
        caption_projection_dim=160,
        pooled_projection_dim=sum(TEXT_WIDTHS),
        pos_embed_max_size=SIZE // 8,
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
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
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


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Token numbers (N, 16), padded as the pipeline pads."""
    batch = tokenizer(
        texts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
    )
    return batch.input_ids


def noise_levels(count: int) -> Tensor:
    """Three in four close to the sampler's own four levels, the others anywhere above 0.05."""
    own = torch.tensor(SIGMAS)[torch.randint(len(SIGMAS), (count,))]
    own = own + 0.04 * torch.rand(count) - 0.02
    anywhere = 0.05 + 0.95 * torch.rand(count)
    return torch.where(torch.rand(count) < 0.75, own, anywhere).clamp(max=1)


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
    rows = batches(len(latents), 32)

    def loss() -> Tensor:
        row = next(rows)
        clean = latents[row].float()
        noise = torch.randn_like(clean)
        sigma = noise_levels(len(row))
        level = sigma.view(-1, 1, 1, 1)
        hidden, pooled = encode_tokens(modules, tokens[row])
        velocity = modules["transformer"](
            (1 - level) * clean + level * noise, hidden, pooled, 1000 * sigma
        ).sample
        return (level * (velocity - (noise - clean)).square()).mean()

    Training("generator", modules, loss, steps, 2e-3, work, decay=0.998).run()
    pipe.vae = AutoencoderTiny.from_pretrained(work / "autoencoder" / "vae")
    pipe.to(torch.float16).save_pretrained(work / "pipeline")


def main() -> None:
    """Runs the stages named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=("data", "autoencoder", "generator"))
    parser.add_argument("--work", type=Path, default=Path("runs/demo-model"))
    parser.add_argument("--sprites", type=Path, help="folder of the two npm tarballs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int)
    options = parser.parse_args()
    if options.stage == "data":
        make_data(options.work, options.sprites or options.work / "sprites", options.seed)
    elif options.stage == "autoencoder":
        train_autoencoder(options.work, options.seed, options.steps or 1300)
    else:
        train_generator(options.work, options.seed, options.steps or 4000)


if __name__ == "__main__":
    main()
