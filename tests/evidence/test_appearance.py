"""Guards against a cheated metric: each cheat trips the guard that is meant for it, no other."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from qsched.evidence.appearance import Appearance, diversity, patterns
from qsched.evidence.guards import NAMES, Guard, guards
from qsched.evidence.table import Limits

LIMITS = Limits().model_dump()
CAPTIONS = [f"caption {index // 2}" for index in range(48)]


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    """Coloured grounds with soft and hard shapes, each caption twice: (48, 3, 32, 32) in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    grounds = 0.35 + 0.3 * torch.rand(48, 3, 1, 1, generator=generator)
    soft = torch.randn(48, 3, 4, 4, generator=generator)
    hard = torch.randn(48, 1, 8, 8, generator=generator).sign()
    shapes = 0.07 * F.interpolate(soft, size=32, mode="bicubic")
    shapes = shapes + 0.04 * F.interpolate(hard, size=32, mode="nearest")
    return (grounds + shapes).clamp(0, 1)


def look(images: Tensor) -> dict[str, float]:
    """In batches of 7, as a generator would hand them over."""
    appearance = Appearance()
    for batch in images.split(7):
        appearance.add(batch)
    return appearance.values(CAPTIONS)


def tripped(full: Tensor, identity: Tensor, calibrated: Tensor) -> list[str]:
    rows = guards(look(full), look(identity), look(calibrated), LIMITS)
    return [guard.name for guard in rows if not guard.ok]


def brightened(images: Tensor) -> Tensor:
    """Every value a tenth of the range higher."""
    return (images + 0.1).clamp(0, 1)


def over_saturated(images: Tensor) -> Tensor:
    """Chroma a third larger; luma as it was."""
    y = torch.einsum("nchw,c->nhw", images, torch.tensor([0.299, 0.587, 0.114]))[:, None]
    return (y + 1.3 * (images - y)).clamp(0, 1)


def more_contrast(images: Tensor) -> Tensor:
    """Luma's deviation a quarter larger; chroma as it was, edges within their wider limit."""
    y = torch.einsum("nchw,c->nhw", images, torch.tensor([0.299, 0.587, 0.114]))[:, None]
    return (images + 0.25 * (y - y.mean(dim=(2, 3), keepdim=True))).clamp(0, 1)


def sharpened(images: Tensor) -> Tensor:
    """An unsharp mask along edges alone."""
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return (images + 0.4 * (images - blurred)).clamp(0, 1)


def collapsed(images: Tensor) -> Tensor:
    """Four pictures for all captions, as bright and as sharp as the others."""
    return images[torch.arange(48) % 4]


@pytest.mark.parametrize(
    ("cheat", "guard"),
    [
        (brightened, "brightness"),
        (over_saturated, "saturation"),
        (more_contrast, "contrast"),
        (sharpened, "sharpness"),
        (collapsed, "diversity"),
    ],
)
def test_a_cheat_trips_exactly_its_guard(
    pictures: Tensor, cheat: Callable[[Tensor], Tensor], guard: str
) -> None:
    assert tripped(pictures, pictures, cheat(pictures)) == [guard]
    assert not tripped(pictures, pictures, pictures)


def test_one_picture_for_every_caption_has_no_diversity(pictures: Tensor) -> None:
    assert look(pictures[:1].expand(48, -1, -1, -1))["diversity"] == pytest.approx(0, abs=1e-6)


def test_diversity_is_over_pairs_of_different_captions_only(pictures: Tensor) -> None:
    shapes = patterns(pictures)
    direct = [
        1 - float(shapes[i] @ shapes[j])
        for i in range(48)
        for j in range(48)
        if CAPTIONS[i] != CAPTIONS[j]
    ]
    assert diversity(shapes, CAPTIONS) == pytest.approx(sum(direct) / len(direct), abs=1e-6)
    twins = shapes.repeat_interleave(2, dim=0)  # equal pictures of one caption change nothing
    assert diversity(twins, [c for c in CAPTIONS for _ in "ab"]) == pytest.approx(
        diversity(shapes, CAPTIONS), abs=1e-6
    )


def test_what_quantization_did_is_not_held_against_the_calibration(pictures: Tensor) -> None:
    assert not tripped(pictures, over_saturated(pictures), over_saturated(pictures))
    assert tripped(pictures, over_saturated(pictures), over_saturated(over_saturated(pictures)))


@pytest.mark.parametrize(
    ("identity", "calibrated", "ok"),
    [
        (1.0, 1.14, True),
        (1.0, 1.16, False),
        (1.0, 0.84, False),
        (0.8, 0.82, True),  # nearer to full precision than the identity
        (0.8, 1.19, True),  # on the other side, but no further away
        (0.8, 1.21, False),
    ],
)
def test_a_guard_trips_above_its_limit_and_beyond_the_identity(
    identity: float, calibrated: float, ok: bool
) -> None:
    guard = Guard("contrast", 1.0, identity, calibrated, limit=0.15)
    assert guard.ok is ok
    assert guard.to_dict()["shift"] == pytest.approx(calibrated - 1)


def test_grey_pictures_are_no_division_by_zero() -> None:
    grey = torch.full((48, 3, 16, 16), 0.5)
    values = look(grey)
    assert set(values) == set(NAMES)
    assert all(guard.ok for guard in guards(values, values, values, LIMITS))
