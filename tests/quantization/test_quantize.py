"""Which layers of a network are quantized and how, the account of it, and what is refused."""

import enum
import json
from collections.abc import Callable
from fnmatch import fnmatchcase

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import (
    AuraFlowTransformer2DModel,
    FluxTransformer2DModel,
    Lumina2Transformer2DModel,
    PixArtTransformer2DModel,
    QwenImageTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    ZImageTransformer2DModel,
)
from torch import nn

from qsched.errors import QuantizationError
from qsched.quantization.account import LayerLeft
from qsched.quantization.quantize import QuantizationReport, quantize
from qsched.quantization.rounding import SimulatedLinear
from qsched.quantization.schemes import FIRST_AND_LAST
from tests.support.networks import Chosen, Network, by_hand, flux, images, linear, sd3, unet


class GGMLType(enum.IntEnum):
    Q4_0 = 2


@pytest.fixture
def network() -> Network:
    return by_hand()


def names_left(report: QuantizationReport) -> list[str]:
    return [layer.name for layer in report.left]


def scheme_of(layer: nn.Module) -> str:
    assert isinstance(layer, SimulatedLinear)
    return layer.scheme.name


# --- Which layers ---


def test_none_is_a_no_op_to_the_bit(network: Network) -> None:
    x = images(2)
    before = network(x)
    report = quantize(network, "none")
    assert torch.equal(network(x), before)
    assert type(network.out) is nn.Linear
    assert (report.quantized, report.share, report.stored_bits) == ((), 0.0, 0.0)
    assert report.summary() == "none: nothing quantized; 1.4 k parameters, 5.8 kB"


class Packed(nn.Parameter):
    """As GGUF has it: bytes that know their kind."""

    quant_type = GGMLType.Q4_0


class Fused(nn.Linear):
    """Somebody's own layer."""


