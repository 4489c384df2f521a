"""Every byte of the weights is in their digest, and is read once."""

import hashlib
import os
from pathlib import Path

import pytest

from qsched.digests import first_and_last, sha256, whole
from qsched.errors import ModelError
from qsched.pipelines.catalog import weights_identity

MIB = 1 << 20
LONG_AGO = 1_600_000_000_000_000_000


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a file of three mebibytes, written long ago."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = tmp_path / "model"
    place.mkdir()
    (place / "unet.safetensors").write_bytes(bytes(3 * MIB))
    os.utime(place / "unet.safetensors", ns=(LONG_AGO, LONG_AGO))
    return place


def test_a_byte_in_the_middle_counts(folder: Path) -> None:
    """Where attention lies in an SDXL file; version 0.1 didn't look there."""
    before, by_old_rule = whole(folder), first_and_last(folder)
    content = bytearray(3 * MIB)
    content[3 * MIB // 2] = 1
    (folder / "unet.safetensors").write_bytes(content)
    assert whole(folder) != before
    assert first_and_last(folder) == by_old_rule


def test_one_file_has_the_digest_that_others_print(folder: Path) -> None:
    file = folder / "unet.safetensors"
    before = whole(folder)
    for _ in range(2):  # read, and kept beside the other one
        assert sha256(file) == hashlib.sha256(bytes(3 * MIB)).hexdigest()
        assert whole(folder) == before
    file.write_bytes(b"x")
    assert sha256(file) == hashlib.sha256(b"x").hexdigest()


def test_a_file_set_back_to_its_old_date_is_read_again(folder: Path) -> None:
    before = whole(folder)
    (folder / "unet.safetensors").write_bytes(bytes(3 * MIB - 1) + b"x")
    os.utime(folder / "unet.safetensors", ns=(LONG_AGO, LONG_AGO))
    assert whole(folder) != before


def test_names_count(folder: Path) -> None:
    before = whole(folder)
    (folder / "unet.safetensors").rename(folder / "vae.safetensors")
    assert whole(folder) != before


def test_it_is_read_once(folder: Path, tmp_path: Path) -> None:
    file = folder / "unet.safetensors"
    first = whole(file)
    [kept] = (tmp_path / "cache" / "qsched" / "digests").iterdir()
    state, _, digest = kept.read_text().partition("\n")
    kept.write_text(f"{state}\n{'0' * len(digest)}")
    assert whole(file) != first  # what is kept is believed
    kept.write_text("broken")
    assert whole(file) == first


def test_a_file_that_was_just_written_is_not_kept(folder: Path, tmp_path: Path) -> None:
    """Another write might leave its time as it is."""
    (folder / "unet.safetensors").write_bytes(b"new")
    whole(folder)
    assert not (tmp_path / "cache" / "qsched" / "digests").exists()


def test_without_a_cache_it_is_read_all_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = whole(folder)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert whole(folder) == expected


def test_a_file_that_cannot_be_read_is_named(folder: Path) -> None:
    def denied(place: Path) -> str:
        raise PermissionError(13, "Permission denied", str(place / "unet.safetensors"))

    (folder / "model_index.json").write_text("{}")
    with pytest.raises(ModelError, match=r"unet\.safetensors: Permission denied; make it readable"):
        weights_identity(str(folder), None, digest=denied)
