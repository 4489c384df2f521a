"""Scorers that compare an image with its caption: a CLIP model, and one formula each.

    clipscore    max(0, 100 cos)                   Hessel et al. 2021, eq. 1 with w = 100
    hpsv2.1      cos                               Wu et al. 2023, as the package hpsv2 returns it
    pickscore    exp(logit scale) cos              Kirstain et al. 2023, eq. 1
    aq-map       mean of sigmoid(10 d . f_img)     over the noun phrases, see `AqMap`

CLIPScore's network is OpenAI's ViT-L/14, as in the Q-Sched code (torchmetrics' default), without a
prefix such as "A photo depicts". Images are resized as each model's authors do it, but in floating
point: where they round to 8 bits after resizing, a score of 100 moves by less than 0.02 (tests).

Models compute in half precision on a GPU and return float32.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, pad, resize

from qsched.errors import ScoreError
from qsched.prompts import Prompt
from qsched.scoring.phrases import noun_phrases

TEXTS = 16
"""Texts that are encoded at once, always as many: the last bits of a product depend on its shape,
and a caption's features must not depend on which captions came with it."""


@dataclass(frozen=True)
class Preprocess:
    """What a model's authors do to an image: resize to `side` x `side`, then normalise.

    `mode` for images that are not square: "shortest" crops the middle, "longest" pads with black,
    "squash" distorts. `mean`, `std`: per channel, of the model's training.
    """

    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mode: str = "shortest"
    interpolation: str = "bicubic"

    def __call__(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, 3, side, side), normalised, float32."""
        square: Tensor = self._square(images.float())
        mean, std = (square.new_tensor(one).view(1, 3, 1, 1) for one in (self.mean, self.std))
        return (square - mean) / std

    def _square(self, images: Tensor) -> Any:
        height, width = images.shape[-2:]
        if height == width or self.mode == "squash":
            return self._resized(images, self.side, self.side)
        if self.mode == "shortest":
            short = min(height, width)
            # The long side is rounded down, as torchvision's Resize does.
            new = (self.side * height // short, self.side * width // short)
            return center_crop(self._resized(images, *new), [self.side, self.side])
        long = max(height, width)
        new = (round(self.side * height / long), round(self.side * width / long))
        top, left = (self.side - new[0]) // 2, (self.side - new[1]) // 2
        borders = [left, top, self.side - new[1] - left, self.side - new[0] - top]
        return pad(self._resized(images, *new), borders)

    def _resized(self, images: Tensor, height: int, width: int) -> Any:
        if images.shape[-2:] == (height, width):
            return images
        mode = InterpolationMode(self.interpolation)
        return resize(images, [height, width], mode, antialias=True).clamp(0, 1)


class Towers(Protocol):
    """A CLIP model on the device and in the precision of the pixels it is given."""

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Moves both towers."""

    def images(self, pixels: Tensor) -> Tensor:
        """(N, 3, side, side), preprocessed -> (N, D)."""

    def texts(self, texts: Sequence[str], device: torch.device) -> Tensor:
        """N texts, cut where they are longer than the context -> (N, D)."""


