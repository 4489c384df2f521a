"""The doctor: which GPU, driver and torch go together, and what to do if they don't."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from qsched.cli.doctor import Finding, device, examine
from qsched.study.template import study_text
from tests.support.fakes_light import study_file

A6000 = "NVIDIA RTX A6000, 535.230.02, 49140\n"


def found(
    listed: str = A6000,
    complaint: str = "",
    *,
    build: str = "2.15.0+cu132",
    cuda: str | None = "13.2",
    usable: Sequence[tuple[str, int]] = (),
) -> Finding:
    return device(listed, complaint, torch=build, cuda=cuda, usable=usable)


def test_a_driver_too_old_for_torch_is_named_with_both_remedies() -> None:
    finding = found()
    assert not finding.ok
    for words in (
        "NVIDIA RTX A6000 (48 GiB), driver 535.230.02",
        "torch 2.15.0+cu132 (CUDA 13.2) can't use it",
        "needs driver 580.65.06 or newer: update it, or pip install 'torch==2.10.*'",
    ):
        assert words in finding.words


@pytest.mark.parametrize(
    ("driver", "cuda", "remedy"),
    [
        ("580.65.05", "13.0", "needs driver 580.65.06"),
        ("525.60.12", "12.8", "needs driver 525.60.13 or newer: update it"),
        ("470.256.02", "13.0", "needs driver 580.65.06 or newer: update it"),
        ("580.65.06", "13.0", "torch.cuda.init()"),
        ("535.230.02", "12.8", "torch.cuda.init()"),
        ("600.1", "14.0", "torch.cuda.init()"),
        ("580.65.06", None, "built without CUDA"),
    ],
)
def test_each_cuda_has_its_oldest_driver(
    driver: str, cuda: str | None, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    finding = found(f"NVIDIA A10, {driver}, 23028\n", cuda=cuda)
    assert not finding.ok
    assert remedy in finding.words
    offered = "torch==2.10.*" in finding.words
    assert offered == (driver == "580.65.05"), "CUDA 12 helps only a driver that can run it"


def test_hidden_gpus_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert "CUDA_VISIBLE_DEVICES=7 hides it" in found(cuda="12.8").words


def test_what_torch_can_use_is_ok_whatever_nvidia_smi_lists(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    two = [("NVIDIA RTX A6000", 48 * 2**30)] * 2
    finding = found(A6000 * 2, build="2.10.0", cuda="12.8", usable=two)
    assert finding.ok
    shown = "2 x NVIDIA RTX A6000 (48 GiB)"
    assert finding.words == f"{shown}, torch 2.10.0 (CUDA 12.8), driver 535.230.02"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    words = found(A6000 * 8, usable=two).words
    assert words.startswith(f"{shown} of 8 GPUs by CUDA_VISIBLE_DEVICES=2,5, torch")
    slice_of_one = [("NVIDIA H200 MIG 1g.18gb", 16 * 2**30)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-5a1e")
    words = found("NVIDIA H200, 580.65.06, 143771\n", usable=slice_of_one).words
    assert words.startswith("1 x NVIDIA H200 MIG 1g.18gb (16 GiB), torch")
    words = found("", "no such program", usable=[("AMD Instinct", 64 * 2**30)], cuda=None).words
    assert words == "1 x AMD Instinct (64 GiB), torch 2.15.0+cu132"
    assert found("", "").ok


def test_a_broken_driver_is_said() -> None:
    finding = found("", "Failed to initialize NVML: Driver/library version mismatch")
    assert not finding.ok
    assert "version mismatch; mend the NVIDIA driver" in finding.words


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (f"printf '{A6000.strip()}\\n'", "driver 535.230.02"),
        ("echo 'No devices were found'; exit 6", "nvidia-smi: No devices were found"),
    ],
)
def test_the_real_program_is_asked(
    script: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fake nvidia-smi on the path, in a real process; torch finds no GPU whatever it says."""
    fake = tmp_path / "bin" / "nvidia-smi"
    fake.parent.mkdir()
    fake.write_text(
        f'#!/bin/sh\n[ "$1" = --query-gpu=name,driver_version,memory.total ] || exit 1\n{script}\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    findings = {finding.name: finding for finding in examine(f"sqlite:///{tmp_path}/q.db")}
    assert not findings["device"].ok
    assert words in findings["device"].words
    assert findings["database"].ok


def test_what_a_study_needs_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = tmp_path / "mine.toml"
    path.write_text(study_text("pcm-sd15", scheme="nf4"))
    url = f"sqlite:///{tmp_path}/q.db"
    findings = [finding for finding in examine(url, path) if finding.name != "device"]
    named = {finding.name: finding for finding in findings}
    assert named["packages"].ok
    assert "bitsandbytes, peft" in named["packages"].words
    assert not named["model"].ok
    assert "stable-diffusion-v1-5 is not downloaded (2.3 GB)" in named["model"].words
    assert not named["GPU memory"].ok or torch.cuda.is_available()
    assert "sDCI.yaml is not downloaded" in named["study"].words

    monkeypatch.setitem(sys.modules, "peft", None)
    missing = {finding.name: finding for finding in examine(url, path)}["packages"]
    assert not missing.ok
    assert missing.words == "missing: peft; pip install 'qsched[gpu]'"
    demo = Path(__file__).parents[2] / "studies" / "demo.toml"
    assert all(finding.ok for finding in examine(url, demo))


def test_what_a_backend_needs_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a plug-in beside the study, and of what quantizes the text encoders."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "needy.py").write_text(
        "from qsched.quantization.backend import Backend\n"
        "from qsched.quantization.schemes import Scheme\n"
        "class Needy(Backend):\n"
        "    description, schemes = 'needs much', (Scheme('few', 4, 16),)\n"
        "    modules = packages = ('no_such_library',)\n"
        "    def converter(self, group_size): self.library('no_such_library')\n"
    )
    path = study_file(tmp_path)
    text = path.read_text().replace('name = "demo"', 'name = "demo"\ntext_encoders = "int8"')
    path.write_text(text.replace('"w4a8"', '"few"\nbackend = "needy:Needy"'))
    url = f"sqlite:///{tmp_path}/q.db"
    found = {finding.name: finding for finding in examine(url, path)}["packages"]
    assert found.words == "missing: no_such_library; pip install no_such_library"
    path.write_text(text)
    found = {finding.name: finding for finding in examine(url, path)}["packages"]
    assert "bitsandbytes" in found.words
