"""torchao and bitsandbytes on a CPU: what becomes of real denoisers, and what is said of it."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from diffusers.quantizers.bitsandbytes import BnB4BitDiffusersQuantizer, BnB8BitDiffusersQuantizer
from torch import nn
from transformers import T5Config, T5EncoderModel

from qsched.errors import QuantizationError
from qsched.quantization.backend import backend_named
from qsched.quantization.layers import size_of
from qsched.quantization.quantize import finish_loading, loading_config, quantize
from qsched.quantization.schemes import Scheme
from tests.support.networks import (
    Chosen,
    by_hand,
    denoise,
    distance,
    flux,
    images,
    sd3,
    unet,
    weight_of,
)

SCHEMES = {"torchao": ("w8a8", "w4a8", "w8", "w4"), "bitsandbytes": ("nf4", "fp4", "int8")}
INSTALLED = {
    backend: pytest.mark.skipif(find_spec(backend) is None, reason=f"without {backend}")
    for backend in SCHEMES
}
EVERY = [
    pytest.param(scheme, backend, marks=INSTALLED[backend])
    for backend, schemes in SCHEMES.items()
    for scheme in schemes
]
EIGHT = ("w8a8", "w8", "int8")
with_torchao, with_bitsandbytes = INSTALLED["torchao"], INSTALLED["bitsandbytes"]


def held(layer: nn.Module, backend: str) -> int:
    """In bytes."""
    return size_of(backend_named(backend).converter(None).held(layer))


def one_layer(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 48, dtype=dtype)).eval()


# --- What becomes of a network ---


@pytest.mark.parametrize(("scheme", "backend"), EVERY)
@pytest.mark.parametrize("make", [unet, flux, sd3])
def test_denoisers(make: type, scheme: str, backend: str) -> None:
    network, original = make(), make()
    layers = {
        name: layer for name, layer in network.named_modules() if isinstance(layer, nn.Linear)
    }
    report = quantize(network, scheme, backend=backend)
    error = distance(denoise(network), denoise(original))
    low, high = (2e-4, 0.02) if scheme in EIGHT else (5e-3, 0.12)
    assert low < error < high

    done = {layer.name for layer in report.quantized}
    left = {layer.name: layer.reason for layer in report.left}
    assert not done & left.keys()
    assert done == {name for name in layers if name not in left}
    for name, layer in layers.items():
        assert network.get_submodule(name) is layer, "a layer stays the object it was"
        assert (type(layer.weight) is nn.Parameter) == (name in left)
    for name, value in original.named_parameters():
        if name.removesuffix(".weight") not in done:
            assert torch.equal(network.get_parameter(name), value)

    weights = sum(original.get_submodule(name).weight.numel() for name in done)
    assert report.quantized_parameters == weights
    assert report.parameters == original.num_parameters()
    assert report.bytes_before == 4 * report.parameters
    rest = 4 * (report.parameters - weights)
    assert report.bytes_nominal <= report.bytes_stored < report.bytes_before
    assert report.bytes_stored == pytest.approx(rest + weights * report.stored_bits / 8)
    assert f"in {len(done)} Linear; " in report.summary()


@pytest.mark.parametrize("make", [unet, flux, sd3])
@pytest.mark.parametrize(
    ("closer", "further"),
    [
        pytest.param("w8", "w8a8", marks=with_torchao),
        pytest.param("w8a8", "w4a8", marks=with_torchao),
        pytest.param("w8a8", "w4", marks=with_torchao),
        pytest.param("int8", "nf4", marks=with_bitsandbytes),
        pytest.param("nf4", "fp4", marks=with_bitsandbytes),
    ],
)
def test_more_bits_are_closer(make: type, closer: str, further: str) -> None:
    exact = denoise(make())
    errors = []
    for scheme in (closer, further):
        network = make()
        quantize(network, scheme, backend="torchao" if scheme[0] == "w" else "bitsandbytes")
        errors.append(distance(denoise(network), exact))
    assert 1.05 * errors[0] < errors[1]


@with_torchao
@pytest.mark.parametrize("make", [flux, sd3])
@pytest.mark.parametrize(("scheme", "group_size"), [("w8a8", None), ("w4a8", 32), ("w4", 32)])
def test_the_simulation_is_as_wrong_as_the_real_thing(
    make: type, scheme: str, group_size: int | None
) -> None:
    exact = denoise(make())
    errors = []
    for backend in ("simulated", "torchao"):
        network = make()
        quantize(network, scheme, backend=backend, group_size=group_size)
        errors.append(distance(denoise(network), exact))
    assert 0.8 < errors[0] / errors[1] < 1.3


@pytest.mark.parametrize(("scheme", "backend"), EVERY)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(scheme: str, backend: str, dtype: torch.dtype) -> None:
    network = one_layer(dtype)
    x = torch.randn(4, 7, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    exact = network(x)
    quantize(network, scheme, backend=backend)
    assert network(x).dtype == dtype
    assert 0 < distance(network(x).float(), exact.float()) < (0.02 if scheme in EIGHT else 0.2)


@pytest.mark.parametrize(("scheme", "backend"), EVERY)
def test_an_image_does_not_depend_on_its_batch(scheme: str, backend: str) -> None:
    """A loud neighbour has outlying columns, which LLM.int8 would take out of the whole batch."""
    network = flux()
    quantize(network, scheme, backend=backend)
    assert torch.equal(denoise(network)[0], denoise(network, loud=1)[0])


@pytest.mark.parametrize(("scheme", "backend"), EVERY)
def test_what_is_held_moves_with_the_network(scheme: str, backend: str) -> None:
    """As far as can be seen without a GPU: torch moves parameters like this."""
    network = one_layer()
    quantize(network, scheme, backend=backend)
    x = torch.randn(3, 64)
    before, size = network(x), held(network[0], backend)
    network._apply(lambda tensor: tensor.clone())
    assert held(network[0], backend) == size, "two places for one weight"
    assert torch.equal(network.to("cpu")(x), before)
    if scheme == "int8":
        weight_of(network).data.zero_()
        network.to("cpu")
        assert torch.equal(network(x), network.get_parameter("0.bias").expand(3, -1))


# --- The account ---


@pytest.mark.parametrize(
    ("scheme", "backend", "integers", "scales", "bits"),
    [
        pytest.param("w8a8", "torchao", 3072, (4 * 48, 5 * 48), 8, marks=with_torchao),
        pytest.param("w8", "torchao", 3072, (4 * 48, 5 * 48), 8, marks=with_torchao),
        pytest.param("w4a8", "torchao", 3072, (5 * 96,), 4, marks=with_torchao),
        pytest.param("w4", "torchao", 3072, (5 * 96,), 4, marks=with_torchao),
        pytest.param("nf4", "bitsandbytes", 1536, (4 * 48 + 64,), 4, marks=with_bitsandbytes),
        pytest.param("fp4", "bitsandbytes", 1536, (4 * 48 + 64,), 4, marks=with_bitsandbytes),
        pytest.param("int8", "bitsandbytes", 3072, (4 * 48,), 8, marks=with_bitsandbytes),
    ],
)
def test_bytes_by_hand(
    scheme: str, backend: str, integers: int, scales: tuple[int, ...], bits: int
) -> None:
    # 64 x 48 weights, 48 biases; scales of 4 bytes for each channel, 32 or 64 weights; zero points
    # of a byte (newer torchao has them for channels as well); a table of 16 levels for 4 bits.
    network = one_layer()
    report = quantize(network, scheme, backend=backend)
    assert report.bytes_before == 4 * (3072 + 48)
    assert report.share == report.byte_share == 3072 / 3120
    assert report.bytes_stored - 4 * 48 - integers in scales
    assert report.bytes_stored - report.bytes_nominal == integers - 3072 * bits // 8
    assert bits < report.nominal_bits < bits + 1.5
    assert report.stored_bits == 8 * (report.bytes_stored - 4 * 48) / 3072
    network(torch.randn(2, 64))
    assert held(network[0], backend) == report.bytes_stored, "also once it has run"


@with_torchao
def test_torchao_says_that_four_bits_are_held_in_eight() -> None:
    line = quantize(one_layer(torch.bfloat16), "w4a8", backend="torchao").summary()
    assert line.startswith("w4a8 (torchao, groups of 32): 98.5% of 3.1 k parameters and 98.5% of ")
    assert "6.2 kB -> 1.9 kB nominal, 3.5 kB stored (4.8 and 8.8 bits a weight)" in line


@pytest.mark.parametrize(("scheme", "backend"), EVERY)
def test_convolutions_stay(scheme: str, backend: str) -> None:
    network = by_hand()
    group_size = 8 if scheme in ("w4a8", "w4") else None
    report = quantize(network, scheme, backend=backend, group_size=group_size)
    assert [(left.name, left.reason) for left in report.left] == [
        ("patch", f"no convolutions in {backend}")
    ]
    assert report.quantized_parameters == 512 + 80
    assert network(images(2)).isfinite().all()


@with_torchao
@pytest.mark.parametrize("scheme", ["w4a8", "w4"])
def test_layers_that_groups_do_not_divide_stay(scheme: str) -> None:
    report = quantize(flux(), scheme, backend="torchao")
    left = {layer.name: layer.reason for layer in report.left}
    assert left["context_embedder"] == "inputs not divisible by 32"
    assert "context_embedder (inputs not divisible by 32)" in report.summary()
    assert len(left) == 3
    report = quantize(flux(), scheme, backend="torchao", group_size=8)
    assert {layer.name for layer in report.left} == {"x_embedder", "proj_out"}
    assert len(quantize(flux(), "w8a8", backend="torchao").left) == 2


@pytest.mark.parametrize(("scheme", "backend"), EVERY)
def test_tied_layers_stay(scheme: str, backend: str) -> None:
    network = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))
    network[1].weight = network[0].weight
    report = quantize(network, scheme, backend=backend)
    assert [(left.name, left.reason) for left in report.left] == [
        ("0", "shares its weight"),
        ("1", "shares its weight"),
    ]
    assert network[1].weight is network[0].weight
    assert report.parameters == 2 * 32 * 32 + 3 * 32


@pytest.mark.parametrize(("scheme", "backend"), EVERY)
def test_a_text_encoder_that_reads_its_weights_dtype(scheme: str, backend: str) -> None:
    size = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}
    torch.manual_seed(0)
    encoder = T5EncoderModel(T5Config(vocab_size=10, feed_forward_proj="gated-gelu", **size)).eval()
    words = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        exact = encoder(words).last_hidden_state
        report = quantize(encoder, scheme, backend=backend)
        error = distance(encoder(words).last_hidden_state, exact)
    assert 0 < error < 0.5
    name = "encoder.block.0.layer.1.DenseReluDense.wo"
    assert [(left.name, left.reason) for left in report.left] == [(name, "spared by its class")]


# --- Mixtures ---


@with_torchao
def test_overrides_with_torchao() -> None:
    report = quantize(
        flux(), "w4a8", backend="torchao", overrides={"*norm*": "none", "proj_out": "w8"}
    )
    schemes = {layer.name: layer.scheme.name for layer in report.quantized}
    assert schemes["proj_out"] == "w8"
    assert not any("norm" in name for name in schemes)
    assert ", 1 of them w8; " in report.summary()


@with_bitsandbytes
def test_overrides_with_bitsandbytes() -> None:
    network = sd3()
    report = quantize(network, "none", overrides={"*.attn.*": "nf4", "*.ff.*": "int8"})
    assert report.backend == "bitsandbytes"
    assert {layer.scheme.name for layer in report.quantized} == {"nf4", "int8"}
    assert type(network.context_embedder) is nn.Linear
    assert denoise(network).isfinite().all()


# --- Loading straight into bits ---


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers' loader on a CPU: it only asks for a GPU, and doesn't need one."""
    for quantizer in (BnB4BitDiffusersQuantizer, BnB8BitDiffusersQuantizer):
        monkeypatch.setattr(quantizer, "validate_environment", lambda *_, **__: None)


