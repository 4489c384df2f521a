"""The contract of a prompt reader.

def test_the_reader_keeps_the_contract(tmp_path: Path) -> None:
    check_reader(Reader(), some_file, expected=["a cat", "a dog"])
"""

from collections.abc import Sequence
from pathlib import Path

from qsched.captions import Reader


def check_reader(reader: Reader, path: Path, expected: Sequence[str]) -> None:
    """`reader` reads `expected` from a file, and the same again. Raises AssertionError in words."""
    suffixes = reader.suffixes
    assert isinstance(suffixes, tuple), "suffixes has to be a tuple, such as ('.csv',)"
    for suffix in suffixes:
        assert suffix == suffix.lower(), f"suffix {suffix!r}: expected small letters"
        assert not suffix or suffix.startswith("."), f"suffix {suffix!r}: expected a dot in front"
    found = list(reader.read(path))
    assert found == list(expected), f"{path.name}: read {found}, expected {list(expected)}"
    assert found == list(reader.read(path)), f"{path.name}: read again, it reads something else"
