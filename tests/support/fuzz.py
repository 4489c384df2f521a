"""Odd study, prompt and coefficient files: a seeded stream of them, and what becomes of each.

    python -m tests.support.fuzz --files 10000 --commands     # the table of docs/reference

A file is taken, or refused with a QschedError, in less than `PATIENCE` seconds; all else is a
defect. By function in this process, or by command: `qsched check` and `qsched generate` as the
console script runs them, in a pool of processes.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import random
import re
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from qsched.captions import read_captions
from qsched.cli import main, studies
from qsched.errors import QschedError, in_one_line
from qsched.prompts import choose, locate
from qsched.schedule.coefficients import Coefficients

PATIENCE = 5.0
"""Seconds."""

STUDY = """
name = "odd"
[model]
name = "demo"
dtype = "float32"
[sampling]
steps = 4
guidance_scale = 1.0
height = 64
none = ["negative_prompt"]
[sampling.call]
max_sequence_length = 32
[quantization]
scheme = "w4a8"
skip = ["*.proj_out"]
overrides = { "blocks.0.*" = "w8a8" }
[objective]
preset = "plain"
terms = [{ scorer = "demo-alignment", weight = 1.0 }, { scorer = "demo-quality", log = false }]
[search]
parametrisation = "ramp"
bounds = [0.8, 1.2]
sampler = "tpe"
trials = 6
seed = 0
stop_below = 0.0
prior = 0.1
[prompts]
calibration = "captions.txt"
calibration_count = 3
held_out = ["g", "h", "i"]
held_out_seeds = 2
[validation]
metrics = ["pixels"]
candidates = 2
limits = { contrast = 0.2 }
[execution]
batch_size = 2
device = "cpu"
launcher = "local"
[gallery]
trials = 2
store = "artifacts"
"""

PLAIN = "\n".join(f"caption {number}" for number in range(8)) + "\n"

PROMPTS: dict[str, str] = {
    ".txt": PLAIN,
    ".jsonl": '"a cat"\n{"prompt": "a dog", "seed": 3}\n"an owl"\n',
    ".json": json.dumps(
        {
            "images": [{"id": 1, "split": "test", "sentences": [{"raw": "a cat"}]}],
            "annotations": [{"image_id": 1, "id": 7, "caption": "a dog"}],
        }
    ),
    ".yaml": "- a cat\n- text: a dog\n- &owl an owl\n- {prompt: a fox, kind: *owl}\n",
    ".yml": "first: a cat\nsecond: |\n  two\n  dogs\nthird: {caption: a fox}\n",
    ".csv": 'prompt,kind\n"a cat, alone",1\na dog,2\n',
    ".tsv": 'caption\tkind\n"a ""cat"""\t1\na dog\t2\n',
}

ODD = (
    *("1e400", "-1e400", "nan", "-inf", "true", "null", "yes", "-1", "0", "1.5", "''", '""', "[]"),
    *("{}", "[1, 2]", "[[1]]", "[[nan]]", "{ a = 1 }", '{"a": 1}', "1979-05-27", "07:32:00"),
    *("9223372036854775807", "9223372036854775808", "-9223372036854775809", "9" * 4400),
    *("0x" + "f" * 5000, "[" * 2000, "{a=" * 300, "[" * 40 + "]" * 40, "[" * 80 + "]" * 80),
    *(".".join("a" * 40), ".".join("a" * 5000), '"' + "x" * 300 + '"', '"' + "x/" * 3000 + '"'),
    *('"a\\u0000b"', '"~nouser/x"', '"~/x"', '"loop"', '"pipe"', '"socket"', '"folder"', '"."'),
    *('"/dev/zero"', '"/dev/stdin"', '"/proc/self/mem"', '"/"', '"../.."', '"broken-0"'),
    *('"broken-1"', '"broken-2"', '"broken-3"', '"broken-4"', '"broken-5"', '"json:loads"'),
    *('"nowhere:x"', '":"', '"a:b:c"', '"hf://datasets/a/b/c.txt"', '"hf://"', '"s3://a/b"'),
    *(
        '"owner/name"',
        '"pyiqa:no-metric"',
        '"w0a99"',
        '"\\u001b[31m"',
        '"a\\nb"',
        '"\\ud800"',
        '"\u2028"',
    ),
    *("&a [*a]", "*nowhere", "!!bool foo", "!!timestamp x", '!!int ""', "!!python/object:os.x"),
    *("? [a]", "<<: 1", "# nothing", "\t", "\ufeff", "é", "0", "[demo]", "a = 1", "[model]"),
)
"""What takes a value's place."""

INDEXES = (
    *("{broken", "[1]", "\ud800{}", "{}", '{"_class_name": ["a", {}], "scheduler": [1]}'),
    '{"_class_name": "FluxPipeline", "transformer": ["a"], "scheduler": ["diffusers"]}',
)
"""The model_index.json of folders that are no pipelines."""

_VALUE = re.compile(r"(?<=[=:,\[ -])\s*[^=:,\[\]{}\n]+")


@dataclass(frozen=True)
class Odd:
    """A file, what reads it (study, prompts or coefficients), and how it was made."""

    kind: str
    path: Path
    how: str


