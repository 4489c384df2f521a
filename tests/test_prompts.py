"""Prompts: read, chosen and seeded so that nothing moves that need not."""

from pathlib import Path

import pytest

from qsched.errors import PromptError
from qsched.prompts import Prompt, choose, read_captions, stable_seed, with_seeds


def test_a_file_of_captions(tmp_path: Path) -> None:
    file = tmp_path / "captions.txt"
    file.write_text("# made by hand\n a cat \n\nun château à l'aube\n", encoding="utf-8")
    assert read_captions(file) == ["a cat", "un château à l'aube"]


@pytest.mark.parametrize(
    ("content", "problem"), [(b"# nothing\n\n", "no caption"), (b"\xff\xfe\x00", "not UTF-8")]
)
def test_a_broken_file_is_named(tmp_path: Path, content: bytes, problem: str) -> None:
    file = tmp_path / "captions.txt"
    file.write_bytes(content)
    with pytest.raises(PromptError, match=problem) as raised:
        read_captions(file)
    assert str(file) in str(raised.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"nowhere\.txt: No such file"):
        read_captions(tmp_path / "nowhere.txt")


def test_choice_does_not_depend_on_the_files_order() -> None:
    captions = [f"caption {index}" for index in range(30)]
    chosen = choose(captions, 8, seed=1, where="prompts")
    assert choose(captions[::-1], 8, seed=1, where="prompts") == chosen
    assert choose(captions, 8, seed=2, where="prompts") != chosen
    assert choose(captions, 12, seed=1, where="prompts")[:8] == chosen


def test_all_captions_stay_in_their_order() -> None:
    assert choose(["b", "a"], None, seed=0, where="prompts") == ["b", "a"]


def test_duplicates_and_too_few_are_refused() -> None:
    with pytest.raises(PromptError, match="'a' stands there twice"):
        choose(["a", "b", "a"], 2, seed=0, where="prompts")
    with pytest.raises(PromptError, match="2 captions; the study asks for 5"):
        choose(["a", "b"], 5, seed=0, where="prompts")


def test_seeds_differ_by_caption_split_and_repetition_and_stay() -> None:
    calibration = with_seeds(["a", "b"], seed=0, split="calibration")
    held_out = with_seeds(["a", "b"], seed=0, split="held_out", seeds_per_prompt=2)
    seeds = [prompt.seed for prompt in calibration + held_out]
    assert len(set(seeds)) == 6
    assert [prompt.text for prompt in held_out] == ["a", "a", "b", "b"]
    assert with_seeds(["new", "b"], seed=0, split="calibration")[1] == calibration[1]
    assert with_seeds(["a"], seed=1, split="calibration")[0] != calibration[0]


def test_seeds_are_the_same_on_every_machine() -> None:
    """A published study is repeatable: these numbers must never change."""
    assert stable_seed("calibration", 0, "a cat", 0) == 8515694102493198320
    assert with_seeds(["a cat"], seed=0, split="calibration") == (
        Prompt("a cat", 8515694102493198320),
    )
