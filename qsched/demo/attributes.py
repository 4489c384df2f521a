"""The demo model's alignment scorer, and which attributes of a caption an image has right."""

from __future__ import annotations

import functools
from pathlib import Path

import open_clip
import torch
from torch import Tensor

from qsched.demo.captions import alternatives

WEIGHTS = Path(__file__).parent / "alignment"


class Alignment:
    """A small open_clip model. `images` are (N, 3, 64, 64) in [0, 1], one caption for each."""

    def __init__(self, folder: Path = WEIGHTS) -> None:
        self.model = open_clip.create_model(f"local-dir:{folder}").float().eval()
        self.tokenizer = open_clip.SimpleTokenizer(
            bpe_path=str(folder / "bpe.txt.gz"), context_length=self.model.context_length
        )
        self._text = functools.cache(self._encode_alternatives)

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Unit vectors (N, 128)."""
        return self.model.encode_image(images * 2 - 1, normalize=True)

    @torch.no_grad()
    def encode_texts(self, texts: list[str]) -> Tensor:
        """Unit vectors (N, 128)."""
        return self.model.encode_text(self.tokenizer(texts), normalize=True)

    def scores(self, images: Tensor, captions: list[str]) -> Tensor:
        """Cosine of the angle between each image and its caption, (N,) in [-1, 1]."""
        return (self.encode_images(images) * self.encode_texts(captions)).sum(1)

    def attributes(self, images: Tensor, captions: list[str]) -> list[dict[str, bool]]:
        """For each image and each attribute its caption names: whether the true caption scores
        above every caption that differs in that attribute alone."""
        features = self.encode_images(images)
        return [
            {name: bool((text @ image).argmax() == 0) for name, text in self._text(caption)}
            for image, caption in zip(features, captions, strict=True)
        ]

    def _encode_alternatives(self, caption: str) -> list[tuple[str, Tensor]]:
        return [(name, self.encode_texts(texts)) for name, texts in alternatives(caption).items()]


def accuracy(right: list[dict[str, bool]]) -> dict[str, float]:
    """Shares of images right: per attribute, over `all` attributes, and of whole `caption`s."""
    names = sorted({name for image in right for name in image})
    shares = {}
    for name in names:
        values = [image[name] for image in right if name in image]
        shares[name] = sum(values) / len(values)
    answers = [value for image in right for value in image.values()]
    shares["all"] = sum(answers) / len(answers)
    shares["caption"] = sum(all(image.values()) for image in right) / len(right)
    return shares
