"""Scenes of emoji sprites: the data that the demo model and its scorers learn from."""

import hashlib
import io
import json
import math
import random
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from qsched.demo import captions as language
from qsched.demo.captions import Caption
from qsched.evidence.real_images import SCENES, demo_features
from training.training import save

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
            entries = json.loads(_read(archive, "package/emoji.json"))
            images = {entry["short_name"]: entry["image"] for entry in entries}
            for index, name in enumerate(language.SPRITES.values()):
                file = io.BytesIO(_read(archive, f"package/img/{vendor}/64/{images[name]}"))
                pixels = np.asarray(Image.open(file).convert("RGBA"), dtype=np.float32) / 255
                sprite = torch.from_numpy(pixels).permute(2, 0, 1)
                sprite[:3] *= sprite[3:]
                sprites[language.STYLES.index(style), index] = sprite
    return sprites


def _read(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    if file is None:
        raise RuntimeError(f"{name}: no file in the tarball; expected one; take another version")
    return file.read()


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
    """Writes scenes.npz, what the distances of a validation are measured to."""
    captions = reference_captions(REFERENCE, seed)
    write_features(work / SCENES.name, captions, load_sprites(sprites_folder), seed)


def reference_captions(count: int, seed: int) -> list[Caption]:
    """Held-out captions, drawn as the studies' are.

    A caption may come again, its scene is another one: so many different captions would hold few
    of the large single things, of which there are some 200.
    """
    rng = random.Random(seed + 1)
    captions: list[Caption] = []
    while len(captions) < count:
        captions += [caption for caption in (language.sample(rng),) if caption.held_out]
    return captions


def write_features(path: Path, captions: list[Caption], sprites: Tensor, seed: int) -> None:
    """Writes the features of a scene a caption, in half precision."""
    generator = torch.Generator().manual_seed(seed + 2)
    features = demo_features()
    seen = [
        features(to_bytes(render(captions[start : start + 250], sprites, generator)))
        for start in range(0, len(captions), 250)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, features=np.concatenate(seen).astype(np.float16))