class Kernel(nn.Module):
    """As GPTQ and Nunchaku have it: no Linear at all."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("qweight", torch.ones(2, 16, dtype=torch.int32))


def test_none_reports_what_is_quantized_already_and_touches_nothing(network: Network) -> None:
    first, second = network.blocks
    first.weight = Packed(torch.ones(16, 9, dtype=torch.uint8), requires_grad=False)
    network.out = Fused(16, 5)
    network.extra = Kernel()
    network.eighth = nn.Linear(4, 4).to(torch.float8_e4m3fn)
    held = network.state_dict(keep_vars=True)
    report = quantize(network, "none")
    assert [(layer.name, layer.kind, layer.how) for layer in report.found] == [
        ("blocks.0", "Linear", "Q4_0"),
        ("out", "Fused", "a subclass of Linear"),
        ("extra", "Kernel", "int32"),
        ("eighth", "Linear", "float8_e4m3fn"),
    ]
    assert all(tensor is held[name] for name, tensor in network.state_dict(keep_vars=True).items())
    assert (type(second), type(network.out)) == (nn.Linear, Fused)
    assert report.summary().startswith("none: as it came, quantized already: 1 Linear (Q4_0), 1 F")
    assert json.dumps(report.to_dict()["found"][0]["how"]) == '"Q4_0"'


def test_none_takes_a_network_without_any_plain_layer() -> None:
    assert [layer.how for layer in quantize(nn.Sequential(Kernel()), "none").found] == ["int32"]
    with pytest.raises(QuantizationError, match="no Linear or Conv2d layer to quantize"):
        quantize(nn.Sequential(Kernel()), "w4a8")


@pytest.mark.parametrize("make", [unet, flux, sd3])
def test_a_plain_network_is_not_taken_for_a_quantized_one(make: Callable[[], nn.Module]) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        assert quantize(make().to(dtype), "none").found == ()


def test_skip_and_overrides(network: Network) -> None:
    exact = network.state_dict()
    exact = {name: value.clone() for name, value in exact.items()}
    report = quantize(network, "w4a4", skip=["patch"], overrides={"out": "w8a8", "*.1": "none"})
    assert torch.equal(network.patch.weight, exact["patch.weight"])
    assert torch.equal(network.get_parameter("blocks.1.weight"), exact["blocks.1.weight"])
    assert (scheme_of(network.out), scheme_of(network.blocks[0])) == ("w8a8", "w4a4")
    error = (network.out.weight - exact["out.weight"]).abs().max()
    assert 0 < error <= exact["out.weight"].abs().max() / 127 / 2 * (1 + 1e-5)
    assert report.left == (
        LayerLeft("patch", "Conv2d", "skipped"),
        LayerLeft("blocks.1", "Linear", "none by override"),
    )
    assert [(layer.name, layer.kind, layer.scheme.name) for layer in report.quantized] == [
        ("blocks.0", "Linear", "w4a4"),
        ("out", "Linear", "w8a8"),
    ]


def test_skip_goes_before_overrides_and_the_first_override_counts(network: Network) -> None:
    overrides = {"blocks.0": "w8a8", "blocks.*": "w8a16", "out": "w8a8"}
    quantize(network, "w4a4", skip=["out"], overrides=overrides)
    assert type(network.out) is nn.Linear
    assert [scheme_of(block) for block in network.blocks] == ["w8a8", "w8"]


def test_only_the_overrides_when_the_scheme_is_none(network: Network) -> None:
    report = quantize(network, "none", overrides={"blocks.*": "w4a8"})
    assert [layer.name for layer in report.quantized] == ["blocks.0", "blocks.1"]
    assert "35.4% of the bytes in 2 Linear, 2 of them w4a8; " in report.summary()
    assert "left alone: patch, out (none)" in report.summary()


@pytest.mark.parametrize("make", [unet, sd3, flux])
def test_the_first_and_the_last_layer_stay_unless_a_study_says_otherwise(make: type) -> None:
    ends = {
        unet: ["conv_in", "conv_out"],
        sd3: ["pos_embed.proj", "proj_out"],
        flux: ["x_embedder", "proj_out"],
    }[make]
    report = quantize(make(), "w4a8")
    assert [(left.name, left.reason) for left in report.left] == [
        (name, "first or last") for name in ends
    ]
    assert quantize(make(), "w4a8", skip=()).left == ()
    assert names_left(quantize(make(), "w4a8", skip=[ends[0]])) == ends[:1]
    report = quantize(make(), "w4a8", overrides={ends[1]: "w8a8"})
    assert names_left(report) == ends[:1]
    assert {layer.name: layer.scheme.name for layer in report.quantized}[ends[1]] == "w8a8"


@pytest.mark.parametrize(
    "kind",
    [
        AuraFlowTransformer2DModel,
        FluxTransformer2DModel,
        Lumina2Transformer2DModel,
        PixArtTransformer2DModel,
        QwenImageTransformer2DModel,
        SanaTransformer2DModel,
        SD3Transformer2DModel,
        UNet2DConditionModel,
        ZImageTransformer2DModel,
    ],
)
def test_names_of_first_and_last_layers_are_those_of_diffusers(kind: type) -> None:
    with init_empty_weights():
        network = kind()
    found = [
        name
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
        and any(fnmatchcase(name, pattern) for pattern in FIRST_AND_LAST)
    ]
    first, last = (network.get_submodule(name) for name in found)
    inputs = first.in_channels if isinstance(first, nn.Conv2d) else first.in_features
    outputs = last.out_channels if isinstance(last, nn.Conv2d) else last.out_features
    assert inputs % network.config.in_channels == 0  # a patch of latents
    assert outputs % (network.config.get("out_channels") or network.config.in_channels) == 0


def test_subclasses_with_a_forward_of_their_own_are_left_alone() -> None:
    network = nn.MultiheadAttention(8, 2)  # its out_proj is a subclass whose forward is not called
    network.add_module("after", nn.Linear(8, 8))
    report = quantize(network, "w4a8")
    reason = "a subclass, NonDynamicallyQuantizableLinear"
    assert report.left == (LayerLeft("out_proj", "Linear", reason),)
    assert [layer.name for layer in report.quantized] == ["after"]


# --- The account ---


def test_bytes_and_share_by_hand(network: Network) -> None:
    # patch 16 x 48 + 16; norm 16 + 16; blocks 2 x (256 + 16); out 80 + 5
    report = quantize(network, "w4a8", skip=["out"])
    assert report.parameters == 784 + 32 + 544 + 85
    assert report.quantized_parameters == 768 + 512
    assert report.share == report.byte_share == (768 + 512) / 1445
    assert report.bytes_before == report.bytes_stored == 4 * 1445
    packed, scales = (768 + 512) // 2, 4 * (16 + 16 + 16)
    assert report.bytes_nominal == 4 * (1445 - 1280) + packed + scales
    assert report.nominal_bits == 8 * (packed + scales) / 1280
    assert report.stored_bits == 32
    assert report.summary() == (
        "w4a8 (simulated): 88.6% of 1.4 k parameters and 88.6% of the bytes in 1 Conv2d, 2 Linear; "
        "5.8 kB -> 1.5 kB nominal, 5.8 kB stored (5.2 and 32.0 bits a weight); "
        "left alone: out (skipped)"
    )


def test_bytes_of_a_half_precision_network(network: Network) -> None:
    report = quantize(network.half(), "w8a8", overrides={"out": "w4a8"})
    assert report.bytes_before == report.bytes_stored == 2 * 1445
    rest = 2 * (1445 - 1280 - 80)
    assert report.bytes_nominal == rest + 1280 + 40 + 4 * (16 + 16 + 16 + 5)
    assert "in 1 Conv2d, 3 Linear, 1 of them w4a8; 2.9 kB -> 1.7 kB nominal" in report.summary()


def test_shares_differ_where_a_part_is_wider(network: Network) -> None:
    network.patch.double()
    report = quantize(network, "w4a8", skip=["patch"])
    assert report.share == (512 + 80) / 1445
    assert report.byte_share == 4 * (512 + 80) / (8 * 784 + 4 * (1445 - 784))


def test_an_odd_number_of_weights_fills_a_byte() -> None:
    assert quantize(linear([[1.0, 2.0, 3.0]]), "w4a8").bytes_nominal == 2 + 4


def test_weights_that_stay_do_not_count(network: Network) -> None:
    report = quantize(network, "w16a8")
    assert len(report.quantized) == 4
    assert (report.quantized_parameters, report.bytes_nominal) == (0, report.bytes_before)


def test_long_lists_are_cut() -> None:
    report = quantize(unet(), "w4a8", skip=["*resnets*", "conv_in", "conv_out"])
    assert "down_blocks.0.resnets.0.conv1, " in report.summary()
    assert report.summary().count("resnets") == 2
    assert "conv_in, " in report.summary()
    assert report.summary().endswith("more (skipped)")


def test_a_report_in_json(network: Network) -> None:
    table = json.loads(json.dumps(quantize(network, "w4a8", skip=["out"]).to_dict()))
    assert (table["scheme"], table["backend"], table["group_size"]) == ("w4a8", "simulated", None)
    assert table["share"] == table["quantized_parameters"] / table["parameters"]
    assert table["quantized"][0] == {"name": "patch", "kind": "Conv2d", "scheme": "w4a8"}
    assert table["left"] == [{"name": "out", "kind": "Linear", "reason": "skipped"}]
    assert (table["nominal_bits"], table["stored_bits"]) == (5.2, 32)


# --- What is refused ---


@pytest.mark.parametrize("name", ["", "4", "w4b8", "nf5"])
def test_unknown_schemes(name: str, network: Network) -> None:
    with pytest.raises(QuantizationError, match=f"scheme '{name}'; expected none, nf4"):
        quantize(network, name)
    with pytest.raises(QuantizationError, match=f"scheme '{name}'; expected none, nf4"):
        quantize(network, "w4a8", overrides={"out": name})


def test_overrides_of_another_backend(network: Network) -> None:
    with pytest.raises(QuantizationError, match="nf4 with backend simulated"):
        quantize(network, "w4a8", overrides={"out": "nf4"})
    with pytest.raises(QuantizationError, match="w4a4 with backend torchao"):
        quantize(network, "w4a8", backend="torchao", overrides={"out": "w4a4"})


@pytest.mark.parametrize("again", ["w4a8", "w8a8"])
def test_quantizing_twice_is_refused(again: str, network: Network) -> None:
    quantize(network, "w4a8", skip=["patch"])
    with pytest.raises(QuantizationError, match=r"blocks\.0 is quantized already \(w4a8\)"):
        quantize(network, again)
    found = quantize(network, "none").found
    assert [layer.how for layer in found] == ["w4a8"] * 3
    with pytest.raises(QuantizationError, match="quantized already"):
        quantize(network, "none", overrides={"out": again})


def test_nothing_to_quantize() -> None:
    with pytest.raises(QuantizationError, match="LayerNorm has no Linear or Conv2d"):
        quantize(nn.LayerNorm(4), "w4a8")


@pytest.mark.parametrize("options", [{"skip": ["proj_out"]}, {"overrides": {"proj_out": "w8a8"}}])
def test_a_pattern_that_matches_nothing(options: Chosen, network: Network) -> None:
    with pytest.raises(QuantizationError, match="'proj_out' matches no layer; there are 4, such"):
        quantize(network, "w4a8", **options)


def unfit(what: str, layer: nn.Linear) -> None:
    if what == "not finite":
        layer.weight.data[0, 0] = float("nan")
    elif what == "on meta":
        layer.to("meta")
    elif what == "of torch.int8":
        layer.weight = nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
    else:
        vars(layer)["forward"] = layer.forward


@pytest.mark.parametrize("what", ["not finite", "on meta", "of torch.int8", "forward replaced"])
def test_unfit_layers_are_refused_and_nothing_is_changed(what: str, network: Network) -> None:
    unfit(what, network.out)
    kept = network.patch.weight.detach().clone()
    with pytest.raises(QuantizationError, match=rf"^out.*{what}"):
        quantize(network, "w4a8")
    assert type(network.patch) is nn.Conv2d
    assert torch.equal(network.patch.weight, kept)
    quantize(network, "w4a8", skip=["out"])