@with_bitsandbytes
@pytest.mark.usefixtures("loader")
@pytest.mark.parametrize("scheme", ["nf4", "fp4", "int8"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"skip": ()},
        {"skip": ["*.norm.*", "norm_out.*"]},
        {"overrides": {"*.ff.net.2": "none", "proj_out": "int8", "*.ff_context.*": "nf4"}},
    ],
)
def test_loading_is_the_same_as_quantizing(scheme: str, options: Chosen, tmp_path: Path) -> None:
    flux().save_pretrained(tmp_path)
    with init_empty_weights():
        layout = FluxTransformer2DModel.from_config(FluxTransformer2DModel.load_config(tmp_path))
    loaded = FluxTransformer2DModel.from_pretrained(
        tmp_path,
        dtype=torch.float32,
        quantization_config=loading_config(layout, scheme, torch.float32, **options),
        device_map={"": "cpu"},
    )
    report = finish_loading(loaded, scheme, torch.float32, **options)
    network = flux()
    assert report == quantize(network, scheme, **options)
    assert torch.equal(denoise(loaded), denoise(network))


@with_bitsandbytes
@pytest.mark.usefixtures("loader")
def test_loading_spares_more_than_it_is_told_and_is_finished(tmp_path: Path) -> None:
    flux().save_pretrained(tmp_path)
    config = loading_config(flux().to("meta"), "nf4", torch.float32)
    assert config.llm_int8_skip_modules == ["x_embedder", "proj_out"]
    loaded = FluxTransformer2DModel.from_pretrained(
        tmp_path, dtype=torch.float32, quantization_config=config, device_map={"": "cpu"}
    )
    block = loaded.single_transformer_blocks[0]
    assert type(block.proj_out) is nn.Linear, "diffusers takes it for the last layer"
    with pytest.raises(QuantizationError, match="was loaded in nf4; expected int8: load the net"):
        finish_loading(loaded, "int8", torch.float32)
    with pytest.raises(QuantizationError, match=r"time_text_embed\.\S+ was loaded .*expected none"):
        finish_loading(loaded, "nf4", torch.float32, skip=["time_text_embed.*"])
    finish_loading(loaded, "nf4", torch.float32)
    assert type(block.proj_out) is not nn.Linear
    assert type(loaded.proj_out) is nn.Linear
    with pytest.raises(QuantizationError, match=r"is quantized already \(nf4\)"):
        quantize(loaded, "w8a8")


