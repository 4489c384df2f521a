"""What is written is there as a whole, or not at all."""

import multiprocessing
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qsched.errors import OutputError
from qsched.files import outputs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b", "mine"):
        (tmp_path / name).write_text(f"old {name}")
    return tmp_path


def texts(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_all_files_take_their_places_together(folder: Path) -> None:
    before = texts(folder)
    with outputs.whole(folder) as unfinished:
        (unfinished / "a").write_text("new a")
        (unfinished / "b").touch()
        (unfinished / "under").mkdir()
        (unfinished / "under" / "c").write_text("new c")
        assert {name: texts(folder)[name] for name in before} == before
    assert texts(folder) == {"a": "new a", "mine": "old mine", "under/c": "new c"}


def test_what_fails_changes_nothing(folder: Path) -> None:
    before = texts(folder)
    with pytest.raises(TypeError), outputs.whole(folder) as unfinished:
        (unfinished / "a").write_bytes(bytes("new a", "ascii") + "")  # type: ignore[operator]
    assert texts(folder) == before


def test_a_full_disk_names_the_file(folder: Path) -> None:
    """As far as a limit on the size of files is like one."""
    before, limits = texts(folder), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with (
            pytest.raises(OutputError, match=f"^{folder}: cannot be written: File too large"),
            outputs.whole(folder) as unfinished,
        ):
            (unfinished / "a").write_text("new a" * 100)
        with pytest.raises(OutputError, match=f"^{folder}/b: cannot be written: File too large"):
            outputs.write(folder / "b", "new b" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert texts(folder) == before


def test_a_link_that_lies_in_the_way_is_not_followed(folder: Path) -> None:
    (folder / "link").symlink_to("mine")
    outputs.write(folder / "link", "new")
    with outputs.whole(folder) as unfinished:
        (unfinished / "a").write_text("new a")
    assert texts(folder)["mine"] == "old mine"
    assert (folder / "link").read_text() == "new"


def test_a_place_that_is_none_is_named(folder: Path) -> None:
    words = r"mine: cannot be written: .*; give another --out"
    with pytest.raises(OutputError, match=words), outputs.whole(folder / "mine"):
        pass
    with pytest.raises(OutputError, match=words):
        outputs.write(folder / "mine" / "x", "")


CALLS = ("write_text", "touch", "mkdir", "rename", "replace", "unlink")
"""What the writer does to the disk."""


def dies_at(number: int, folder: Path) -> bool:
    """Writes a set in a process that is gone at one of its calls; False if there are fewer."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    count = 0

    def deadly(call: Callable[..., object]) -> Callable[..., object]:
        def called(*args: Any, **kwargs: Any) -> object:
            nonlocal count
            count += 1
            return call(*args, **kwargs) if count != number else os._exit(9)

        return called

    try:
        for name in CALLS:
            setattr(Path, name, deadly(getattr(Path, name)))
        shutil.rmtree = deadly(shutil.rmtree)  # type: ignore[assignment]
        with outputs.whole(folder) as unfinished:
            for name in ("a", "b", "under/c"):
                (unfinished / name).parent.mkdir(exist_ok=True)
                (unfinished / name).write_text(f"new {name}")
            (unfinished / "d").touch()
        os._exit(0)
    finally:
        os._exit(1)


def test_a_kill_at_any_call_leaves_the_old_or_the_new(folder: Path) -> None:
    (folder / "d").write_text("old d")
    before = texts(folder)
    after = {"a": "new a", "b": "new b", "under/c": "new under/c", "mine": "old mine"}
    seen = []
    for number in range(1, 100):
        shutil.rmtree(folder)
        for name, text in before.items():
            outputs.write(folder / name, text)
        killed = dies_at(number, folder)
        shown = {name: text for name, text in texts(folder).items() if ".qsched" not in name}
        assert shown.items() <= before.items() or shown.items() <= after.items(), number
        outputs.settle(folder)
        found = {name: text for name, text in texts(folder).items() if ".qsched" not in name}
        assert found in (before, after), number
        with outputs.whole(folder):  # whoever comes next clears up
            pass
        assert texts(folder) == found
        seen.append(found == after)
        if not killed:
            break
    assert seen == sorted(seen)
    assert {False, True} == set(seen)
    assert len(seen) > 15


def _writes(folder: Path, text: str) -> None:
    for _ in range(20):
        with outputs.whole(folder) as unfinished:
            for name in ("a", "b"):
                (unfinished / name).write_text(text)


def test_two_who_write_at_once_take_turns(folder: Path) -> None:
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=_writes, args=(folder, text)) for text in ("x", "y")]
    for each in both:
        each.start()
    for each in both:
        each.join()
        assert each.exitcode == 0
    found = texts(folder)
    assert found["a"] == found["b"]
    assert found.keys() == {"a", "b", "mine"}
