"""Trains and evaluates the demo model shipped in `qsched/demo`, from emoji sprites, on a CPU.

    python scripts/train_demo.py all                  # everything, in order (about 80 minutes)
    python scripts/train_demo.py generator --work runs/demo-model --seed 0

Each stage leaves its result in --work and can be run again: a stage that was interrupted goes on
from its last checkpoint, with the random numbers it would have had.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import hashlib
import io
import json
import math
import random
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderTiny,
    DPMSolverMultistepScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from open_clip.tokenizer import bytes_to_unicode
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from qsched.catalog import DEMO_FOLDER
from qsched.clip import ClipAlignment
from qsched.clip_models import load_open_clip
from qsched.demo import captions as language
from qsched.demo.captions import Caption
from qsched.demo.critic import Critic, load_critic
from qsched.distances import Cloud, Statistics
from qsched.distribution import SCENES, demo_features
from qsched.judges import Attributes
from qsched.quantize import quantize
from qsched.score import load_metrics

SIZE = 64
POOL = 50_000
VALIDATION = 2_000
REFERENCE = 4_000
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
    """One layout per thing of the caption; places lie two tokens of the transformer apart."""
    middle = SIZE / 2
    offset = {"left": (-16, 0), "right": (16, 0), "top": (0, -16), "bottom": (0, 16), "": (0, 0)}
    if not caption.relation:
        dx, dy = offset[caption.position]
        return [Layout(middle + dx, middle + dy, 50 if caption.size == "large" else 28)]
    first = {"left of": "left", "right of": "right", "above": "top", "below": "bottom"}
    dx, dy = offset[first[caption.relation]]
    return [Layout(middle + dx, middle + dy, 28), Layout(middle - dx, middle - dy, 28)]


def render(captions: list[Caption], sprites: Tensor, generator: torch.Generator) -> Tensor:
    """Scenes (N, 3, 64, 64) in [0, 1]; what the captions leave open is drawn from `generator`."""

    def uniform(count: int, low: float, high: float) -> Tensor:
        return torch.rand(count, generator=generator) * (high - low) + low

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
        size = torch.tensor([p.size for p in places]) * uniform(n, 0.98, 1.02)
        x = torch.tensor([p.x for p in places]) + uniform(n, -0.5, 0.5)
        y = torch.tensor([p.y for p in places]) + uniform(n, -0.5, 0.5)
        angle = uniform(n, -math.pi / 60, math.pi / 60)
        style = torch.tensor([language.STYLES.index(t.style) for t in things])
        index = torch.tensor([language.OBJECTS.index(t.object) for t in things])
        sprite = _recolour(sprites[style, index], uniform(n, -0.4, 0.4), uniform(n, 0.85, 1.1))
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
        generator = torch.Generator().manual_seed(seed + held_out)
        chunks = [
            to_bytes(render(captions[start : start + 250], sprites, generator))
            for start in range(0, count, 250)
        ]
        data[name] = {"captions": [str(c) for c in captions], "images": torch.cat(chunks)}
    save(data, work / "data.pt")


def make_scenes(work: Path, sprites_folder: Path, seed: int) -> None:
    """Writes scenes.npz, what the distances of a validation are measured to: the features, in half
    precision, of scenes whose captions are drawn as the studies' are.

    A caption may come again, its scene is another one: so many different captions would hold few
    of the large single things, of which there are some 200.
    """
    sprites = load_sprites(sprites_folder)
    rng = random.Random(seed + 1)
    captions: list[Caption] = []
    while len(captions) < REFERENCE:
        captions += [caption for caption in (language.sample(rng),) if caption.held_out]
    generator = torch.Generator().manual_seed(seed + 2)
    features = demo_features()
    seen = [
        features(to_bytes(render(captions[start : start + 250], sprites, generator)))
        for start in range(0, REFERENCE, 250)
    ]
    work.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(work / SCENES.name, features=np.concatenate(seen).astype(np.float16))


def save(value: object, path: Path) -> None:
    """Writes by way of a temporary file, so that an interrupt leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    torch.save(value, temporary)
    temporary.replace(path)


# --- the training loop ------------------------------------------------------------------------