@with_bitsandbytes
@pytest.mark.usefixtures("loader")
def test_loading_a_network_of_convolutions(tmp_path: Path) -> None:
    unet().save_pretrained(tmp_path)
    loaded = UNet2DConditionModel.from_pretrained(
        tmp_path,
        dtype=torch.float32,
        quantization_config=loading_config(unet(), "int8", torch.float32),
        device_map={"": "cpu"},
    )
    network = unet()
    assert finish_loading(loaded, "int8", torch.float32) == quantize(network, "int8")
    assert torch.equal(denoise(loaded), denoise(network))


@with_bitsandbytes
def test_there_is_no_loading_into_none() -> None:
    for scheme in ("none", "w4a8"):
        with pytest.raises(QuantizationError, match=f"scheme {scheme} .* expected nf4, fp4, int8;"):
            loading_config(flux(), scheme, torch.float32)
    with pytest.raises(QuantizationError, match="w4a8 with backend bitsandbytes"):
        loading_config(flux(), "w4a8", torch.float32, backend="bitsandbytes")


# --- What is refused ---


@pytest.mark.parametrize(("scheme", "backend"), EVERY)
@pytest.mark.parametrize("again", ["w4a8", "w8", "nf4", "int8"])
def test_quantizing_twice_is_refused(scheme: str, backend: str, again: str) -> None:
    network = one_layer()
    quantize(network, scheme, backend=backend)
    with pytest.raises(QuantizationError, match=rf"^0 is quantized already \({scheme}\)"):
        quantize(network, again)


