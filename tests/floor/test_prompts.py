"""Prompts: read, chosen and seeded so that nothing moves that need not."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from qsched.captions import read_captions
from qsched.errors import PromptError
from qsched.prompts import Prompt, choose, is_remote, locate, split, stand_ins, with_seeds
from qsched.seeds import stable_seed


def coco(*images: tuple[str, str]) -> dict[str, object]:
    """A COCO-Karpathy file of (split, first sentence)."""
    return {
        "dataset": "coco",
        "images": [
            {
                "filepath": "val2014",
                "imgid": number,
                "split": part,
                "sentences": [{"raw": caption, "imgid": number}, {"raw": f"{caption} again"}],
            }
            for number, (part, caption) in enumerate(images)
        ],
    }


def written(folder: Path, name: str, content: object) -> Path:
    """The file, with `content` as text or as JSON."""
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


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


FORMATS = {
    "captions.txt": "a cat\n# not this\n\n  two dogs  \n",
    "captions.jsonl": '"a cat"\n\n{"prompt": " two dogs ", "seed": 3}\n',
    "captions.json": ["a cat", {"caption": "two dogs"}],
    "list.yaml": "- a cat\n- text: two dogs\n",
    "sDCI.yaml": "sa_1: a cat\nsa_2: |\n  two\n  dogs\nsa_3: a cat\nsa_4: ''\n",
    "meta_data.json": {
        "9f1": {"category": "animals", "prompt": "a cat"},
        "0a2": {"category": "animals", "prompt": "two\r\n dogs\n"},
        "77c": {"category": "art", "prompt": "a cat"},
    },
    "dataset_coco.json": coco(
        ("train", "left out"), ("restval", "a cat"), ("test", "two dogs"), ("val", "a cat ")
    ),
    "captions_val2017.json": {
        "images": [{"id": 7}, {"id": 2}, {"id": 5}, {"id": 9}],
        "annotations": [
            {"image_id": 2, "id": 1, "caption": "two\ndogs\n"},
            {"image_id": 7, "id": 2, "caption": "a cat"},
            {"image_id": 7, "id": 3, "caption": "another cat"},
            {"image_id": 9, "id": 4, "caption": "a cat"},
        ],
    },
    "upper.jsonl": '{"Prompt": "a cat"}\n{"TEXT": "two dogs"}\n',
    "parti.tsv": 'Prompt\tCategory\tNote\r\na cat\tAnimals\t\r\n"two dogs"\tAnimals\t\r\n',
    "drawbench.csv": '"Prompts",Category\na cat,Counting\n\n"two\n dogs",Counting\n',
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_captions(tmp_path: Path, name: str) -> None:
    assert read_captions(written(tmp_path, name, FORMATS[name])) == ["a cat", "two dogs"]


def test_only_line_feeds_and_carriage_returns_end_a_caption(tmp_path: Path) -> None:
    inside = ["dusk,\u2028with boats", "torn\x0cfrom", "a \x85 note", "b \x1e c \x0b d \u2029 e"]
    quoted = [f'"{caption}"' for caption in inside]
    for name, text in {
        "a.txt": "\r".join(inside),
        "a.json": json.dumps(inside),
        "a.jsonl": "\r\n".join(json.dumps(each, ensure_ascii=False) for each in inside),
        "a.csv": "\n".join(["prompt", *quoted]),
        "a.tsv": "\n".join(["prompt", *inside]),
    }.items():
        (tmp_path / name).write_bytes(text.encode())
        assert read_captions(tmp_path / name) == inside
    in_yaml = [inside[0], inside[2]]  # the others are no characters of YAML
    assert (
        read_captions(written(tmp_path, "a.yaml", f"x: {in_yaml[0]}\ny: {in_yaml[1]}\n")) == in_yaml
    )


def test_quotation_marks_of_tables(tmp_path: Path) -> None:
    rows = 'Prompt\tKind\n"Hi" on a sign\ta\n"a ""big"" cat"\tb\n5" nail, "new\tc\n'
    expected = ['"Hi" on a sign', 'a "big" cat', '5" nail, "new']
    assert read_captions(written(tmp_path, "a.tsv", rows)) == expected
    rows = 'Kind,Caption\na,"a ""big"" cat, alone"\nb,5" nail\n'
    assert read_captions(written(tmp_path, "a.csv", rows)) == ['a "big" cat, alone', '5" nail']


def test_a_coco_file_of_one_split_is_read_whole(tmp_path: Path) -> None:
    assert read_captions(written(tmp_path, "a.json", coco(("train", "a"), ("train", "b")))) == [
        "a",
        "b",
    ]
    without = {"images": [{"sentences": [{"raw": "a"}]}, {"sentences": [{"raw": "b"}]}]}
    assert read_captions(written(tmp_path, "b.json", without)) == ["a", "b"]


def test_a_byte_order_mark_is_no_part_of_a_caption(tmp_path: Path) -> None:
    for name, text in (("a.txt", "a cat\n"), ("a.json", '["a cat"]')):
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        assert read_captions(tmp_path / name) == ["a cat"]


def test_a_caption_that_comes_twice_in_a_list_is_left_to_be_refused(tmp_path: Path) -> None:
    """Captions are what a list is about; in a data set it is images."""
    for name, content in (("a.txt", "a\na\n"), ("a.jsonl", '"a"\n"a"\n'), ("a.json", ["a", "a"])):
        with pytest.raises(PromptError, match="'a' stands there twice"):
            choose(read_captions(written(tmp_path, name, content)), None, seed=0, where="prompts")


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.xlsx", "a,b", r"\.xlsx is not a format of captions; expected \.txt, \.jsonl"),
        ("a.csv", "a,b\nc,d", r"line 1: \['a', 'b'\]; expected a header with a column prompt"),
        ("a.csv", "prompt,kind\na cat, alone,x", "line 2: 3 fields; expected 2 as in the header"),
        ("a.csv", "prompt,kind\na\ncat,x", "line 2: 1 fields; expected 2"),
        ("a.csv", "prompt,kind\n,x", "line 2: an empty caption"),
        ("a.csv", 'prompt,kind\n"a" cat,x', "line 2: not valid CSV"),
        ("a.csv", 'prompt,kind\n"a cat,x', "line 2: not valid CSV"),
        ("a.tsv", "prompt\tkind\na\tcat\tx", "line 2: 3 fields; expected 2"),
        ("a.json", {"annotations": [{"bbox": [1]}]}, r"annotations\[0\]: .* captions_val2017"),
        (
            "a.json",
            {"images": [{"id": 1}], "annotations": [{"image_id": 2, "caption": "a"}]},
            "image_id 2 is not among the images",
        ),
        ("a.jsonl", '"a"\n{"prompt": \n', "line 2: not valid JSON: Expecting value at column"),
        ("a.jsonl", '"a"\n{"seed": 1}\n', "line 2: {'seed': 1}; expected a caption, or an obj"),
        ("a.jsonl", '"a"\n" "\n', "line 2: an empty caption; write one or remove it"),
        ("a.jsonl", '"\\ud800"\n', "line 1: .* is no text"),
        ("a.jsonl", "", "no caption in it"),
        ("a.json", '["a",\n "b"', "line 2: not valid JSON: Expecting ',' delimiter"),
        ("a.json", "[" * 100_000, "not valid JSON: maximum recursion depth"),
        ("a.json", ["a", 5], "entry 2: 5; expected a caption"),
        ("a.json", ["a", "x\0"], "entry 2: .* is no text"),
        ("a.json", "5", "5 is all there is; expected a list of captions, or a mapping"),
        ("a.json", {"9f": {"category": "art"}}, "key '9f': {'category': 'art'}; expected"),
        ("a.json", {"images": [{"split": "test"}]}, r"images\[0\]: {'split': 'test'}; expected"),
        ("a.json", {"images": ["a"]}, r"images\[0\]: 'a'; expected"),
        ("a.json", coco(("test", 7)), r"images\[0\].sentences\[0\].raw: 7; expected"),  # type: ignore[arg-type]
        ("a.json", coco(), "no caption in it"),
        ("a.yaml", "sa_1: a cat\nsa_2: no\n", "key 'sa_2': False; expected a caption.* quote it"),
        ("a.yaml", "sa_1: a: cat\n", "line 1: not valid YAML: mapping values are not allowed"),
        ("a.yaml", "", "no caption in it"),
        ("a.yaml", "sa_1: ''\n", "no caption in it"),
    ],
)
def test_what_is_broken_is_named_with_its_place(
    tmp_path: Path, name: str, content: object, problem: str
) -> None:
    with pytest.raises(PromptError, match=problem) as raised:
        read_captions(written(tmp_path, name, content))
    message = str(raised.value)
    assert message.startswith(f"{tmp_path / name}: ")
    assert "\n" not in message
    assert len(message) < len(str(tmp_path)) + 240


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


def test_an_empty_caption_of_a_list_is_refused() -> None:
    with pytest.raises(PromptError, match="prompts: caption 2 is empty"):
        choose(["a", " "], None, seed=0, where="prompts")


def test_one_list_is_split_without_overlap() -> None:
    captions = [f"caption {index}" for index in range(30)]
    ranked = choose(captions, 30, seed=3, where="prompts")
    assert split(captions, 8, 10, seed=3, where="prompts") == (ranked[:8], ranked[8:18])
    assert split(captions[::-1], 8, 10, seed=3, where="prompts") == (ranked[:8], ranked[8:18])
    assert split(captions, 8, None, seed=3, where="prompts") == (ranked[:8], ranked[8:])
    assert split(captions, 20, 10, seed=3, where="prompts") == (ranked[:20], ranked[20:])


def test_a_split_needs_enough_captions_and_a_place_to_cut() -> None:
    with pytest.raises(PromptError, match="prompts: 3 captions; the study asks for 2 to calibrate"):
        split(["a", "b", "c"], 2, 2, seed=0, where="prompts")
    with pytest.raises(PromptError, match="3 captions; the study asks for 4 to calibrate and some"):
        split(["a", "b", "c"], 4, None, seed=0, where="prompts")
    with pytest.raises(PromptError, match=r"set prompts\.calibration_count"):
        split(["a", "b", "c"], None, 2, seed=0, where="prompts")
    with pytest.raises(PromptError, match="'a' stands there twice"):
        split(["a", "b", "a"], 1, 1, seed=0, where="prompts")


def test_stand_ins_are_distinct_and_always_the_same() -> None:
    calibration, held_out = stand_ins(40_000, "calibration"), stand_ins(40_000, "held_out")
    assert len(set(calibration) | set(held_out)) == 80_000
    assert stand_ins(10, "calibration") == calibration[:10]
    assert calibration[0] == "a photo of a red apple on a table at dawn"
    assert max(len(caption.split()) for caption in calibration) < 20


def test_a_local_source_is_relative_to_the_study(tmp_path: Path) -> None:
    assert locate("prompts/a.txt", tmp_path, where="prompts") == tmp_path / "prompts" / "a.txt"
    assert locate("/data/a.txt", tmp_path, where="prompts") == Path("/data/a.txt")
    assert not is_remote("prompts/a.txt")
    assert is_remote("hf://datasets/a/b/c.yaml")


@pytest.mark.parametrize(
    "source", ["hf://datasets/owner/file.yaml", "hf://a/b@1/c.txt@2", "hf://", "hf://a/b/c@"]
)
def test_a_source_that_names_no_file_is_refused(source: str, tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="expected hf://datasets/OWNER/NAME/PATH"):
        locate(source, tmp_path, where="prompts.calibration")


NOWHERE = "http://127.0.0.1:9"  # nothing listens there
COMMIT = "35636da44cdc7cef8916b122a12e4aa9e2df80c1"


class Hub(BaseHTTPRequestHandler):
    """A hub of its own with one data set and one model."""

    files = {  # noqa: RUF012
        f"/datasets/lab/sets/resolve/{COMMIT}/a/sDCI.yaml": b"sa_1: a cat\n",
        "/datasets/lab/sets/resolve/main/a/sDCI.yaml": b"sa_1: a cat\n",
        "/lab/model/resolve/main/prompts.txt": b"a dog\n",
    }

    def do_HEAD(self) -> None:
        content = self.files.get(self.path)
        self.send_response(200 if content else 401 if "/shut/" in self.path else 404)
        if content:
            self.send_header("ETag", f'"{len(content)}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(content)))
        else:
            code = next(
                name
                for part, name in (
                    ("/shut/", "GatedRepo"),
                    ("/resolve/nowhere/", "RevisionNotFound"),
                    ("/lab/sets/", "EntryNotFound"),
                    ("", "RepoNotFound"),
                )
                if part in self.path
            )
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(self.files.get(self.path, b""))

    def log_message(self, *_: object) -> None:
        """Silent."""


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def located(sources: list[str], home: Path, endpoint: str, *, offline: bool) -> list[str]:
    """What `locate` and `read_captions` make of each source in a process of its own."""
    program = """
