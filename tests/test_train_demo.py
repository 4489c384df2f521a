"""The recipe of the demo model: an interrupted stage repeats the undisturbed one, and so on."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qsched.demo import captions as language


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    path = Path(__file__).parents[1] / "scripts" / "train_demo.py"
    specification = importlib.util.spec_from_file_location("train_demo", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["train_demo"] = module
    specification.loader.exec_module(module)
    return module


def train(recipe: ModuleType, work: Path, *, stop_at: int = 0) -> Tensor:
    """Twenty steps on random numbers; at step `stop_at` the machine goes down."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    calls = 0

    def loss() -> Tensor:
        nonlocal calls
        calls += 1
        if calls == stop_at:
            raise KeyboardInterrupt
        x = torch.randn(8, 3)
        return (model(x)[:, 0] - x.sum(1)).square().mean()

    modules = nn.ModuleDict({"model": model})
    recipe.Training("linear", modules, loss, 20, 0.05, work, warmup=5, every=4).run()
    return model.weight.detach()


def test_an_interrupted_stage_repeats_the_undisturbed_one(
    recipe: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = train(recipe, tmp_path / "undisturbed")
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "interrupted", stop_at=11)
    torch.manual_seed(99)
    assert torch.equal(train(recipe, tmp_path / "interrupted"), expected)
    assert torch.equal(train(recipe, tmp_path / "interrupted"), expected)  # finished: at once
    assert "linear: step 20/20" in capsys.readouterr().out


def test_every_word_is_one_token_and_both_tokenizers_agree(
    recipe: ModuleType, tmp_path: Path
) -> None:
    _, contrastive = recipe.new_alignment(tmp_path)
    tokenizer = recipe.new_tokenizer()
    texts = [str(c) for c in language.sample_many(50, 7, held_out=False)]
    ids = recipe.tokenize(tokenizer, texts)
    assert ids.shape == (50, recipe.TOKENS)
    for text, row, other in zip(texts, ids.tolist(), contrastive(texts).tolist(), strict=True):
        length = len(text.split()) + 2
        assert length <= recipe.TOKENS
        assert row[length - 1] == tokenizer.eos_token_id == max(row)
        assert row[:length] == other[:length]


def test_scenes_are_drawn_by_their_seed(recipe: ModuleType) -> None:
    sprites = torch.rand(2, len(language.OBJECTS), 4, 64, 64)
    sprites[:, :, :3] *= sprites[:, :, 3:]
    captions = language.sample_many(20, 0, held_out=False)

    def scenes(seed: int) -> Tensor:
        return recipe.render(captions, sprites, torch.Generator().manual_seed(seed))

    assert scenes(0).shape == (20, 3, 64, 64)
    assert torch.equal(scenes(0), scenes(0))
    assert not torch.equal(scenes(0), scenes(1))
    assert scenes(0).min() >= 0
    assert scenes(0).max() <= 1


def test_things_lie_where_the_caption_says(recipe: ModuleType) -> None:
    left, right = recipe.layouts(
        language.parse("a flat owl left of a flat bell on a red background")
    )
    above, below = recipe.layouts(
        language.parse("a flat owl above a flat bell on a red background")
    )
    assert left.x < 32 < right.x
    assert above.y < 32 < below.y
    bottom = recipe.layouts(language.parse("a small flat owl at the bottom on a red background"))
    assert bottom[0].y > 32


def test_damage_grows_from_nothing(recipe: ModuleType) -> None:
    torch.manual_seed(0)
    smooth = torch.rand(4, 3, 8, 8)
    images = torch.nn.functional.interpolate(smooth, size=64, mode="bicubic").clamp(0, 1)
    for name, damage in recipe.DAMAGES.items():
        change = [
            (damage(images, torch.full((4,), severity)) - images).abs().mean().item()
            for severity in (0.0, 0.3, 1.0)
        ]
        assert change[0] < 0.02, name
        assert change[0] < change[1] < change[2], name


def test_the_features_of_scenes_repeat(
    recipe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sprites = torch.rand(2, len(language.OBJECTS), 4, 64, 64)
    sprites[:, :, :3] *= sprites[:, :, 3:]
    drawn: list[language.Caption] = []
    render = recipe.render

    def rendered(captions: list[language.Caption], *rest: object) -> Tensor:
        drawn.extend(captions)
        return render(captions, *rest)

    monkeypatch.setattr(recipe, "load_sprites", lambda folder: sprites)
    monkeypatch.setattr(recipe, "render", rendered)
    monkeypatch.setattr(recipe, "REFERENCE", 40)
    for name in ("a", "b"):
        recipe.make_scenes(tmp_path / name, tmp_path, 0)
    assert (tmp_path / "a" / "scenes.npz").read_bytes() == (
        tmp_path / "b" / "scenes.npz"
    ).read_bytes()
    assert np.load(tmp_path / "a" / "scenes.npz")["features"].shape == (40, 112)
    assert len(drawn) == 80
    assert all(caption.held_out for caption in drawn)


def test_a_changed_download_is_refused(recipe: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "p-1.tgz").write_bytes(b"other")
    with pytest.raises(RuntimeError, match=r"p-1\.tgz: sha256 is .*; expected abc"):
        recipe.download("p", "1", "abc", tmp_path)