@pytest.mark.parametrize("again", ["w4a8", "nf4"])
@pytest.mark.parametrize(
    ("scheme", "backend", "found"),
    [
        pytest.param("w8a8", "torchao", r"Int8\w*Tensor", marks=with_torchao),
        pytest.param("nf4", "bitsandbytes", "nf4", marks=with_bitsandbytes),
        pytest.param("int8", "bitsandbytes", "int8", marks=with_bitsandbytes),
    ],
)
def test_what_others_have_quantized_is_known(
    scheme: str, backend: str, found: str, again: str
) -> None:
    layer = nn.Linear(64, 48)
    backend_named(backend).converter(None).convert(layer, Scheme.parse(scheme))
    with pytest.raises(QuantizationError, match=rf"^0 is quantized already \({found}\)"):
        quantize(nn.Sequential(layer), again)
    weight = layer.weight
    (reported,) = quantize(nn.Sequential(layer), "none").found
    assert re.fullmatch(found, reported.how)
    assert layer.weight is weight


@pytest.mark.parametrize(("scheme", "backend"), EVERY)
def test_what_is_not_installed(scheme: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == backend]:
        monkeypatch.setitem(sys.modules, name, None)
    network = one_layer()
    with pytest.raises(QuantizationError, match=rf"{backend} can't be .* install 'qsched\[gpu\]'"):
        quantize(network, scheme, backend=backend)
    assert type(network[0].weight) is nn.Parameter
    quantize(network, "none", backend=backend)


@with_torchao
def test_a_torchao_of_another_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchao.quantization

    monkeypatch.delattr(torchao.quantization, "IntxWeightOnlyConfig")
    with pytest.raises(QuantizationError, match=r"IntxWeightOnlyConfig.*not one that qsched knows"):
        quantize(one_layer(), "w8a8", backend="torchao")


@with_torchao
@with_bitsandbytes
def test_nothing_is_imported_before_it_is_used_and_nothing_is_printed() -> None:
    program = """
import sys, torch
from torch import nn
from qsched.quantization.quantize import quantize
assert not {"torchao", "bitsandbytes", "diffusers"} & sys.modules.keys()
for scheme, backend in (("w4a8", "torchao"), ("w8a8", "torchao"), ("nf4", None), ("int8", None)):
    network = nn.Sequential(nn.Linear(64, 64))
    quantize(network, scheme, backend=backend)
    network(torch.randn(2, 64))
    assert ("torchao" in sys.modules) >= (backend == "torchao")
assert torch.get_float32_matmul_precision() == "highest"
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
