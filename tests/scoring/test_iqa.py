"""pyiqa's metrics as scorers, beside pyiqa's own calls on the same weights."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qsched import hub
from qsched.errors import HubError, ScoreError
from qsched.plugins import beside
from qsched.prompts import Prompt
from qsched.scoring import iqa

pyiqa = pytest.importorskip("pyiqa")

CPU = torch.device("cpu")


def smooth(height: int = 96, width: int = 64, count: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 9, 9, generator=generator)
    return F.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)


def scored(scorer: Any, images: Tensor) -> Tensor:
    with torch.inference_mode():
        values: Tensor = scorer.score(images, [Prompt("a fox", 0)] * len(images))
    return values if scorer.direction == "maximize" else -values


@pytest.mark.parametrize(("name", "sign"), [("piqe", -1), ("entropy", 1)])
def test_the_value_is_pyiqas_own_turned_so_that_higher_is_better(name: str, sign: int) -> None:
    """The two that need no weights: one is lower for better images."""
    images = smooth()
    own = pyiqa.create_metric(name, device=CPU)
    assert own.lower_better is (sign < 0)
    assert torch.equal(scored(iqa.load_pyiqa(name), images), sign * own(images).flatten())


@pytest.fixture(scope="module")
def tiny() -> str:
    """A tiny random CLIP in the format of OpenAI's files."""
    return str(iqa._twin_file())


def test_a_clip_metric_is_pyiqas_own(tiny: str) -> None:
    images = smooth()
    own = pyiqa.create_metric("clipiqa", device=CPU, backbone=tiny)
    values = scored(iqa.load_pyiqa("clipiqa", twin=True), images)
    assert torch.allclose(values, own(images).flatten(), atol=1e-6)
    assert values.std() > 1e-4


def test_clip_iqa_is_pyiqas_with_the_quality_pair(tiny: str) -> None:
    from pyiqa.archs.clip_imports import clip

    own = pyiqa.create_metric("clipiqa", device=CPU, backbone=tiny)
    five = own(smooth()).flatten()
    own.net.prompt_pairs = clip.tokenize(["Good photo.", "Bad photo."])
    expected = own(smooth()).flatten()
    values = scored(iqa.load_clip_iqa(twin=True), smooth())
    assert torch.allclose(values, expected, atol=1e-5)
    assert not torch.allclose(values, five, atol=1e-3), "the pair makes no difference here"
    assert ((values > 0) & (values < 1)).all()


def test_clip_iqa_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = iqa.load_clip_iqa(twin=True)
    full = scored(scorer, smooth())
    monkeypatch.setattr(iqa, "precision", lambda device: torch.bfloat16)
    scorer.prepare(CPU)
    half = scored(scorer, smooth())
    assert half.dtype == torch.float32
    assert not torch.equal(half, full)
    assert torch.allclose(half, full, atol=0.02)


@pytest.mark.parametrize("name", ["clip-iqa", "piqe", "musiq", "niqe"])
def test_an_image_is_scored_alone_as_in_a_batch(name: str) -> None:
    load = iqa.load_clip_iqa if name == "clip-iqa" else lambda twin: iqa.load_pyiqa(name, twin=twin)
    scorer, images = load(twin=True), smooth()
    together = scored(scorer, images)
    assert together.shape == (4,)
    for index in range(4):
        alone = scored(scorer, images[index : index + 1])
        assert float(alone[0]) == pytest.approx(float(together[index]), abs=1e-5)


def test_a_twin_keeps_the_direction_of_the_metric_it_stands_in_for() -> None:
    images = smooth()
    higher, lower = iqa.load_pyiqa("musiq", twin=True), iqa.load_pyiqa("niqe", twin=True)
    assert torch.equal(scored(higher, images), -scored(lower, images))


class Crops(nn.Module):
    """Looks at random places, drawn from wherever pyiqa's metrics draw."""

    def forward(self, images: Tensor) -> Tensor:
        drawn = np.random.random() + torch.rand(1).item() + random.random()
        return images.mean(dim=(1, 2, 3)) + drawn


def test_random_crops_are_the_same_in_every_call_and_nobody_elses_change() -> None:
    scorer = iqa.NoReference(Crops(), lower_better=False)
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    expected = (random.random(), np.random.random(), torch.rand(1).item())
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    first = scored(scorer, smooth())
    assert (random.random(), np.random.random(), torch.rand(1).item()) == expected
    assert torch.equal(first, scored(scorer, smooth()))


