"""Scorers: what they prefer, and that a failure has a name and never becomes a number."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from qsched.errors import ScoreError
from qsched.prompts import Prompt
from qsched.score import (
    Scorers,
    checked,
    load_metrics,
    load_scorers,
    pixel_closeness,
)

PROMPTS = [Prompt("a flat owl", 1), Prompt("a shaded fox", 2)]
IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def mean_brightness(images: Tensor, captions: Sequence[str]) -> Tensor:
    return images.mean(dim=(1, 2, 3))


def test_scores_come_by_name_one_an_image() -> None:
    scores = Scorers({"brightness": mean_brightness}).score(IMAGES, PROMPTS)
    assert scores == {"brightness": pytest.approx(IMAGES.mean(dim=(1, 2, 3)).tolist())}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_not_finite_raises_with_scorer_and_prompt(bad: float) -> None:
    def broken(images: Tensor, captions: Sequence[str]) -> Tensor:
        return torch.tensor([1.0, bad])

    with pytest.raises(ScoreError, match=r"broken gave .* for 'a shaded fox'") as raised:
        Scorers({"broken": broken}).score(IMAGES, PROMPTS)
    assert (raised.value.scorer, raised.value.prompt) == ("broken", "a shaded fox")


def test_a_scorer_that_raises_fails_by_name() -> None:
    def broken(images: Tensor, captions: Sequence[str]) -> Tensor:
        raise ZeroDivisionError("no reason")

    with pytest.raises(
        ScoreError, match=r"broken failed.*'a flat owl'.*ZeroDivisionError"
    ) as raised:
        Scorers({"broken": broken}).score(IMAGES, PROMPTS)
    assert raised.value.scorer == "broken"


def test_the_wrong_number_of_values_is_refused() -> None:
    with pytest.raises(ScoreError, match=r"returned shape \(1,\) for 2 images"):
        checked("short", PROMPTS, lambda: torch.zeros(1))


def test_pixels_measures_the_rms_difference() -> None:
    one, other = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    other[1] += 10 / 255
    assert pixel_closeness(one, [], other).tolist() == pytest.approx([0.0, -10.0])


def test_similarity_is_one_for_equal_images_and_falls_with_damage() -> None:
    similarity = load_metrics(["similarity"])["similarity"]
    generator = torch.Generator().manual_seed(0)
    image = torch.nn.functional.interpolate(
        torch.rand(1, 3, 8, 8, generator=generator), size=64, mode="bicubic"
    ).clamp(0, 1)
    noise = torch.randn(1, 3, 64, 64, generator=generator)
    damaged = [(image + strength * noise).clamp(0, 1) for strength in (0.0, 0.02, 0.05, 0.2)]
    with torch.inference_mode():
        values = [float(similarity(one, ["x"], image)) for one in damaged]
    assert values[0] == pytest.approx(1.0, abs=1e-5)
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.9


def test_scores_do_not_depend_on_the_batch() -> None:
    scorers = load_scorers(["demo-alignment", "demo-quality"])
    images = torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    prompts = [Prompt("a large flat owl on a pink background", seed) for seed in range(5)]
    together = scorers.score(images, prompts)
    for index in range(5):
        alone = scorers.score(images[index : index + 1], prompts[:1])
        for name, values in alone.items():
            assert values[0] == pytest.approx(together[name][index], abs=1e-4)
