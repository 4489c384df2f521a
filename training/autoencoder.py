"""The demo model's autoencoder."""

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from torch import Tensor, nn

from training.scenes import SIZE, to_unit
from training.training import Training, batches, save

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
        latents: Tensor = model.encode(images).latents
        decoded: Tensor = model.decode(latents + flaws(latents)).sample
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
