"""The demo's quality scorer: a critic of damage."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from qsched.demo.critic import Critic
from training.damages import DAMAGES
from training.generator import EARLY, decode, generate, load_pipeline
from training.scenes import SIZE, to_bytes, to_unit
from training.training import Training, batches


def weak_images(work: Path) -> tuple[Tensor, Tensor]:
    """Pictures (uint8) and severities: of half-trained generators, and of noise on latents."""
    data = torch.load(work / "data.pt", mmap=True)["train"]
    pipe = load_pipeline(work / "pipeline")
    images, severities = [], []
    for share, level in EARLY.items():
        paths = (work / "generator").glob("step-*.pt")
        path = sorted(paths, key=lambda p: int(p.stem[5:]))[list(EARLY).index(share)]
        for name, value in torch.load(path).items():
            module, _, parameter = name.partition(".")
            getattr(pipe, module).get_parameter(parameter).data.copy_(value)
        images.append(to_bytes(generate(pipe, data["captions"][:1000], steps=4)))
        severities.append(torch.full((1000,), level))
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
