"""The demo's alignment scorer: a small CLIP."""

import copy
import gzip
import json
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from qsched.demo import captions as language
from training.scenes import SIZE, to_unit
from training.training import Training
from training.words import TOKENS, merges

ALIGNMENT: dict[str, Any] = {
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
