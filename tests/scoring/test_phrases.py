"""Noun phrases of captions: what the AQ-Map score looks for in an image."""

import re
import subprocess
import sys

import pytest

from qsched.scoring import phrases
from qsched.scoring.phrases import noun_phrases


def examples() -> list[tuple[str, tuple[str, ...]]]:
    """The examples of the module's docstring."""
    found = re.findall(r"^    (\S.*)\n        (\S.*)$", str(phrases.__doc__), flags=re.MULTILINE)
    return [(caption, tuple(listed.split(" | "))) for caption, listed in found]


def test_the_docstring_has_its_examples() -> None:
    assert len(examples()) == 5


@pytest.mark.parametrize(("caption", "expected"), examples())
def test_the_examples_are_what_it_does(caption: str, expected: tuple[str, ...]) -> None:
    assert noun_phrases(caption) == expected


@pytest.mark.parametrize("caption", ["running quickly", "It is raining.", "!?", "🙂", ""])
def test_a_caption_without_a_noun_is_a_phrase_itself(caption: str) -> None:
    assert noun_phrases(caption) == (caption,)


def test_a_phrase_counts_once() -> None:
    assert noun_phrases("a red fox and a red fox and an owl") == ("red fox", "owl")


def test_slashes_and_line_breaks_are_kept_apart() -> None:
    assert noun_phrases("a cat/dog and\n\na small house") == ("cat/dog", "small house")


def test_it_needs_neither_torch_nor_a_download() -> None:
    """TextBlob's other parsers look for corpora of NLTK; this one must not."""
    code = (
        "import sys, socket\n"
        "def refuse(*args, **options): raise AssertionError('network')\n"
        "socket.socket.connect = refuse\n"
        "from qsched.scoring.phrases import noun_phrases\n"
        "assert noun_phrases('a red fox') == ('red fox',)\n"
        "assert 'torch' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