import json, sys
from pathlib import Path
from qsched.errors import PromptError
from qsched.captions import read_captions
from qsched.prompts import locate
answers = []
for source in sys.argv[1:]:
    try:
        answers.append("read " + ", ".join(read_captions(locate(source, Path(), where="here"))))
    except PromptError as error:
        answers.append(str(error))
print(json.dumps(answers))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, *sources],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ
        | {
            "HF_HOME": str(home),
            "HF_ENDPOINT": endpoint,
            "HF_HUB_OFFLINE": "1" if offline else "0",
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
        },
    )
    assert done.returncode == 0, done.stderr
    answers: list[str] = json.loads(done.stdout)
    return answers


def test_a_source_on_the_hub_is_fetched_once_and_each_failure_is_said(
    tmp_path: Path, hub: str
) -> None:
    pinned = f"hf://datasets/lab/sets/a/sDCI.yaml@{COMMIT}"
    found = {
        pinned: "read a cat",
        f"hf://datasets/lab/sets@{COMMIT}/a/sDCI.yaml": "read a cat",
        "hf://lab/model/prompts.txt": "read a dog",
    }
    missing = {
        "hf://datasets/lab/sets/a/other.yaml": "has no such file",
        "hf://datasets/lab/sets/a/sDCI.yaml@nowhere": "no such revision",
        "hf://datasets/shut/away/a.yaml": "is gated; accept its licence",
        "hf://datasets/lab/none/a.yaml": "correct the name",
    }
    answers = located([*found, *missing], tmp_path, hub, offline=False)
    assert answers[:3] == list(found.values())
    for answer, words in zip(answers[3:], missing.values(), strict=True):
        assert answer.startswith("here: ")
        assert words in answer
        assert "\n" not in answer
    kept, refused = located([pinned, "hf://a/b/c.txt"], tmp_path, NOWHERE, offline=True)
    assert kept == "read a cat"
    assert refused.startswith("here: a/b/c.txt is not downloaded and HF_HUB_OFFLINE is set")
    (kept,) = located([pinned], tmp_path, NOWHERE, offline=False)
    assert kept == "read a cat"


@pytest.mark.slow  # the hub's client tries for some 20 seconds
def test_a_hub_out_of_reach_is_said(tmp_path: Path) -> None:
    (answer,) = located(["hf://a/b/c.txt"], tmp_path, NOWHERE, offline=False)
    assert answer.startswith("here: a/b/c.txt is not downloaded and the hub can't be reached")


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