class ClipEncoder:
    """Images and captions to features; each caption is encoded once.

    `half`: half precision on a GPU.
    """

    def __init__(self, towers: Towers, preprocess: Preprocess, *, half: bool = True) -> None:
        self._towers = towers
        self._preprocess = preprocess
        self._half = half
        self._captions: dict[str, Tensor] = {}
        self.prepare(torch.device("cpu"))

    def prepare(self, device: torch.device) -> None:
        """Moves the model; the captions' features stay in the computer's memory."""
        self.device = device
        self._dtype = precision(self.device) if self._half else torch.float32
        self._towers.to(self.device, self._dtype)

    def image_features(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, D), float32, not normalised."""
        pixels = self._preprocess(images.to(self.device))
        return self._towers.images(pixels.to(self._dtype)).float()

    def text_features(self, captions: Sequence[str]) -> Tensor:
        """N captions -> (N, D), float32, not normalised."""
        new = sorted(set(captions) - self._captions.keys())
        if new:
            self._captions |= dict(zip(new, self.encoded(new).cpu(), strict=True))
        return torch.stack([self._captions[caption] for caption in captions]).to(self.device)

    def encoded(self, texts: Sequence[str]) -> Tensor:
        """`text_features` of texts that are not kept."""
        filled = [*texts, *list(texts[:1]) * (-len(texts) % TEXTS)]
        parts = [filled[start : start + TEXTS] for start in range(0, len(filled), TEXTS)]
        features = torch.cat([self._towers.texts(part, self.device).float() for part in parts])
        return features[: len(texts)]


class ClipAlignment(ClipEncoder):
    """`scale` times the cosine of caption and image, at least `floor`."""

    direction = "maximize"

    def __init__(
        self,
        towers: Towers,
        preprocess: Preprocess,
        *,
        scale: float = 100.0,
        floor: float | None = 0.0,
        half: bool = True,
    ) -> None:
        super().__init__(towers, preprocess, half=half)
        self._scale = scale
        self._floor = floor

    def score(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """(N, 3, H, W) in [0, 1] and N prompts -> (N,)."""
        captions = [prompt.text for prompt in prompts]
        pairs = F.cosine_similarity(self.image_features(images), self.text_features(captions))
        scores = self._scale * pairs
        return scores if self._floor is None else scores.clamp(min=self._floor)


class AqMap:
    """The alignment score of AQ-Map (G-Refine, Li et al. 2024), a number an image:

        mean over the noun phrases p of  sigmoid(10 f_img . (f(p) - f("")))

    f_img: the normalised class token. f(p): the mean of the normalised features of `templates`
    filled with p, normalised again; f("") takes off what the templates say without any phrase.

    It differs from the Q-Sched code in three ways. There each phrase is cut to its last noun, and
    scores 0.5 where it has none. There the class token is divided by the norm of each channel over
    the image's places (an axis of the CLIP Surgery demo), not by its own norm. And a caption on
    which that code fails scores 0 there; here it is an error.
    """

    direction = "maximize"

    def __init__(self, encoder: ClipEncoder, templates: Sequence[str]) -> None:
        self._encoder = encoder
        self._templates = tuple(templates)
        self._phrases: dict[str, Tensor] = {}

    def prepare(self, device: torch.device) -> None:
        """Moves the model."""
        self._encoder.prepare(device)

    def score(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """(N, 3, H, W) in [0, 1] and N prompts -> (N,), in (0, 1)."""
        features = F.normalize(self._encoder.image_features(images), dim=-1)
        scores = [
            torch.sigmoid(10 * self._directions(noun_phrases(prompt.text)) @ image).mean()
            for image, prompt in zip(features, prompts, strict=True)
        ]
        return torch.stack(scores)

    def _directions(self, phrases: Sequence[str]) -> Tensor:
        """f(p) - f("") of each phrase, (P, D); each phrase is encoded once."""
        for phrase in dict.fromkeys(("", *phrases)):
            if phrase not in self._phrases:
                self._phrases[phrase] = self._ensembled(phrase)
        empty = self._phrases[""]
        return torch.stack([self._phrases[one] - empty for one in phrases]).to(self._encoder.device)

    def _ensembled(self, phrase: str) -> Tensor:
        """f(p), (D,)."""
        filled = [template.format(phrase) for template in self._templates]
        features = F.normalize(self._encoder.encoded(filled), dim=-1)
        return F.normalize(features.mean(dim=0), dim=-1).cpu()


class OpenClipTowers:
    """A model of open_clip and its tokenizer."""

    def __init__(self, model: Any, tokenizer: Callable[[Sequence[str]], Tensor]) -> None:
        self._model = model.eval()
        self._tokenizer = tokenizer

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Moves both towers."""
        self._model.to(device, dtype)

    def images(self, pixels: Tensor) -> Tensor:
        """(N, 3, side, side), preprocessed -> (N, D)."""
        features: Tensor = self._model.encode_image(pixels)
        return features

    def texts(self, texts: Sequence[str], device: torch.device) -> Tensor:
        """N texts, cut where they are longer than the context -> (N, D)."""
        features: Tensor = self._model.encode_text(self._tokenizer(list(texts)).to(device))
        return features


class TransformersTowers:
    """A CLIPModel of transformers and its tokenizer."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model = model.eval()
        self._tokenizer = tokenizer

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Moves both towers."""
        self._model.to(device, dtype)

    def images(self, pixels: Tensor) -> Tensor:
        """(N, 3, side, side), preprocessed -> (N, D)."""
        features: Tensor = self._model.get_image_features(pixel_values=pixels).pooler_output
        return features

    def texts(self, texts: Sequence[str], device: torch.device) -> Tensor:
        """N texts, cut where they are longer than the context -> (N, D)."""
        context = self._model.config.text_config.max_position_embeddings
        tokens = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=context, return_tensors="pt"
        )
        features: Tensor = self._model.get_text_features(**tokens.to(device)).pooler_output
        return features


def precision(device: torch.device) -> torch.dtype:
    """What a scorer computes in."""
    return torch.float16 if device.type == "cuda" else torch.float32


def preprocess_of(config: Mapping[str, Any], where: str) -> Preprocess:
    """The preprocessing of an open_clip model, from its `visual.preprocess_cfg`.

    Raises ScoreError for a model that takes images which are not square.
    """
    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise ScoreError(f"{where}: takes images of {height} x {width}; only square ones work here")
    return Preprocess(
        side=height,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        mode=config["resize_mode"],
        interpolation=config["interpolation"],
    )
