"""Simulated quantization: what the numbers become, what is covered, what is refused."""

import copy

import pytest
import torch
from torch import Tensor, nn

from qsched import catalog
from qsched.errors import QuantizationError
from qsched.quantize import (
    SCHEMES,
    Scheme,
    SimulatedConv2d,
    SimulatedLinear,
    quantize,
)

NAMES = ["none", "w8a16", "w8a8", "w8a4", "w4a16", "w4a8", "w4a4"]


class Network(nn.Module):
    """A convolution, two hidden layers and an output, as a denoiser has them."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, stride=4)
        self.norm = nn.LayerNorm(16)
        self.blocks = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
        self.out = nn.Linear(16, 5)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.norm(self.patch(images).flatten(2).transpose(1, 2))
        for block in self.blocks:
            tokens = torch.relu(block(tokens))
        return self.out(tokens)


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network().eval()


def images(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def linear(rows: list[list[float]], dtype: torch.dtype = torch.float32) -> nn.Sequential:
    weight = torch.tensor(rows, dtype=dtype)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=dtype)
    layer.weight = nn.Parameter(weight)
    return nn.Sequential(layer)


def rounded_activations(x: Tensor, bits: int) -> Tensor:
    """What a quantized layer multiplies its weight with, seen through the identity matrix."""
    network = linear(torch.eye(x.shape[-1]).tolist(), x.dtype)
    quantize(network, Scheme("", 16, bits))
    return network(x)


# --- The numbers ---


def test_weights_by_hand() -> None:
    network = linear([[7.0, -2.6, 0.4, 0.0], [-0.7, 0.34, 0.26, 0.04]])
    quantize(network, "w4a16")
    expected = torch.tensor([[7.0, -3.0, 0.0, 0.0], [-0.7, 0.3, 0.3, 0.0]])  # scales 1 and 0.1
    torch.testing.assert_close(network[0].weight.data, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bits", [8, 4])
def test_weights_stay_within_half_a_step_on_few_levels(bits: int, network: Network) -> None:
    layers = ["patch", "blocks.0", "out"]
    before = {name: network.get_submodule(name).weight.detach().clone() for name in layers}
    quantize(network, f"w{bits}a16")
    for name, weight in before.items():
        top = 2 ** (bits - 1) - 1
        scale = weight.flatten(1).abs().amax(1, keepdim=True) / top
        after = network.get_submodule(name).weight.flatten(1)
        error = (after - weight.flatten(1)).abs()
        assert (error <= scale / 2 * (1 + 1e-5)).all()
        assert error.max() > 0
        levels = after / scale
        assert (levels - levels.round()).abs().max() < 1e-4
        assert levels.abs().max().round() == top
        assert max(len(row.unique()) for row in after) <= 2**bits - 1


def test_each_output_channel_has_its_own_scale() -> None:
    network = linear([[1.0, 0.5], [1000.0, 500.0]])
    quantize(network, "w8a16")
    assert torch.allclose(network[0].weight[0] * 1000, network[0].weight[1])
    assert network[0].weight[0, 1].item() == pytest.approx(64 / 127)


def test_activations_by_hand() -> None:
    x = torch.tensor([[7.0, -2.6, 0.4], [0.07, 0.012, -0.044]])
    expected = torch.tensor([[7.0, -3.0, 0.0], [0.07, 0.01, -0.04]])  # a scale for each token
    torch.testing.assert_close(rounded_activations(x, 4), expected)


def test_convolution_has_one_activation_scale_for_an_image() -> None:
    network = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False))
    nn.init.dirac_(network[0].weight)  # hands its input through
    quantize(network, Scheme("", 16, 4))
    x = torch.tensor([[[[7.0, 2.6]], [[0.4, 0.2]]], [[[0.07, 0.026]], [[0.004, 0.0]]]])
    expected = torch.tensor([[[[7.0, 3.0]], [[0.0, 0.0]]], [[[0.07, 0.03]], [[0.0, 0.0]]]])
    torch.testing.assert_close(network(x), expected)


@pytest.mark.parametrize("scheme", ["w8a16", "w4a16"])
def test_16_bits_leave_activations_alone(scheme: str, network: Network) -> None:
    x = images(2)
    quantize(network, scheme)
    plain = Network()
    plain.load_state_dict(network.state_dict())
    assert torch.equal(network(x), plain(x))


def test_none_is_a_no_op_to_the_bit(network: Network) -> None:
    x = images(2)
    before = network(x)
    report = quantize(network, "none")
    assert torch.equal(network(x), before)
    assert type(network.out) is nn.Linear
    assert (report.quantized, report.share) == ((), 0.0)
    assert report.summary() == "none: nothing quantized; 1.4 k parameters, 5.8 kB"


def test_fewer_bits_are_further_from_full_precision(network: Network) -> None:
    x = images(8)
    exact = network(x)
    errors = []
    for scheme in ("w8a8", "w4a8", "w4a4"):
        quantized = copy.deepcopy(network)
        quantize(quantized, scheme)
        errors.append((quantized(x) - exact).pow(2).mean().item())
    assert 0 < 10 * errors[0] < errors[1] < errors[2]


def test_an_image_does_not_depend_on_its_batch(network: Network) -> None:
    quantize(network, "w4a4")
    batch = images(4)
    loud = batch.clone()
    loud[1:] *= 100
    assert torch.equal(network(batch)[0], network(loud)[0])
    assert not torch.equal(network(batch)[1], network(loud)[1])


@pytest.mark.parametrize("bits", [8, 4])
def test_zeros_stay_zeros(bits: int) -> None:
    network = linear([[0.0, 0.0], [1.0, -1.0]])
    quantize(network, f"w{bits}a{bits}")
    assert torch.equal(network[0].weight.data, torch.tensor([[0.0, 0.0], [1.0, -1.0]]))
    assert torch.equal(network(torch.zeros(3, 2)), torch.zeros(3, 2))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_visible(bad: float) -> None:
    result = rounded_activations(torch.tensor([[1.0, bad], [1.0, 2.0]]), 8)
    assert result[0].isnan().all()
    assert result[1].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_with_scales_in_float32(dtype: torch.dtype) -> None:
    x = (1000 * torch.randn(5, 64, generator=torch.Generator().manual_seed(2))).to(dtype)
    expected = rounded_activations(x.float(), 8).to(dtype)
    result = rounded_activations(x, 8)
    assert result.dtype == dtype
    assert torch.equal(result, expected)

    network, reference = linear(x.tolist(), dtype), linear(x.float().tolist())
    quantize(network, "w4a16")
    quantize(reference, "w4a16")
    assert network[0].weight.dtype == dtype
    assert torch.equal(network[0].weight, reference[0].weight.to(dtype))


@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_input_is_left_as_it_was(context: type, network: Network) -> None:
    quantize(network, "w4a4")
    x = images(2)
    kept = x.clone()
    with context():
        result = network(x)
    assert torch.equal(x, kept)
    assert result.isfinite().all()


# --- The layers ---


def test_layers_keep_what_they_were(network: Network) -> None:
    out, block = network.out, network.blocks[0]
    seen = []
    out.register_forward_hook(lambda *_: seen.append("out"))
    state = network.state_dict()
    quantize(network, "w4a8")
    assert network.out is out
    assert isinstance(out, SimulatedLinear)
    assert isinstance(network.patch, SimulatedConv2d)
    assert (block.in_features, block.out_features) == (16, 16)
    assert network.patch.stride == (4, 4)
    assert network.state_dict().keys() == state.keys()
    assert torch.equal(network.out.bias, state["out.bias"])
    assert "scheme=w4a8" in repr(network.out)
    assert "scheme=w4a8" in repr(network.patch)
    network(images(1))
    assert seen == ["out"]


def test_a_copy_is_quantized_too(network: Network) -> None:
    quantize(network, "w4a4")
    assert torch.equal(copy.deepcopy(network)(images(2)), network(images(2)))


def test_skip_and_overrides(network: Network) -> None:
    exact = network.state_dict()
    exact = {name: value.clone() for name, value in exact.items()}
    report = quantize(network, "w4a4", skip=["patch"], overrides={"out": "w8a8", "*.1": "none"})
    assert torch.equal(network.patch.weight, exact["patch.weight"])
    assert torch.equal(network.blocks[1].weight, exact["blocks.1.weight"])
    assert (network.out.scheme.name, network.blocks[0].scheme.name) == ("w8a8", "w4a4")
    error = (network.out.weight - exact["out.weight"]).abs().max()
    assert 0 < error <= exact["out.weight"].abs().max() / 127 / 2 * (1 + 1e-5)
    assert report.skipped == ("patch", "blocks.1")
    assert [(layer.name, layer.kind) for layer in report.quantized] == [
        ("blocks.0", "Linear"),
        ("out", "Linear"),
    ]


def test_skip_goes_before_overrides_and_the_first_override_counts(network: Network) -> None:
    overrides = {"blocks.0": "w8a8", "blocks.*": "w8a16", "out": "w8a8"}
    quantize(network, "w4a4", skip=["out"], overrides=overrides)
    assert type(network.out) is nn.Linear
    assert [block.scheme.name for block in network.blocks] == ["w8a8", "w8a16"]


def test_only_the_overrides_when_the_scheme_is_none(network: Network) -> None:
    report = quantize(network, "none", overrides={"blocks.*": "w4a8"})
    assert [layer.name for layer in report.quantized] == ["blocks.0", "blocks.1"]
    assert "none (simulated): 35.4% of 1.4 k parameters in 2 Linear, 2 of them w4a8; " in (
        report.summary()
    )


def test_tied_layers_stay_tied_and_count_once() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    embedding = nn.Embedding(4, 4)
    embedding.weight = first.weight
    network = nn.ModuleList([first, second, first, embedding])
    whole = first.weight.detach().clone()
    report = quantize(network, "w4a8")
    assert first.weight is second.weight
    assert report.quantized_parameters == 16
    assert not torch.equal(first.weight, whole)
    assert torch.equal(embedding.weight, whole)


def test_subclasses_with_a_forward_of_their_own_are_left_alone() -> None:
    network = nn.MultiheadAttention(8, 2)  # its out_proj is a subclass whose forward is not called
    network.add_module("after", nn.Linear(8, 8))
    report = quantize(network, "w4a8")
    assert report.skipped == ("out_proj",)
    assert [layer.name for layer in report.quantized] == ["after"]


# --- The account ---


def test_bytes_and_share_by_hand(network: Network) -> None:
    # patch 16 x 48 + 16; norm 16 + 16; blocks 2 x (256 + 16); out 80 + 5
    report = quantize(network, "w4a8", skip=["out"])
    assert report.parameters == 784 + 32 + 544 + 85
    assert report.quantized_parameters == 768 + 512
    assert report.share == (768 + 512) / 1445
    assert report.bytes_before == report.bytes_stored == 4 * 1445
    packed, scales = (768 + 512) // 2, 4 * (16 + 16 + 16)
    assert report.bytes_nominal == 4 * (1445 - 1280) + packed + scales
    assert report.summary() == (
        "w4a8 (simulated): 88.6% of 1.4 k parameters in 1 Conv2d, 2 Linear; "
        "5.8 kB -> 1.5 kB nominal, 5.8 kB stored; left alone: out"
    )


def test_bytes_of_a_half_precision_network(network: Network) -> None:
    report = quantize(network.half(), "w8a8", overrides={"out": "w4a8"})
    assert report.bytes_before == report.bytes_stored == 2 * 1445
    rest = 2 * (1445 - 1280 - 80)
    assert report.bytes_nominal == rest + 1280 + 40 + 4 * (16 + 16 + 16 + 5)
    assert "in 1 Conv2d, 3 Linear, 1 of them w4a8; 2.9 kB -> 1.7 kB nominal" in report.summary()


def test_an_odd_number_of_weights_fills_a_byte() -> None:
    assert quantize(linear([[1.0, 2.0, 3.0]]), "w4a8").bytes_nominal == 2 + 4


# --- What is refused ---


def test_schemes() -> None:
    assert list(SCHEMES) == NAMES
    assert Scheme.parse(" W4A8 ") == Scheme("w4a8", weight_bits=4, activation_bits=8)
    assert Scheme.parse("none") == Scheme("none", 16, 16)


def test_a_study_file_may_name_these_schemes() -> None:
    assert set(catalog.SCHEMES) == set(SCHEMES)


@pytest.mark.parametrize("name", ["", "w4", "w3a8", "nf4"])
def test_unknown_scheme_names_those_that_exist(name: str, network: Network) -> None:
    with pytest.raises(QuantizationError, match=", ".join(NAMES)):
        quantize(network, name)


@pytest.mark.parametrize("bits", [(1, 8), (4, 0), (17, 8)])
def test_impossible_widths(bits: tuple[int, int]) -> None:
    with pytest.raises(QuantizationError, match="expected 2 to 16"):
        Scheme("mine", *bits)


@pytest.mark.parametrize("again", ["w4a8", "w8a8", "none"])
def test_quantizing_twice_is_refused(again: str, network: Network) -> None:
    quantize(network, "w4a8", skip=["patch"])
    with pytest.raises(QuantizationError, match=r"blocks\.0 is quantized already \(w4a8\)"):
        quantize(network, again)


def test_nothing_to_quantize() -> None:
    with pytest.raises(QuantizationError, match="LayerNorm has no Linear or Conv2d"):
        quantize(nn.LayerNorm(4), "w4a8")


@pytest.mark.parametrize("options", [{"skip": ["proj_out"]}, {"overrides": {"proj_out": "w8a8"}}])
def test_a_pattern_that_matches_nothing(options: dict, network: Network) -> None:
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
        layer.forward = layer.forward


@pytest.mark.parametrize("what", ["not finite", "on meta", "of torch.int8", "forward replaced"])
def test_unfit_layers_are_refused_and_nothing_is_changed(what: str, network: Network) -> None:
    unfit(what, network.out)
    kept = network.patch.weight.detach().clone()
    with pytest.raises(QuantizationError, match=rf"^out.*{what}"):
        quantize(network, "w4a8")
    assert type(network.patch) is nn.Conv2d
    assert torch.equal(network.patch.weight, kept)
    quantize(network, "w4a8", skip=["out"])
