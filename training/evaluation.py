"""What the demo model draws and what its scorers see, on held-out captions."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from qsched.demo.critic import Critic, load_critic
from qsched.evidence.distances import Cloud, Statistics
from qsched.prompts import Prompt
from qsched.quantization.quantize import quantize
from qsched.scoring.clip import ClipAlignment
from qsched.scoring.clip_models import load_open_clip
from qsched.scoring.demo import Attributes
from qsched.scoring.similarity import load_similarity
from training.damages import DAMAGES
from training.generator import generate, load_pipeline
from training.scenes import to_unit

SHOWN = 512  # held-out captions that are drawn
SCHEMES = ("w8a8", "w4a8", "w4a4")


@torch.no_grad()
def in_chunks(judge: Callable[..., Tensor], *columns: Tensor | list[Prompt]) -> Tensor:
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
    attributes, similarity = Attributes(alignment), load_similarity()

    def pooled(images: Tensor) -> Tensor:
        return in_chunks(lambda part: similarity.features(part)[-1].mean((2, 3)), images)

    shown_for = [Prompt(text, 0) for text in texts]
    scenes = Statistics(pooled(reference).double().numpy())
    full = sets[f"{steps} steps"]
    table = {}
    for name, images in sets.items():
        shown = attributes.shown(images, texts)
        table[name] = {
            "alignment": in_chunks(alignment.score, images, shown_for).mean().item(),
            "quality": in_chunks(critic, images).mean().item(),
            "frechet": Cloud(pooled(images).double().numpy(), scenes).distance(),
            "similarity": in_chunks(similarity.score, images, shown_for, full).mean().item(),
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
        right[name] = round(torch.stack(pairs).mean().item(), 3)
    return {"recall": recall, "critic at 0, .25, .5, 1": critics, "pairs": right}