@dataclass(frozen=True)
class Found:
    """What became of a file: taken, refused, or else what went wrong; in so many seconds."""

    odd: Odd
    seconds: float
    refused: str = ""
    wrong: str = ""


class Hung(BaseException):
    """The time is over; no `except Exception` swallows it."""


def world(folder: Path) -> None:
    """What odd files may name: a loop of links, a pipe, a socket, folders that hold no pipeline."""
    (folder / "captions.txt").write_text(PLAIN)
    (folder / "loop").symlink_to("loop")
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as made:
        made.bind(str(folder / "socket"))  # too long a path for it is no matter
    for number, text in enumerate(INDEXES):
        (folder / f"broken-{number}").mkdir()
        index = folder / f"broken-{number}" / "model_index.json"
        index.write_bytes(text.encode("utf-8", "surrogatepass"))


def warm_up(folder: Path) -> None:
    """What the first check of a process takes: imports, and a digest of the demo's weights."""
    (folder / "plain.toml").write_text(STUDY)
    with contextlib.redirect_stdout(io.StringIO()):
        studies.check([folder / "plain.toml"], as_json=True)


def stream(folder: Path, count: int, seed: int) -> Iterator[Odd]:
    """So many files, one after the other under the same few names; `world` comes first."""
    for number in range(count):
        dice = random.Random(f"{seed}-{number}")
        kind = dice.choice(("study", "prompts", "coefficients"))
        suffix = {"study": ".toml", "coefficients": ".json"}.get(kind) or dice.choice([*PROMPTS])
        path = folder / f"odd{suffix}"
        path.unlink(missing_ok=True) if path.is_symlink() or not path.is_dir() else path.rmdir()
        place = _PLACES.get(dice.randrange(40))
        if place is not None:
            place(path)
            yield Odd(kind, path, f"{number}: {place.__name__}")
            continue
        text = {"study": STUDY, "coefficients": _coefficients(dice)}.get(kind) or PROMPTS[suffix]
        changes = dice.choices(_CHANGES, k=dice.choice((1, 1, 2, 3)))
        content = text.encode()
        for change in changes:
            content = change(content, dice)
        path.write_bytes(content)
        yield Odd(kind, path, f"{number}: {', '.join(each.__name__ for each in changes)}")


def by_function(odd: Odd) -> None:
    """What the commands call; raises what they would."""
    if odd.kind == "study":
        studies.check([odd.path], as_json=True)
    elif odd.kind == "prompts":
        captions = read_captions(locate(str(odd.path), Path(), where="--prompts"))
        choose(captions, None, seed=0, where="--prompts")
    else:
        Coefficients.load(odd.path)


def by_command(odd: Odd) -> None:
    """`qsched check` or `qsched generate` as the console script runs it; raises QschedError with
    what it printed for exit code 2, AssertionError for another one or for many lines."""
    arguments = ["check", str(odd.path)]
    beside = odd.path.parent
    if odd.kind == "prompts":
        study = beside / "names.toml"
        study.write_text(
            STUDY.replace("captions.txt", odd.path.name).replace("count = 3", "count = 2")
        )
        arguments = ["check", str(study)]
    elif odd.kind == "coefficients":
        study = beside / "two-steps.toml"  # so that good ones are refused before a model is loaded
        study.write_text(
            re.sub("steps = 4", "", STUDY).replace("[sampling]", "[sampling]\nsteps = 2")
        )
        arguments = ["generate", "--model", str(study), "--coefficients", str(odd.path)]
        arguments += ["--prompts", str(beside / "captions.txt"), "--out", str(beside / "images")]
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        sys.argv = ["qsched", *arguments]
        try:
            main.main()
            code: object = 0
        except SystemExit as end:
            code = end.code
    lines = errors.getvalue().splitlines()
    assert code in (0, None, 2), f"exit code {code}"
    if code == 2:
        assert lines[0].startswith("error: "), lines[0]
        assert odd.kind == "study" or len(lines) == 1, lines[:3]
        raise QschedError("\n".join(lines))


def outcome(odd: Odd, run: Callable[[Odd], None]) -> Found:
    """Runs a file under the guard of the time."""

    def over(signum: int, frame: FrameType | None) -> None:
        raise Hung

    began = time.monotonic()
    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    refused = wrong = ""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            run(odd)
    except QschedError as error:
        refused = str(error)
        several = odd.kind != "study" and "\n" in refused
        wrong = f"several lines: {refused[:200]}" if several or not refused.strip() else ""
    except Hung:
        wrong = f"more than {PATIENCE} s"
    except Exception as error:  # noqa: BLE001 - what a traceback would show is looked for
        place = traceback.extract_tb(error.__traceback__)[-1]
        wrong = f"{in_one_line(error)} ({Path(place.filename).name}:{place.lineno})"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    seconds = time.monotonic() - began
    return Found(odd, seconds, refused, wrong or (f"{seconds:.1f} s" if seconds > PATIENCE else ""))


