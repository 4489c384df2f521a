"""Doors: a name is found built in, by an entry point, or as module:name beside a study."""

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from qsched import plugins
from qsched.captions import READERS, Reader, read_captions
from qsched.errors import PromptError, ScoreError
from qsched.plugins import Registry, beside
from qsched.scoring.catalog import SCORERS, UNKNOWN, independent, metric_entry, scorer_entry
from qsched.scoring.loading import load_scorer
from qsched.study.fingerprint import differences
from qsched.study.study import Study, load_study
from qsched.testing.readers import ReaderContract
from tests.support import fakes_light

SHARP = """
class Sharpness:
    direction = "maximize"
    def prepare(self, device): pass
    def score(self, images, prompts):
        return (images[..., 1:] - images[..., :-1]).abs().mean((1, 2, 3))
"""
READER = """
class Lines:
    suffixes = (".lst",)
    def read(self, path): return path.read_text().split(";")
"""


@pytest.fixture(autouse=True)
def fresh_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has modules of its own of these names, as each process has."""
    for name in ("sharp", "near", "mine"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def study_with(folder: Path, scorer: str, code: str = SHARP) -> Study:
    folder.mkdir(exist_ok=True)
    (folder / "sharp.py").write_text(code)
    path = fakes_light.study_file(folder)
    text = path.read_text().replace('"demo-quality"', f'"{scorer}"')
    path.write_text(text.replace('["pixels"]', f'["pixels", "{scorer}"]'))
    return load_study(path)


def test_a_module_beside_the_study_is_found_without_pythonpath(tmp_path: Path) -> None:
    study = study_with(tmp_path, "sharp:Sharpness")
    assert study.scorers == ("demo-alignment", "sharp:Sharpness")
    assert "sharp" not in [Path(entry).name for entry in sys.path]
    with beside(study.folder):
        entry = scorer_entry("sharp:Sharpness")
        assert entry.origin is not None
        assert load_scorer(entry).direction == "maximize"
    sys.modules.pop("sharp")
    with pytest.raises(ScoreError, match=r"no module 'sharp'.* put sharp\.py beside the study"):
        scorer_entry("sharp:Sharpness")


def test_two_studies_may_have_modules_of_one_name(tmp_path: Path) -> None:
    one = study_with(tmp_path / "one", "sharp:Sharpness")
    other = study_with(tmp_path / "other", "sharp:Sharpness", SHARP + "# another\n")
    key = "plugins.sharp:Sharpness"
    assert one.fingerprint()[key] != other.fingerprint()[key]
    assert one.fingerprint()[key].startswith("sharp:Sharpness ")


def test_code_that_changed_is_another_study(tmp_path: Path) -> None:
    before = study_with(tmp_path, "sharp:Sharpness").fingerprint()
    plugins._beside.clear()  # another process
    after = study_with(tmp_path, "sharp:Sharpness", SHARP.replace("abs()", "square()"))
    assert list(differences(before, after.fingerprint())) == ["plugins.sharp:Sharpness"]


def test_what_a_plug_in_imports_beside_it_counts_too(tmp_path: Path) -> None:
    (tmp_path / "near.py").write_text("POWER = 1\n")
    code = "from near import POWER\n" + SHARP
    before = study_with(tmp_path, "sharp:Sharpness", code).fingerprint()
    plugins._beside.clear()
    sys.modules.pop("near")
    (tmp_path / "near.py").write_text("POWER = 2\n")
    after = study_with(tmp_path, "sharp:Sharpness", code).fingerprint()
    assert list(differences(before, after)) == ["plugins.sharp:Sharpness"]


def test_a_stored_study_is_read_without_its_plug_ins(tmp_path: Path) -> None:
    """Watching and reporting need none of them."""
    text = study_with(tmp_path, "sharp:Sharpness").to_json()
    (tmp_path / "sharp.py").unlink()
    plugins._beside.clear()
    sys.modules.pop("sharp")
    assert Study.from_json(text).scorers == ("demo-alignment", "sharp:Sharpness")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("Sharpness = 3\n", "is a int; expected a class with direction"),
        ("class Sharpness:\n    direction = 'up'\n", "has no prepare and no score"),
        (SHARP.replace("maximize", "up"), "direction = 'up'; expected a class"),
        ("import nothing_of_this_name\n", "ModuleNotFoundError: No module named 'nothing_of"),
        ("def (:\n", "importing it failed: SyntaxError"),
        ("class Sharpnes:\n    pass\n", r"has no 'Sharpness'; did you mean 'Sharpnes'\?"),
    ],
)
def test_what_breaks_the_protocol_is_one_line(tmp_path: Path, code: str, words: str) -> None:
    (tmp_path / "sharp.py").write_text(code)
    with beside(tmp_path), pytest.raises(ScoreError, match=words) as raised:
        scorer_entry("sharp:Sharpness")
    assert "\n" not in str(raised.value)


def test_an_error_lists_only_what_fits_the_place() -> None:
    with pytest.raises(ScoreError) as searched:
        scorer_entry("pixel")
    with pytest.raises(ScoreError) as measured:
        metric_entry("pixel")
    assert "similarity" not in str(searched.value)
    assert "did you mean 'pixels'" in str(measured.value)


def test_nothing_is_known_of_a_plug_in_that_says_nothing(tmp_path: Path) -> None:
    said = SHARP.replace('"maximize"\n', '"maximize"\n    networks = ()\n')
    (tmp_path / "sharp.py").write_text(SHARP + said.replace("Sharpness", "Plain"))
    with beside(tmp_path):
        assert metric_entry("sharp:Sharpness").networks == (UNKNOWN,)
        assert not independent("sharp:Sharpness", ["clipscore"])
        assert independent("sharp:Plain", ["clipscore"])
        assert not independent("sharp:Plain", ["sharp:Plain"])


def test_an_installed_package_adds_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sharp.py").write_text(SHARP)
    monkeypatch.syspath_prepend(str(tmp_path))
    offered = {"sharpness": EntryPoint("sharpness", "sharp:Sharpness", "qsched.scorers")}
    registry = Registry("scorer", "qsched.scorers", {}, ScoreError, installed=lambda _: offered)
    assert registry.names() == ("sharpness",)
    found = registry.find("sharpness")
    assert found.value.__name__ == "Sharpness"
    assert str(found.origin).startswith("sharp:Sharpness sharp ")


def test_a_reader_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(READER)
    (tmp_path / "captions.lst").write_text("a cat; a dog")
    with beside(tmp_path):
        read = read_captions(tmp_path / "captions.lst", "mine:Lines")
        assert read == ["a cat", "a dog"]
        with pytest.raises(
            PromptError, match=r"prompt reader 'mine:Line': .* did you mean 'Lines'"
        ):
            read_captions(tmp_path / "captions.lst", "mine:Line")
    with pytest.raises(PromptError, match=r"\.lst is not a format of captions; expected \.txt"):
        read_captions(tmp_path / "captions.lst")
    with pytest.raises(PromptError, match="'txt' is no prompt reader; did you mean 'text'"):
        read_captions(tmp_path / "captions.lst", "txt")


FILES = {
    "text": "a cat\n# no caption\n\na dog\n",
    "jsonl": '"a cat"\n{"prompt": "a dog"}\n',
    "json": '{"1.png": "a cat", "2.png": {"text": "a dog"}}',
    "yaml": "- a cat\n- caption: a dog\n",
}


@pytest.mark.parametrize("name", FILES)
class TestEveryBuiltInReader(ReaderContract):
    expected = ("a cat", "a dog")

    @pytest.fixture(autouse=True)
    def _named(self, name: str) -> None:
        self.name = name

    def reader(self) -> Reader:
        made: Reader = READERS.find(self.name).value()
        return made

    def file(self, folder: Path) -> Path:
        (path := folder / f"captions{self.reader().suffixes[0]}").write_text(FILES[self.name])
        return path


def test_every_name_that_is_built_in_is_there() -> None:
    for name in SCORERS.built_in:
        assert SCORERS.find(name).origin is None