@dataclass
class Training:
    """One run of AdamW: warm-up, constant rate, linear decay to zero in the last 30 %.

    `loss` computes the loss of one fresh batch. The random state is part of a checkpoint, so an
    interrupted run repeats the undisturbed one. Afterwards the modules hold a running average of
    their weights; those averages at the steps `snapshots` are kept in files.
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
    snapshots: tuple[int, ...] = ()

    def run(self) -> None:
        """Trains, or goes on from the checkpoint, or returns at once what is finished."""
        names, parameters = zip(*self.modules.named_parameters(), strict=True)
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
            if step in self.snapshots:
                save(dict(zip(names, average, strict=True)), path.with_name(f"step-{step}.pt"))
        with torch.no_grad():
            for parameter, mean in zip(parameters, average, strict=True):
                parameter.copy_(mean)
        self.modules.eval()

    def _schedule(self, step: int) -> float:
        return min(1.0, (step + 1) / self.warmup, (self.steps - step) / (0.3 * self.steps))


def batches(count: int, size: int) -> Iterator[Tensor]:
    """Endless random batches of row numbers below `count`."""
    while True:
        yield torch.randint(count, (size,))


# --- autoencoder ------------------------------------------------------------------------------

LATENT_CHANNELS = 4
LATENT_SIZE = SIZE // 2
PATCH = 4  # the transformer's token is a square of 4 x 4 latents, 8 x 8 pixels


def new_autoencoder() -> AutoencoderTiny:
    """64 x 64 pixels to 32 x 32 latents of 4 channels; few layers at full resolution.

    Without normalisation layers the start matters: convolutions keep the variance (He et al. 2015),
    and residual blocks start as the identity. PyTorch's own start learns ten times slower.
    """
    model = AutoencoderTiny(
        encoder_block_out_channels=(32, 32),
        decoder_block_out_channels=(32, 32),
        num_encoder_blocks=(0, 1),
        num_decoder_blocks=(2, 0),
        latent_channels=LATENT_CHANNELS,
    )
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d):
            inside = ".conv." in name
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu" if inside else "linear")
            if name.endswith(".conv.4"):
                nn.init.zeros_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return model


def flaws(latents: Tensor) -> Tensor:
    """Noise such as a generator's errors: some a number, some a token; up to 0.3 of the latents'
    own deviation. A decoder that has seen it draws no edges between tokens."""
    count, channels, height, width = latents.shape
    tokens = torch.randn(count, channels, height // PATCH, width // PATCH)
    noise = torch.randn_like(latents) + F.interpolate(tokens, scale_factor=PATCH)
    return 0.2 * torch.rand(count, 1, 1, 1) * latents.detach().std() * noise


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
        decoded = model.decode(latents + flaws(latents)).sample
        sharpness = sum(F.l1_loss(a, b) for a, b in zip(edges(decoded), edges(images), strict=True))
        return F.l1_loss(decoded, images) + sharpness + 1e-3 * latents.square().mean()

    Training("autoencoder", nn.ModuleDict({"vae": model}), loss, steps, 2e-3, work).run()
    with torch.no_grad():
        chunks = [model.encode(to_unit(chunk) * 2 - 1).latents.half() for chunk in data.split(100)]
    latents = torch.cat(chunks)
    mean, deviation = latents.float().mean().item(), latents.float().std().item()
    model.register_to_config(scaling_factor=1 / deviation, shift_factor=mean)
    model.save_pretrained(work / "autoencoder" / "vae")
    save(((latents.float() - mean) / deviation).half(), work / "latents.pt")


# --- generator --------------------------------------------------------------------------------

TOKENS = 16
TEXT_WIDTHS = (96, 64)
SIGMAS = (1.0, 0.75, 0.5, 0.25)
EARLY = {0.08: 0.9, 0.2: 0.6}  # share of the generator's training -> severity for the critic
BYTES = bytes_to_unicode().values()


@cache
def merges() -> list[tuple[str, str]]:
    """Byte-pair merges that make one token of every word of the caption language."""
    words = {
        word for c in language.sample_many(20_000, 0, held_out=False) for word in str(c).split()
    }
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


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Token numbers (N, 16), padded as the pipeline pads."""
    batch = tokenizer(
        texts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
    )
    return batch.input_ids


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
        clean = latents[row].float()
        noise = torch.randn_like(clean)
        sigma = noise_levels(len(row))
        level = sigma.view(-1, 1, 1, 1)
        hidden, pooled = encode_tokens(modules, tokens[row])
        velocity = modules["transformer"](
            (1 - level) * clean + level * noise, hidden, pooled, 1000 * sigma
        ).sample
        return (level * (velocity - (noise - clean)).square()).mean()

    early = tuple(int(steps * share) for share in EARLY)
    Training(
        "generator", modules, loss, steps, 2e-3, work, warmup=200, decay=0.999, snapshots=early
    ).run()
    pipe.vae = AutoencoderTiny.from_pretrained(work / "autoencoder" / "vae")
    pipe.to(torch.float16).save_pretrained(work / "pipeline")


