"""The recipe of the demo model: an interrupted stage repeats the undisturbed one, and so on."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qsched.demo import captions as language
from training import alignment, damages, scenes, training, words


def train(work: Path, *, stop_at: int = 0) -> Tensor:
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
        y: Tensor = model(x)
        return (y[:, 0] - x.sum(1)).square().mean()

    modules = nn.ModuleDict({"model": model})
    training.Training("linear", modules, loss, 20, 0.05, work, warmup=5, every=4).run()
    return model.weight.detach()


def test_an_interrupted_stage_repeats_the_undisturbed_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = train(tmp_path / "undisturbed")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "interrupted", stop_at=11)
    torch.manual_seed(99)
    assert torch.equal(train(tmp_path / "interrupted"), expected)
    assert torch.equal(train(tmp_path / "interrupted"), expected)  # finished: at once
    assert "linear: step 20/20" in capsys.readouterr().out


def test_every_word_is_one_token_and_both_tokenizers_agree(tmp_path: Path) -> None:
    _, contrastive = alignment.new_alignment(tmp_path)
    tokenizer = words.new_tokenizer()
    texts = [str(c) for c in language.sample_many(50, 7, held_out=False)]
    ids = words.tokenize(tokenizer, texts)
    assert ids.shape == (50, words.TOKENS)
    for text, row, other in zip(texts, ids.tolist(), contrastive(texts).tolist(), strict=True):
        length = len(text.split()) + 2
        assert length <= words.TOKENS
        assert row[length - 1] == tokenizer.eos_token_id == max(row)
        assert row[:length] == other[:length]


def test_scenes_are_drawn_by_their_seed() -> None:
    sprites = torch.rand(2, len(language.OBJECTS), 4, 64, 64)
    sprites[:, :, :3] *= sprites[:, :, 3:]
    captions = language.sample_many(20, 0, held_out=False)

    def drawn(seed: int) -> Tensor:
        return scenes.render(captions, sprites, torch.Generator().manual_seed(seed))

    assert drawn(0).shape == (20, 3, 64, 64)
    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))
    assert drawn(0).min() >= 0
    assert drawn(0).max() <= 1


def test_things_lie_where_the_caption_says() -> None:
    left, right = scenes.layouts(
        language.parse("a flat owl left of a flat bell on a red background")
    )
    above, below = scenes.layouts(
        language.parse("a flat owl above a flat bell on a red background")
    )
    assert left.x < 32 < right.x
    assert above.y < 32 < below.y
    bottom = scenes.layouts(language.parse("a small flat owl at the bottom on a red background"))
    assert bottom[0].y > 32


def test_damage_grows_from_nothing() -> None:
    torch.manual_seed(0)
    smooth = torch.rand(4, 3, 8, 8)
    images = torch.nn.functional.interpolate(smooth, size=64, mode="bicubic").clamp(0, 1)
    for name, damage in damages.DAMAGES.items():
        change = [
            (damage(images, torch.full((4,), severity)) - images).abs().mean().item()
            for severity in (0.0, 0.3, 1.0)
        ]
        assert change[0] < 0.02, name
        assert change[0] < change[1] < change[2], name


def test_the_features_of_scenes_repeat(tmp_path: Path) -> None:
    sprites = torch.rand(2, len(language.OBJECTS), 4, 64, 64)
    sprites[:, :, :3] *= sprites[:, :, 3:]
    captions = scenes.reference_captions(40, 0)
    a, b = tmp_path / "a" / "scenes.npz", tmp_path / "b" / "scenes.npz"
    for path in (a, b):
        scenes.write_features(path, captions, sprites, 0)
    assert a.read_bytes() == b.read_bytes()
    assert np.load(a)["features"].shape == (40, 112)


def test_the_captions_of_the_real_scenes_are_held_out_and_repeat() -> None:
    captions = scenes.reference_captions(40, 0)
    assert captions == scenes.reference_captions(40, 0)
    assert len(captions) == 40
    assert all(caption.held_out for caption in captions)


def test_a_changed_download_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p-1.tgz").write_bytes(b"other")
    with pytest.raises(RuntimeError, match=r"p-1\.tgz: sha256 is .*; expected abc"):
        scenes.download("p", "1", "abc", tmp_path)
