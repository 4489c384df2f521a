"""Files that people bring: each is read or refused in one line, and nothing waits or overflows."""

import math
import os
from pathlib import Path

import pytest

from qsched.captions import read_captions
from qsched.errors import DocumentError, PromptError, QschedError
from qsched.files import documents
from qsched.schedule.coefficients import Coefficients
from qsched.study.study import load_study
from tests.support import fuzz


def pipe(path: Path) -> None:
    os.mkfifo(path)


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (pipe, "it is a pipe; expected a file"),
        (Path.mkdir, "it is a folder; expected a file"),
        (lambda path: path.symlink_to("/dev/zero"), "it is a device; expected a file"),
        (lambda path: path.symlink_to(path.name), "Too many levels of symbolic links"),
        (sparse, "it has 1,099,511,627,776 bytes; expected at most 1,048,576"),
        (lambda path: None, "No such file or directory"),
        (lambda path: path.write_bytes(b"\xff\xfea\0"), "it is not UTF-8 text; save it as UTF-8"),
    ],
)
def test_what_is_no_text_is_refused_at_once(make, words, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "file"
    make(path)
    with pytest.raises(DocumentError, match=words):
        documents.read(path)
    for name in ("a" * 5000, "a\0b"):
        with pytest.raises(DocumentError):
            documents.read(tmp_path / name)


def test_a_byte_order_mark_and_ends_of_lines_are_no_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\xef\xbb\xbfa\r\nb\rc\n")
    assert documents.read(path) == "a\nb\nc\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a = " + "9" * 4400, "not valid TOML: Exceeds the limit"),
        ("a = 0x" + "f" * 5000, "^a: a whole number of more than 64 bits"),
        ("[t]\na = [1.0, nan]", r"t\.a\.1 = nan; expected a finite number"),
        ("a = -inf", "a = -inf; expected a finite number"),
        ("a = 1979-05-27", "a = datetime.*; expected text, a number or true or false"),
        ('a = "x\\u0000"', "holds a NUL; remove it"),
        ("a = " + "[" * 5000, "not valid TOML: maximum recursion depth"),
        ("a = " + "[" * 80 + "]" * 80, "64 deep; expected fewer"),
        (".".join("a" * 100_000) + " = 1", "line 1: a key of more than 16 parts"),
        ("\n[" + ".".join("a" * 100_000) + "]", "line [12]: a key of more than 16 parts"),
        ("a = { " + " . ".join(["'b'"] * 100_000) + " = 1 }", "a key of more than 16 parts"),
    ],
)
def test_toml_that_nobody_means(text: str, words: str) -> None:
    with pytest.raises(DocumentError, match=words) as raised:
        documents.from_toml(text)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300


def test_dots_in_text_are_no_parts_of_a_key() -> None:
    text = 'a = "' + "b." * 50 + '"\nc = ["x, ' + ".".join("defghijklmnop") + '", 1.5]\n'
    assert documents.from_toml(text)["c"][1] == 1.5


@pytest.mark.parametrize(
    "text",
    [
        "- !!bool foo",
        '- !!int ""',
        "- !!timestamp foo",
        "- 0x" + "f" * 5000,
        "? [a]\n: {b: c",
        "- " * 9999,
    ],
)
def test_yaml_that_its_parser_trips_over(text: str) -> None:
    with pytest.raises(DocumentError) as raised:
        documents.from_yaml(text)
    assert "\n" not in str(raised.value)


def test_an_alias_bomb_is_looked_at_once_and_shown_shortly(tmp_path: Path) -> None:
    lines = ["- &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"- &a{n + 1} [{', '.join([f'*a{n}'] * 10)}]" for n in range(30)]
    (tmp_path / "bomb.yaml").write_text("\n".join(lines))
    (tmp_path / "first.yaml").write_text(
        "- prompt: [" + ", ".join(line[2:] for line in lines) + "]\n"
    )
    (tmp_path / "loop.yaml").write_text("- &a [*a]\n")
    for name in ("bomb.yaml", "first.yaml", "loop.yaml"):
        with pytest.raises(PromptError, match=r"entry 1: .*; expected a caption") as raised:
            read_captions(tmp_path / name)
        assert len(str(raised.value)) < 300


def test_a_place_is_a_path_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert documents.located("~/a", tmp_path) == Path("/home/me/a")
    assert documents.located("a", tmp_path) == tmp_path / "a"
    for odd in ("~nouser/x", "a\0b", "x" * 300, "x/" * 3000, "\ud800"):
        with pytest.raises(DocumentError):
            documents.located(odd, tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('name = "demo"', 'name = "demo"\nsource = "~nouser/x"', "model.source"),
        (
            'name = "demo"',
            'name = "demo"\nsource = "broken-0"',
            "model_index.json: .*not valid JSON",
        ),
        ('name = "demo"', 'name = "./broken-1"', "expected a JSON object"),
        ('name = "demo"', 'name = "./broken-4"', r"_class_name = \{\}"),
        (
            'preset = "plain"',
            'preset = ["clip"]',
            r"objective.preset = \['clip'\]; expected 'stand",
        ),
        ('"captions.txt"', '"pipe"', "pipe: it is a pipe"),
        ('"captions.txt"', '"~nouser/x"', "prompts.calibration = '~nouser/x'; Could not"),
        (
            '"captions.txt"\ncalibration_count = 3',
            '"hf://datasets/a/b/c.txt"\ncalibration_count = 9223372036854775807',
            "calibration_count = .*; expected at most 100000",
        ),
        ("batch_size = 2", '"batch\\nsize" = 2', r"execution.batch\\nsize is not a known key"),
    ],
)
def test_an_odd_study_file_is_one_line(tmp_path: Path, old: str, new: str, words: str) -> None:
    fuzz.world(tmp_path)
    (tmp_path / "study.toml").write_text(fuzz.STUDY.replace(old, new))
    with pytest.raises(QschedError, match=words) as raised:
        load_study(tmp_path / "study.toml", fetch=False)
    assert all(
        line.startswith(f"{tmp_path}/study.toml: ") for line in str(raised.value).splitlines()
    )


def test_weights_that_overflow_have_no_sum() -> None:
    with pytest.raises(QschedError, match="adds up to inf; expected 1"):
        Coefficients((1.0,) * 4, (1.0,) * 4, (math.nextafter(math.inf, 0),) * 4)


def test_a_thousand_odd_files_are_taken_or_refused(tmp_path: Path) -> None:
    """The same functions as the commands', each file within five seconds."""
    fuzz.world(tmp_path)
    fuzz.warm_up(tmp_path)
    found = [fuzz.outcome(odd, fuzz.by_function) for odd in fuzz.stream(tmp_path, 1000, seed=0)]
    assert [(each.odd, each.wrong) for each in found if each.wrong] == []
    for kind in ("study", "prompts", "coefficients"):
        mine = [bool(each.refused) for each in found if each.odd.kind == kind]
        assert len(mine) > 250
        assert set(mine) == {True, False}, "a fuzz that takes nothing, or all, looks at nothing"
