"""What the demo's quality scorer learns to see; none of it is quantization."""

import io

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from training.scenes import SIZE, to_bytes, to_unit


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
