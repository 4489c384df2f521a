"""Backends by name: built in, of an installed package, in a file beside the study."""

import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from torch import nn

from qsched.errors import QuantizationError
from qsched.plugins import beside
from qsched.quantization import backend as module
from qsched.quantization.backend import BACKENDS, backend_named, origin_of
from qsched.quantization.quantize import quantize
from qsched.quantization.schemes import Scheme, backend_for, group_size_for, resolve
from qsched.quantization.table import Quantization
from qsched.study.study import load_study
from tests.support.fakes_light import study_file

ROOT = Path(__file__).parents[2]


def documented() -> str:
    """The backend in the module's docstring."""
    lines = (module.__doc__ or "").splitlines()
    code = [line for line in lines if not line or line.startswith("    ")]
    return dedent("\n".join(code))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A study of the documented backend, which lies beside it."""
    path = study_file(tmp_path / "study", trials=2)
    text = path.read_text().replace('"w4a8"', '"e4m3"\nbackend = "mine:Float8"')
    path.write_text(text.replace('"c", "d", "e", "f"]', '"c"]'))
    (path.parent / "mine.py").write_text(documented())
    return path.parent


def called(*arguments: object, where: Path, path: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=where,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, {path, ROOT}))},
        capture_output=True,
        text=True,
        check=False,
    )


# --- Beside the study ---


@pytest.mark.slow
def test_the_documented_one_is_checked_and_run_from_anywhere(folder: Path, tmp_path: Path) -> None:
    for command in ("check", "run"):
        done = called("-m", "qsched", command, folder / "study.toml", where=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "e4m3 (mine:Float8): 99.0% of 4.5 M parameters" in " ".join(done.stdout.split())
    pasted = (tmp_path / "runs" / "fake" / "README.md").read_text()
    assert 'quantize(pipeline.transformer, "e4m3", backend="mine:Float8")' in pasted
    (folder / "mine.py").write_text(documented().replace("e4m3fn", "e5m2"))
    done = called("-m", "qsched", "run", folder / "study.toml", where=tmp_path)
    assert done.returncode == 2
    assert "plugins.mine:Float8: the study has 'mine:Float8 " in done.stderr


def test_a_stored_study_is_read_where_its_backend_is_not(folder: Path) -> None:
    text = load_study(folder / "study.toml").to_json()
    (folder / "mine.py").unlink()
    program = "import sys; from qsched.study.study import Study; Study.from_json(sys.argv[1])"
    done = called("-c", program, text, where=folder)
    assert done.returncode == 0, done.stderr


def test_its_schemes_are_known_where_it_is_named(folder: Path) -> None:
    with beside(folder):
        table = Quantization(scheme="E4M3", backend="mine:Float8", overrides={"out": "none"})
        assert table.scheme == "e4m3"
        backend, group_size = table.resolved()
        assert (backend.name, backend.listed, group_size) == ("mine:Float8", "e4m3", None)
        assert resolve("none", "mine:Float8", ["e4m3"]) == ("mine:Float8", None)
        with pytest.raises(QuantizationError, match="which has e4m3; w8a8 exists with simulated a"):
            backend_for("w8a8", "mine:Float8")
        with pytest.raises(QuantizationError, match="'e5m2'; expected none, e4m3, nf4, fp4, int8"):
            Scheme.parse("e5m2", "mine:Float8")
        with pytest.raises(QuantizationError, match=r"group_size = 32; e4m3 .* leave group_size"):
            group_size_for("e4m3", "mine:Float8", 32)
    with pytest.raises(QuantizationError, match="'e4m3'; expected none, nf4"):
        Scheme.parse("e4m3")


def test_it_quantizes(folder: Path) -> None:
    layer = nn.Linear(64, 32)
    exact = layer.weight.detach().clone()
    with beside(folder):
        report = quantize(nn.Sequential(layer), "e4m3", backend="mine:Float8")
    assert torch.equal(layer.weight, exact.to(torch.float8_e4m3fn).float())
    assert not torch.equal(layer.weight, exact)
    assert (report.backend, report.nominal_bits, report.stored_bits) == ("mine:Float8", 8, 32)


def test_what_it_raises_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(documented().replace("e4m3fn", "e9m9"))
    network = nn.ModuleDict({"layer": nn.Linear(64, 32)})
    with beside(tmp_path), pytest.raises(QuantizationError) as raised:
        quantize(network, "e4m3", backend="broken:Float8")
    assert str(raised.value).startswith("layer: quantization backend broken:Float8 failed at e4m3:")
    assert "AttributeError: module 'torch' has no attribute 'float8_e9m9'" in str(raised.value)


def test_its_origin_is_its_source(folder: Path) -> None:
    with beside(folder):
        before = origin_of("mine:Float8")
        (folder / "mine.py").write_text(documented() + "\n")
        after = origin_of("mine:Float8")
    assert before is not None
    assert after is not None
    assert before.qualified == after.qualified == "mine:Float8"
    assert before.digest != after.digest
    assert [origin_of(name) for name in BACKENDS.names()] == [None] * 3


def test_what_it_needs_is_named_where_it_is_missing(tmp_path: Path) -> None:
    code = documented().replace("return Rounding()", "self.library('no_such_library.nn')")
    (tmp_path / "needy.py").write_text(
        code.replace("description", "packages = ('it',); description")
    )
    words = "backend needy:Float8 can't be imported: No module named 'no_such_library'.*install it$"
    with beside(tmp_path), pytest.raises(QuantizationError, match=words):
        quantize(nn.Sequential(nn.Linear(64, 32)), "e4m3", backend="needy:Float8")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("def Own(name): return 3", "is <function Own.*; expected a subclass of .*Backend"),
        ("class Own(Backend): description = 'x'", "has no schemes; declare it in the class"),
        (
            "class Own(Backend): description, schemes = 'x', ('w4',)",
            r"schemes = \('w4',\); expected",
        ),
        ("class Own(Backend): pass", "has no description and no schemes; declare"),
        (
            "class Own(Backend): description, schemes = 'x', (Scheme('y', 4, 16),)",
            "can't be made: TypeError: .*abstract.*converter",
        ),
        ("class Own(Backend): schemes = (Scheme('y', 1, 16),)", "scheme 'y': 1 bits; expected 2"),
    ],
)
def test_what_is_no_backend_is_refused(code: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from qsched.quantization.backend import Backend\n"
        f"from qsched.quantization.schemes import Scheme\n{code}\n"
    )
    with beside(tmp_path), pytest.raises(QuantizationError, match=f"'own:Own'.*{words}"):
        backend_named("own:Own")


def test_a_built_in_name_does_not_go_on() -> None:
    with pytest.raises(QuantizationError, match="'torchao:w4'; expected 'torchao' alone"):
        backend_named("torchao:w4")


# --- Of an installed package ---


def test_a_package_offers_one_and_a_broken_one_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / "theirs.py").write_text(documented().replace("e4m3", "fp6", 1))
    points = "[qsched.backends]\nfloat6 = theirs:Float8\nbroken = theirs:Missing\n"
    for name, text in (("METADATA", "Name: theirs\nVersion: 1.2\n"), ("entry_points.txt", points)):
        file = tmp_path / "theirs-1.2.dist-info" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    program = """
from qsched.errors import QuantizationError
from qsched.quantization.backend import BACKENDS, origin_of
from qsched.quantization.schemes import backend_for, backend_to_hold
assert BACKENDS.names() == ("simulated", "torchao", "bitsandbytes", "float6", "broken")
assert backend_for("fp6", None) == backend_to_hold("fp6") == "float6"
assert backend_for("w8a8", None) == "simulated"
assert (origin_of("float6").qualified, origin_of("float6").package) == (
    "theirs:Float8", "theirs 1.2")
for scheme in ("fp5", "fp7"):
    try:
        backend_for(scheme, None)
    except QuantizationError as error:
        print(error)
"""
    done = called("-c", program, where=tmp_path, path=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "'fp5'; expected none, nf4, fp4, int8, fp6, or bits" in done.stdout
    (warning,) = done.stderr.splitlines()
    assert warning.startswith("quantization backend 'broken' of the installed theirs 1.2 can't be ")
    assert warning.endswith("; it is left out")
