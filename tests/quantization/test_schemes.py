"""Names of quantization schemes, and which backend has which."""

import subprocess
import sys

import pytest

from qsched.errors import QuantizationError
from qsched.quantization.backend import BACKENDS
from qsched.quantization.schemes import (
    Scheme,
    backend_for,
    backend_to_hold,
    group_size_for,
    resolve,
)


@pytest.mark.parametrize(
    ("name", "scheme"),
    {
        " W4A8 ": ("w4a8", 4, 8),
        "w4a6": ("w4a6", 4, 6),
        "w3a8": ("w3a8", 3, 8),
        "w16a8": ("w16a8", 16, 8),
        "w8": ("w8", 8, 16),
        "w8a16": ("w8", 8, 16),
        "w4a16": ("w4", 4, 16),
        "nf4": ("nf4", 4, 16),
        "FP4": ("fp4", 4, 16),
        "int8": ("int8", 8, 8),
        "none": ("none", 16, 16),
        "fp16": ("none", 16, 16),
        "w16a16": ("none", 16, 16),
    }.items(),
)
def test_each_scheme_has_one_name(name: str, scheme: tuple[str, int, int]) -> None:
    assert Scheme.parse(name) == Scheme(*scheme)
    assert Scheme.parse(Scheme.parse(name).name) == Scheme(*scheme)


@pytest.mark.parametrize("name", ["", "a8", "w", "4bit", "w4 a8", "nf8", "w4a8x", "w123"])
def test_an_unknown_name_is_told_what_exists(name: str) -> None:
    with pytest.raises(QuantizationError, match=r"expected none, nf4, fp4, int8, or .*w4a8, w4a6"):
        Scheme.parse(name)


@pytest.mark.parametrize("name", ["w1a8", "w4a0", "w9a8", "w12", "w17a8", "w8a32"])
def test_impossible_widths(name: str) -> None:
    with pytest.raises(QuantizationError, match="bits; expected 2 to 8, or 16"):
        Scheme.parse(name)


@pytest.mark.parametrize(
    ("scheme", "backend"),
    [("w4a8", "simulated"), ("w8", "simulated"), ("none", "simulated")]
    + [(own, "bitsandbytes") for own in ("nf4", "fp4", "int8")],
)
def test_backend_by_default(scheme: str, backend: str) -> None:
    assert backend_for(scheme, None) == backend
    assert backend_for(scheme, backend) == backend


@pytest.mark.parametrize(
    ("scheme", "backend"),
    [
        ("w4a8", "torchao"),
        ("w4a16", "torchao"),
        ("nf4", "bitsandbytes"),
        ("w4a4", "simulated"),
        ("none", "simulated"),
    ],
)
def test_a_template_names_what_holds_the_scheme_and_does_not_simulate_it(
    scheme: str, backend: str
) -> None:
    assert backend_to_hold(scheme) == backend


@pytest.mark.parametrize("scheme", ["w8a8", "W4A8", "w8a16", "w4"])
def test_torchao_has_what_the_paper_used(scheme: str) -> None:
    assert backend_for(scheme, "torchao") == "torchao"


@pytest.mark.parametrize("backend", BACKENDS.names())
def test_every_backend_can_do_nothing(backend: str) -> None:
    assert backend_for("none", backend) == backend


@pytest.mark.parametrize(
    ("scheme", "backend", "words"),
    [
        ("w4a4", "torchao", "has w8a8, w4a8, w8, w4; w4a4 exists with simulated"),
        ("int8", "torchao", "has w8a8, w4a8, w8, w4; int8 exists with bitsandbytes"),
        ("nf4", "simulated", "has w2 to w8, w2a2 to w8a8; nf4 exists with bitsandbytes"),
        ("w8a8", "bitsandbytes", "has nf4, fp4, int8; w8a8 exists with simulated and torchao"),
        ("w16a8", "torchao", "exists with simulated"),
    ],
)
def test_an_impossible_pair_is_told_what_exists(scheme: str, backend: str, words: str) -> None:
    with pytest.raises(QuantizationError, match=f"{scheme} with backend {backend}.*{words}"):
        backend_for(scheme, backend)


def test_an_unknown_backend() -> None:
    with pytest.raises(
        QuantizationError, match=r"'quanto' is no .*; expected one of simulated, torchao, bi"
    ):
        backend_for("w8a8", "quanto")


def test_group_sizes() -> None:
    assert group_size_for("w4a8", "simulated", None) is None
    assert group_size_for("w8a8", "simulated", 64) == 64
    assert group_size_for("w4a8", "torchao", None) == group_size_for("w4", "torchao", None) == 32
    assert group_size_for("w4a8", "torchao", 64) == 64
    assert group_size_for("w8a8", "torchao", None) is None
    assert group_size_for("nf4", "bitsandbytes", None) is None


@pytest.mark.parametrize(
    ("scheme", "backend", "size", "rule"),
    [
        ("w4a8", "simulated", 4, "expected at least 8"),
        ("w8a8", "torchao", 32, "a scale for each channel; leave group_size out"),
        ("nf4", "bitsandbytes", 32, "blocks of 64 weights; leave group_size out"),
    ],
)
def test_group_sizes_that_do_not_exist(scheme: str, backend: str, size: int, rule: str) -> None:
    with pytest.raises(QuantizationError, match=f"group_size = {size}; .*{rule}"):
        group_size_for(scheme, backend, size)


def test_one_backend_for_a_scheme_and_its_overrides() -> None:
    assert resolve("w4a8", None, ["w8a16", "none"]) == ("simulated", None)
    assert resolve("none", None, ["int8", "nf4"]) == ("bitsandbytes", None)
    assert resolve("w4a8", "torchao", ["w8a8"]) == ("torchao", 32)
    assert resolve("none", "torchao", ["w4"], 64) == ("torchao", 64)
    with pytest.raises(QuantizationError, match="scheme nf4 with backend simulated"):
        resolve("w4a8", None, ["nf4"])
    with pytest.raises(QuantizationError, match="scheme w4a8 with backend bitsandbytes"):
        resolve("nf4", None, ["w4a8"])


def test_schemes_and_reports_need_no_torch() -> None:
    program = (
        "import qsched.quantization.schemes as schemes, qsched.quantization.account, sys\n"
        "schemes.resolve('none', None, ['int8', 'nf4']), schemes.resolve('w4', 'torchao')\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
