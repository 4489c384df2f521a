"""Random weights at which a caption shows in the image."""

from typing import TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def stirred(network: Network) -> Network:
    """The denoiser, ready to sample: its matrices doubled, and drawn where the class leaves
    them at zero or unfilled, so that every input counts in the output."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim < 2:
                continue
            if "pad_token" in name:
                parameter.normal_()
            elif not parameter.any():
                parameter.normal_(std=2.0 / parameter.shape[-1] ** 0.5)
            else:
                parameter.mul_(2.0)
    return network.eval()