# --- alignment scorer -------------------------------------------------------------------------

ALIGNMENT = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": SIZE, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64},
    "text_cfg": {
        "context_length": TOKENS,
        "vocab_size": 0,
        "width": 96,
        "heads": 3,
        "layers": 2,
        "tokenizer_kwargs": {"bpe_path": "bpe.txt.gz"},
    },
}
PREPROCESSING = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic"}


def new_alignment(folder: Path) -> tuple[open_clip.CLIP, open_clip.SimpleTokenizer]:
    """Writes the configuration and the vocabulary of open_clip's model, and builds it untrained.

    The end token has the largest number, which is where open_clip's argmax pooling looks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n".join(["#version: qsched demo", *(" ".join(pair) for pair in merges())])
    vocabulary = folder / "bpe.txt.gz"
    vocabulary.write_bytes(gzip.compress(text.encode(), mtime=0))
    tokenizer = open_clip.SimpleTokenizer(bpe_path=str(vocabulary), context_length=TOKENS)
    config = copy.deepcopy(ALIGNMENT)
    config["text_cfg"]["vocab_size"] = tokenizer.vocab_size
    written = {"model_cfg": config, "preprocess_cfg": PREPROCESSING}
    (folder / "open_clip_config.json").write_text(json.dumps(written, indent=2) + "\n")
    return open_clip.create_model(f"local-dir:{folder}", load_weights=False), tokenizer


def scene_noise(images: Tensor) -> Tensor:
    """Images with up to 4 % of Gaussian noise each, so that faint grain does not matter."""
    return images + 0.04 * torch.rand(len(images), 1, 1, 1) * torch.randn_like(images)


def train_alignment(work: Path, seed: int, steps: int) -> None:
    """Writes alignment/: contrastive (Radford et al. 2021), with wrong captions that differ in one
    attribute for each image.

    Then it gets harder: half of the batches have one background colour, which tells most scenes
    apart otherwise. Such a batch's statistics are not those of all scenes, so batch normalisation
    keeps those of all scenes from there on.
    """
    torch.manual_seed(seed)
    folder = work / "alignment"
    model, tokenizer = new_alignment(folder)
    data = torch.load(work / "data.pt", mmap=True)["train"]
    captions = [language.parse(text) for text in data["captions"]]
    of_colour = [
        torch.tensor([row for row, caption in enumerate(captions) if caption.colour == colour])
        for colour in language.COLOURS
    ]

    def contrast_of(row: Tensor, wrong_objects: int) -> Tensor:
        texts = [data["captions"][index] for index in row]
        wrong = [
            variants[1 + int(torch.randint(len(variants) - 1, ()))]
            for text in texts
            for name, variants in language.alternatives(text).items()
            for _ in range(wrong_objects if name == "object" else 1)
        ]
        images = scene_noise(to_unit(data["images"][row])) * 2 - 1
        image_features = model.encode_image(images, normalize=True)
        text_features = model.encode_text(tokenizer(texts + wrong), normalize=True)
        logits = model.logit_scale.exp().clamp(max=100) * image_features @ text_features.T
        target = torch.arange(len(texts))
        forward = F.cross_entropy(logits, target)
        return forward + F.cross_entropy(logits[:, : len(texts)].T, target)

    def easy() -> Tensor:
        return contrast_of(torch.randint(len(captions), (48,)), 1)

    def hard() -> Tensor:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        if torch.rand(()) < 0.5:
            return contrast_of(torch.randint(len(captions), (48,)), 2)
        rows = of_colour[torch.randint(len(of_colour), ())]
        return contrast_of(rows[torch.randint(len(rows), (48,))], 2)

    modules = nn.ModuleDict({"clip": model})
    Training("alignment", modules, easy, steps, 2e-3, work).run()
    Training("alignment-hard", modules, hard, steps // 2, 1e-3, work).run()
    weights = {name: value.half() for name, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")


# --- quality critic ---------------------------------------------------------------------------


def blur(images: Tensor, deviation: Tensor) -> Tensor:
    """Gaussian blur of each image by its own `deviation` (N,) in pixels."""
    reach = torch.arange(-6, 7)
    kernel = torch.exp(-0.5 * (reach / deviation[:, None].clamp(min=0.05)) ** 2)
    kernel = kernel / kernel.sum(1, keepdim=True)
    count = len(images)
    stacked = F.pad(images, (6, 6, 6, 6), mode="reflect").transpose(0, 1)
    stacked = F.conv2d(stacked, kernel.view(count, 1, 1, 13), groups=count)
    return F.conv2d(stacked, kernel.view(count, 1, 13, 1), groups=count).transpose(0, 1)


def jpeg(images: Tensor, severity: Tensor) -> Tensor:
    """JPEG at quality 95 down to 3."""
    result = torch.empty_like(images)
    for index, (image, amount) in enumerate(zip(to_bytes(images), severity, strict=True)):
        quality = round(95 * (3 / 95) ** amount.item())
        coded = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(coded, "JPEG", quality=quality)
        pixels = torch.from_numpy(np.array(Image.open(coded)))
        result[index] = to_unit(pixels.permute(2, 0, 1))
    return result


def cast(images: Tensor, severity: Tensor) -> Tensor:
    """A cast of colour, and a loss of saturation."""
    amount = severity.view(-1, 1, 1, 1)
    grey = images.mean(1, keepdim=True)
    shift = 0.2 * amount * torch.randn(len(images), 3, 1, 1)
    return grey + (1 - 0.7 * amount) * (images - grey) + shift


def blocks(images: Tensor, severity: Tensor) -> Tensor:
    """A random colour offset for every block of 8 x 8 pixels."""
    offset = torch.randn(len(images), 3, SIZE // 8, SIZE // 8) * 0.08 * severity.view(-1, 1, 1, 1)
    return images + F.interpolate(offset, scale_factor=8)


def grain(images: Tensor, severity: Tensor) -> Tensor:
    """Gaussian noise of up to 0.15."""
    return images + 0.15 * severity.view(-1, 1, 1, 1) * torch.randn_like(images)


def contrast(images: Tensor, severity: Tensor) -> Tensor:
    """More contrast for one half, by up to 80 %, and less for the other."""
    sign = torch.where(torch.rand(len(images)) < 0.5, 0.8, -0.6)
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (1 + (sign * severity).view(-1, 1, 1, 1)) * (images - mean)


def sharpen(images: Tensor, severity: Tensor) -> Tensor:
    """An unsharp mask of up to 250 %, with its halos."""
    soft = blur(images, torch.full((len(images),), 1.0))
    return images + 2.5 * severity.view(-1, 1, 1, 1) * (images - soft)


def ghost(images: Tensor, severity: Tensor) -> Tensor:
    """Mixed with another scene, up to half and half."""
    amount = 0.5 * severity.view(-1, 1, 1, 1)
    return (1 - amount) * images + amount * images.roll(1, 0)


def warp(images: Tensor, severity: Tensor) -> Tensor:
    """Moved along a random smooth field by up to some 4 pixels."""
    count = len(images)
    field = torch.randn(count, 2, 8, 8) * (0.09 * severity).view(-1, 1, 1, 1)
    field = F.interpolate(field, size=(SIZE, SIZE), mode="bicubic").permute(0, 2, 3, 1)
    still = torch.eye(2, 3).expand(count, 2, 3)
    grid = F.affine_grid(still, list(images.shape), align_corners=False) + field
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


DAMAGES = {
    "jpeg": jpeg,
    "blur": lambda images, severity: blur(images, 2.5 * severity),
    "cast": cast,
    "blocks": blocks,
    "grain": grain,
    "contrast": contrast,
    "sharpen": sharpen,
    "ghost": ghost,
    "warp": warp,
}


def weak_images(work: Path) -> tuple[Tensor, Tensor]:
    """Pictures (uint8) and severities: of half-trained generators, and of noise on latents."""
    data = torch.load(work / "data.pt", mmap=True)["train"]
    pipe = load_pipeline(work / "pipeline")
    images, severities = [], []
    for share, severity in EARLY.items():
        paths = (work / "generator").glob("step-*.pt")
        path = sorted(paths, key=lambda p: int(p.stem[5:]))[list(EARLY).index(share)]
        for name, value in torch.load(path).items():
            module, _, parameter = name.partition(".")
            getattr(pipe, module).get_parameter(parameter).data.copy_(value)
        images.append(to_bytes(generate(pipe, data["captions"][:1000], steps=4)))
        severities.append(torch.full((1000,), severity))
    latents = torch.load(work / "latents.pt")[:3000].float()
    severity = torch.rand(len(latents)) ** 1.5
    latents = latents + severity.view(-1, 1, 1, 1) * torch.randn_like(latents)
    images.append(to_bytes(decode(pipe, latents)))
    severities.append(severity)
    return torch.cat(images), torch.cat(severities)


def train_quality(work: Path, seed: int, steps: int) -> None:
    """Writes quality/: a critic that tells how severe the damage to a scene is, as 1 - severity.

    One image in five is left as it is, one in five is drawn from `weak_images`, and each of the
    others gets one kind of `DAMAGES`; none of them is quantization.
    """
    torch.manual_seed(seed)
    critic = Critic()
    data = torch.load(work / "data.pt", mmap=True)["train"]["images"]
    weak, weak_severity = weak_images(work)
    rows, weak_rows = batches(len(data), 40), batches(len(weak), 10)

    def loss() -> Tensor:
        images = to_unit(data[next(rows)])
        severity = torch.rand(len(images)) ** 1.5
        severity[:10] = 0
        parts = [images[:10]]
        kinds = torch.randint(len(DAMAGES), (6,))
        for kind, part, amount in zip(
            kinds, images[10:].split(5), severity[10:].split(5), strict=True
        ):
            parts.append(list(DAMAGES.values())[kind](part, amount))
        row = next(weak_rows)
        shown = torch.cat([*parts, to_unit(weak[row])]).clamp(0, 1)
        target = 1 - torch.cat([severity, weak_severity[row]])
        return F.binary_cross_entropy(critic(shown), target)

    Training("quality", nn.ModuleDict({"critic": critic}), loss, steps, 2e-3, work).run()
    folder = work / "quality"
    weights = {name: value.half() for name, value in critic.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    config = {"widths": critic.widths, "image_size": SIZE}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


# --- sampling ---------------------------------------------------------------------------------


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


# --- evaluation -------------------------------------------------------------------------------

SHOWN = 512  # held-out captions that are drawn
SCHEMES = ("w8a8", "w4a8", "w4a4")


@torch.no_grad()
def in_chunks(judge: Callable[..., Tensor], *columns: Tensor | list[str]) -> Tensor:
    """`judge` over chunks of 64 of each of the columns."""
    count = len(columns[0])
    chunks = [slice(start, start + 64) for start in range(0, count, 64)]
    return torch.cat([judge(*(column[chunk] for column in columns)) for chunk in chunks])


def evaluate(work: Path, seed: int, steps: int = 4) -> None:
    """Writes evaluation.json and prints it as tables: real images, reconstructions, 1 to 4 steps,
    and quantized at `steps`, on held-out captions; and what the scorers make of held-out scenes."""
    data = torch.load(work / "data.pt", mmap=True)["held_out"]
    texts = data["captions"][:SHOWN]
    real, reference = to_unit(data["images"][:SHOWN]), to_unit(data["images"][SHOWN:])
    pipe = load_pipeline(work / "pipeline")
    sets = {"real": real}
    sets["reconstructed"] = in_chunks(
        lambda part: (pipe.vae(part * 2 - 1).sample / 2 + 0.5).clamp(0, 1), real
    )
    for count in (1, 2, 4):
        sets[f"{count} steps"] = generate(pipe, texts, count, seed)
    for scheme in SCHEMES:
        quantized = load_pipeline(work / "pipeline")
        quantize(quantized.transformer, scheme, skip=())
        sets[f"{steps} steps, {scheme}"] = generate(quantized, texts, steps, seed)
    alignment, critic = load_open_clip(work / "alignment"), load_critic(work / "quality")
    attributes, similarity = Attributes(alignment), load_metrics(["similarity"])["similarity"]

    def pooled(images: Tensor) -> Tensor:
        return in_chunks(lambda part: similarity.features(part)[-1].mean((2, 3)), images)

    scenes = Statistics(pooled(reference).double().numpy())
    full = sets[f"{steps} steps"]
    table = {}
    for name, images in sets.items():
        shown = attributes.shown(images, texts)
        table[name] = {
            "alignment": in_chunks(alignment, images, texts).mean().item(),
            "quality": in_chunks(critic, images).mean().item(),
            "frechet": Cloud(pooled(images).double().numpy(), scenes).distance(),
            "similarity": in_chunks(similarity, images, texts, full).mean().item(),
            "attributes": sum(sum(row.values()) / len(row) for row in shown) / len(shown),
            "captions": sum(all(row.values()) for row in shown) / len(shown),
        }
    result = {"pictures": table, "scorers": judge_scorers(alignment, critic, real, texts)}
    (work / "evaluation.json").write_text(json.dumps(result, indent=2) + "\n")
    print("| | " + " | ".join(table["real"]) + " |")
    for name, row in table.items():
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in row.values()) + " |")
    print(json.dumps(result["scorers"], indent=2))


def judge_scorers(
    alignment: ClipAlignment, critic: Critic, images: Tensor, texts: list[str]
) -> dict[str, object]:
    """How well both scorers know real scenes that they were not trained on.

    `recall`: share of images whose own caption scores highest among all of them. `pairs`: share of
    pairs of a scene, damaged a little and damaged more, that the critic puts in order.
    """
    with torch.no_grad():
        seen = F.normalize(alignment.image_features(images), dim=-1)
        read = F.normalize(alignment.text_features(texts), dim=-1)
    recall = ((seen @ read.T).argmax(1) == torch.arange(len(texts))).float().mean().item()
    levels = (0.0, 0.25, 0.5, 1.0)
    critics, right = {}, {}
    torch.manual_seed(0)
    for name, damage in DAMAGES.items():
        scores = [
            in_chunks(critic, damage(images, torch.full((len(images),), level)).clamp(0, 1))
            for level in levels
        ]
        critics[name] = [round(score.mean().item(), 3) for score in scores]
        pairs = [(low > high).float().mean() for low, high in pairwise(scores)]
        right[name] = round((sum(pairs) / len(pairs)).item(), 3)
    return {"recall": recall, "critic at 0, .25, .5, 1": critics, "pairs": right}


def export(work: Path, seed: int) -> None:
    """Copies what is shipped into the package."""
    for part in ("pipeline", "alignment", "quality"):
        target = DEMO_FOLDER / part
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(
            work / part, target, ignore=shutil.ignore_patterns("*.pt", ".cache", "tmp*")
        )
    shutil.copyfile(work / SCENES.name, SCENES)
    files = [path for path in DEMO_FOLDER.rglob("*") if path.is_file()]
    for path in files:
        path.chmod(0o644)
    size = {path: path.stat().st_size / 1e6 for path in files}
    print(f"{sum(size.values()):.1f} MB in all, the largest file {max(size.values()):.1f} MB")


STAGES: dict[str, tuple[Callable[..., None], int]] = {
    "autoencoder": (train_autoencoder, 1800),
    "generator": (train_generator, 4000),
    "alignment": (train_alignment, 4000),
    "quality": (train_quality, 3000),
}


def main() -> None:
    """Runs one stage, or all of them in order."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=("all", "data", "scenes", *STAGES, "evaluate", "export"))
    parser.add_argument("--work", type=Path, default=Path("runs/demo-model"))
    parser.add_argument("--sprites", type=Path, help="folder of the two npm tarballs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="of training, instead of the stage's own")
    options = parser.parse_args()
    chosen, folder = options.stage, options.sprites or options.work / "sprites"
    for stage, file, make in (
        ("data", "data.pt", make_data),
        ("scenes", SCENES.name, make_scenes),
    ):
        if chosen == stage or (chosen == "all" and not (options.work / file).exists()):
            make(options.work, folder, options.seed)
    for stage, (train, steps) in STAGES.items():
        if chosen in ("all", stage):
            train(options.work, options.seed, options.steps or steps)
    if chosen in ("all", "evaluate"):
        evaluate(options.work, options.seed)
    if chosen in ("all", "export"):
        export(options.work, options.seed)


if __name__ == "__main__":
    main()