def test_modules_hidden_in_lists_move_too() -> None:
    class Hiding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen, self.hidden = nn.Linear(1, 1), [nn.Linear(1, 1)]

    hiding = Hiding()
    iqa.move(nn.Sequential(hiding), torch.device("meta"))
    assert hiding.seen.weight.is_meta
    assert hiding.hidden[0].weight.is_meta


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("musik", "pyiqa has no such metric; did you mean musiq"),
        ("lpips", "reference image"),
        ("fid", "whole set"),
        ("clipscore", "captions"),
    ],
)
def test_a_metric_that_cannot_score_is_refused(name: str, words: str) -> None:
    with pytest.raises(ScoreError, match=words):
        iqa.load_pyiqa(name)


def test_nothing_is_asked_of_the_network_where_that_is_forbidden(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """pyiqa's own downloads go through `hub`, and only while it loads."""
    from pyiqa.utils import download_util

    own = download_util.download_url_to_file
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"), iqa._loading():
        download_util.load_file_from_url("https://example.invalid/weights.pth", str(tmp_path))
    assert download_util.download_url_to_file is own
    (tmp_path / "weights.pth").write_bytes(b"here")
    with iqa._loading():
        place = download_util.load_file_from_url(
            "https://example.invalid/weights.pth", str(tmp_path)
        )
    assert Path(place).read_bytes() == b"here"


def test_loading_prints_nothing(capfd: pytest.CaptureFixture[str], tiny: str) -> None:
    with iqa._loading():
        print("Loading pretrained model")
    iqa.load_pyiqa("piqe")
    printed: Sequence[str] = capfd.readouterr()
    assert "Loading" not in printed[0]
    assert not printed[0]


# What is not ours may be anything.


@pytest.mark.parametrize("name", ["qalign", "qalign_8bit", "compare2score"])
def test_code_of_the_hubs_runs_only_by_leave(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    monkeypatch.setattr(pyiqa, "create_metric", lambda name, **_: made.append(name))
    monkeypatch.setattr(iqa, "_openai_clip", lambda name: None)
    with pytest.raises(ScoreError, match=f"needs --allow-code pyiqa:{name}"):
        iqa.load_pyiqa(name)
    with beside(None, (), ["pyiqa:musiq"]), pytest.raises(ScoreError, match="needs --allow-code"):
        iqa.load_pyiqa(name)
    assert made == []
    with beside(None, (), [f"pyiqa:{name}"]):
        iqa.load_pyiqa(name)
    assert made == [name]


class Pickled:
    """What a file of weights can do when all of it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("it ran",)


def test_a_file_of_pyiqas_is_read_for_its_weights_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """cnniqa loads its file with weights_only=False."""
    monkeypatch.setattr("pyiqa.utils.download_util.DEFAULT_CACHE_DIR", str(tmp_path))
    served = tmp_path / "served.pth"
    torch.save(Pickled(), served)
    monkeypatch.setattr(hub, "fetch_url", lambda url, place: place.symlink_to(served))
    with pytest.raises(ScoreError, match=r"more than weights.*--allow-code pyiqa:cnniqa"):
        iqa.load_pyiqa("cnniqa")
    assert "it ran" not in capsys.readouterr().out
    assert torch.load.__name__ == "load"  # torch's own again


def test_each_file_that_is_loaded_is_told(tmp_path: Path) -> None:
    """However pyiqa and timm load it; from their caches they do it without asking anybody."""
    weights = {"w": torch.ones(1)}
    torch.save(weights, tmp_path / "a.pth")
    torch.jit.trace(nn.Linear(1, 1), torch.ones(1)).save(str(tmp_path / "b.pt"))
    safetensors.torch.save_file(weights, tmp_path / "c.safetensors")
    own = torch.load, torch.jit.load, safetensors.torch.load_file
    with hub.noted() as files, iqa._loading():
        torch.load(str(tmp_path / "a.pth"))
        with (tmp_path / "b.pt").open("rb") as opened:
            torch.jit.load(opened)
        safetensors.torch.load_file(tmp_path / "c.safetensors")
        torch.load(tmp_path / "a.pth")
    assert files == [tmp_path / name for name in ("a.pth", "b.pt", "c.safetensors")]
    assert (torch.load, torch.jit.load, safetensors.torch.load_file) == own


def test_openais_file_is_known_by_its_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "RN50.pt").write_bytes(b"another")
    monkeypatch.setattr(hub, "fetch_url", lambda url, place: tmp_path / "RN50.pt")
    with pytest.raises(ScoreError, match="is not OpenAI's RN50, by its digest; remove the file"):
        iqa._openai_clip("RN50")