def table(found: Sequence[Found]) -> str:
    """A row a kind, in Markdown."""
    rows = ["| files | | taken | refused | tracebacks | over 5 s | slowest |", "|" + "---|" * 7]
    for kind in ("study", "prompts", "coefficients"):
        mine = [each for each in found if each.odd.kind == kind]
        slow = [each for each in mine if each.seconds > PATIENCE]
        count = Counter(
            "wrong" if each.wrong else "refused" if each.refused else "taken" for each in mine
        )
        rows.append(
            f"| {kind} | {len(mine):,} | {count['taken']:,} | {count['refused']:,} "
            f"| {count['wrong'] - len(slow):,} | {len(slow):,} "
            f"| {max((each.seconds for each in mine), default=0):.2f} s |"
        )
    return "\n".join(rows)


def _coefficients(dice: random.Random) -> str:
    average = (0.1, 0.2, 0.3, 0.4) if dice.random() < 0.5 else ()
    made = Coefficients((1.1, 1.05, 1.0, 1.0), (0.9, 0.95, 1.0, 1.0), average)
    text = made.to_json({"study": "odd", "trials": 6, "forced": False})
    return re.sub(r',\s*"digest": "[^"]*"', "", text) if dice.random() < 0.7 else text


def _value(content: bytes, dice: random.Random) -> bytes:
    text = content.decode(errors="surrogateescape")
    places = list(_VALUE.finditer(text))
    if not places:
        return dice.choice(ODD).encode(errors="surrogatepass")
    at = dice.choice(places)
    made = text[: at.start()] + f" {dice.choice(ODD)}" + text[at.end() :]
    return made.encode(errors="surrogateescape")


def _line(content: bytes, dice: random.Random) -> bytes:
    lines = content.split(b"\n")
    odd = dice.choice(ODD).encode(errors="surrogatepass")
    key = dice.choice((b"", b"name = ", b"a = ", b"source = ", b"- ", b"key: ", b'"a": '))
    lines.insert(dice.randrange(len(lines) + 1), key + odd)
    return b"\n".join(lines)


def _removed(content: bytes, dice: random.Random) -> bytes:
    lines = content.split(b"\n")
    del lines[dice.randrange(len(lines))]
    return b"\n".join(lines)


def _bytes(content: bytes, dice: random.Random) -> bytes:
    made = bytearray(content)
    for _ in range(dice.choice((1, 2, 8, 64))):
        at = dice.randrange(len(made) + 1)
        most = dice.choice((128, 128, 256))
        made[at : at + dice.randrange(4)] = bytes(dice.randrange(most) for _ in range(2))
    return bytes(made)


def _flipped(content: bytes, dice: random.Random) -> bytes:
    made = bytearray(content)
    for _ in range(min(len(made), dice.choice((1, 2, 8)))):
        made[dice.randrange(len(made))] = dice.choice(
            b"\x00\x1b\n\r\t\"'[]{}=:,.#\\-&*!0aA\xff\xc3"
        )
    return bytes(made)


def _cut(content: bytes, dice: random.Random) -> bytes:
    return content[: dice.randrange(len(content) + 1)]


def _twice(content: bytes, dice: random.Random) -> bytes:
    start = dice.randrange(len(content) + 1)
    piece = content[start : start + dice.randrange(200)]
    return content[:start] + piece * dice.choice((1, 2, 500)) + content[start:]


def _encoded(content: bytes, dice: random.Random) -> bytes:
    text = content.decode(errors="replace")
    return dice.choice(
        (
            b"\xef\xbb\xbf" + content,
            content.replace(b"\n", b"\r\n"),
            content.replace(b"\n", b"\r"),
            text.encode("utf-16"),
            text.encode("latin-1", "replace"),
        )
    )


def _missing(path: Path) -> None:
    """No file at all."""


def _folder(path: Path) -> None:
    path.mkdir()


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


_CHANGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *(_value,) * 8,
    *(_line,) * 3,
    *(_removed, _bytes, _flipped, _cut, _twice, _encoded),
)
_PLACES: dict[int, Callable[[Path], None]] = dict(
    enumerate((_missing, _folder, _loop, _pipe, _device, _huge))
)


def _share(arguments: tuple[int, int, bool]) -> list[Found]:
    count, seed, commands = arguments
    with tempfile.TemporaryDirectory() as folder:
        there = Path(folder)
        world(there)
        warm_up(there)
        if commands:
            import qsched.pipelines.image_sets  # noqa: F401 - as `generate` does, with torch
        run = by_command if commands else by_function
        return [outcome(odd, run) for odd in stream(there, count, seed)]


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", action="store_true", help="by command, not by function")
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    shares = 2 * chosen.workers
    work = [
        (chosen.files // shares, chosen.seed + share, chosen.commands) for share in range(shares)
    ]
    found: list[Found] = []
    with multiprocessing.get_context("fork").Pool(chosen.workers) as pool:
        for each in pool.imap_unordered(_share, work):
            found += each
    print(table(found))
    for wrong, count in Counter(each.wrong for each in found if each.wrong).most_common():
        example = next(each.odd for each in found if each.wrong == wrong)
        print(f"{count} x {wrong}: {example.kind} {example.how}")
    sys.exit(any(each.wrong for each in found))


if __name__ == "__main__":
    _main()
