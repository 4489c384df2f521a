"""What every prompt reader keeps.

from qsched.testing.readers import ReaderContract

class TestLines(ReaderContract):
    expected = ("a cat", "a dog")

    def reader(self) -> Reader:
        return Lines()

    def file(self, folder: Path) -> Path:
        (path := folder / "captions.lst").write_text("a cat; a dog")
        return path
"""

from collections.abc import Sequence
from pathlib import Path

from qsched.captions import Reader


class ReaderContract:
    """Inherit it, and say what is tested."""

    expected: Sequence[str]
    """The captions in the file."""

    def reader(self) -> Reader:
        """What is tested, newly made."""
        raise NotImplementedError

    def file(self, folder: Path) -> Path:
        """Writes a file that it reads into `folder`; its path."""
        raise NotImplementedError

    def test_it_says_which_files_it_reads(self) -> None:
        suffixes = self.reader().suffixes
        assert isinstance(suffixes, tuple)
        for suffix in suffixes:
            assert suffix == suffix.lower()
            assert not suffix or suffix.startswith(".")

    def test_it_reads_the_captions_in_their_order(self, tmp_path: Path) -> None:
        assert list(self.reader().read(self.file(tmp_path))) == list(self.expected)

    def test_it_reads_a_file_again_as_before(self, tmp_path: Path) -> None:
        path, reader = self.file(tmp_path), self.reader()
        assert list(reader.read(path)) == list(reader.read(path))
