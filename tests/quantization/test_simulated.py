"""Simulated quantization: what the numbers become, and what the layers stay."""

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn

from qsched.quantization.quantize import quantize
from qsched.quantization.rounding import SimulatedConv2d, SimulatedLinear
from tests.support.networks import (
    Network,
    by_hand,
    denoise,
    distance,
    images,
    linear,
    sd3,
    unet,
    weight_of,
)


@pytest.fixture
def network() -> Network:
    return by_hand()


def rounded_activations(x: Tensor, bits: int) -> Tensor:
    """What a quantized layer multiplies its weight with, seen through the identity matrix."""
    network = linear(torch.eye(x.shape[-1]).tolist(), x.dtype)
    quantize(network, f"w16a{bits}")
    result: Tensor = network(x)
    return result


# --- The numbers ---


def test_weights_by_hand() -> None:
    network = linear([[7.0, -2.6, 0.4, 0.0], [-0.7, 0.34, 0.26, 0.04]])
    quantize(network, "w4a16")
    expected = torch.tensor([[7.0, -3.0, 0.0, 0.0], [-0.7, 0.3, 0.3, 0.0]])  # scales 1 and 0.1
    torch.testing.assert_close(weight_of(network).data, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bits", [8, 4])
def test_weights_stay_within_half_a_step_on_few_levels(bits: int, network: Network) -> None:
    layers = ["patch", "blocks.0", "out"]
    before = {name: network.get_parameter(f"{name}.weight").detach().clone() for name in layers}
    quantize(network, f"w{bits}a16")
    for name, weight in before.items():
        top = 2 ** (bits - 1) - 1
        scale = weight.flatten(1).abs().amax(1, keepdim=True) / top
        after = network.get_parameter(f"{name}.weight").flatten(1)
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
    weight = weight_of(network)
    assert torch.allclose(weight[0] * 1000, weight[1])
    assert weight[0, 1].item() == pytest.approx(64 / 127)


def test_activations_by_hand() -> None:
    x = torch.tensor([[7.0, -2.6, 0.4], [0.07, 0.012, -0.044]])
    expected = torch.tensor([[7.0, -3.0, 0.0], [0.07, 0.01, -0.04]])  # a scale for each token
    torch.testing.assert_close(rounded_activations(x, 4), expected)


def test_convolution_has_one_activation_scale_for_an_image() -> None:
    network = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False))
    nn.init.dirac_(weight_of(network))  # hands its input through
    quantize(network, "w16a4")
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
    assert torch.equal(weight_of(network).data, torch.tensor([[0.0, 0.0], [1.0, -1.0]]))
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
    assert weight_of(network).dtype == dtype
    assert torch.equal(weight_of(network), weight_of(reference).to(dtype))


@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_input_is_left_as_it_was(context: type, network: Network) -> None:
    quantize(network, "w4a4")
    x = images(2)
    kept = x.clone()
    with context():
        result = network(x)
    assert torch.equal(x, kept)
    assert result.isfinite().all()


# --- Groups ---


def test_groups_by_hand() -> None:
    row = [7.0, -2.6, 0.4, *[0] * 5, 0.7, -0.26, 0.04, *[0] * 5, 70.0, 4.0]  # groups: 8, 8, 2
    network = linear([row, [-number for number in row]])
    report = quantize(network, "w4", group_size=8)
    rounded = [7.0, -3.0, 0, *[0] * 5, 0.7, -0.3, 0, *[0] * 5, 70.0, 0]
    expected = torch.tensor([rounded, [-number for number in rounded]])
    torch.testing.assert_close(weight_of(network).data, expected, rtol=1e-6, atol=0)
    assert report.bytes_nominal == 18 + 2 * 3 * 4


def test_groups_of_a_convolution_run_along_its_flattened_inputs() -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 2, 3)  # 27 weights a channel: groups of 8, 8, 8 and 3
    twin = linear(convolution.weight.flatten(1).tolist())
    network = nn.Sequential(convolution)
    assert quantize(network, "w4", group_size=8).bytes_nominal == 27 + 2 * 4 * 4 + 2 * 4
    quantize(twin, "w4", group_size=8)
    assert torch.equal(convolution.weight.flatten(1), weight_of(twin))


@pytest.mark.parametrize("size", [16, 48, 1000])
def test_a_group_that_holds_a_channel_is_the_channel(size: int, network: Network) -> None:
    grouped = copy.deepcopy(network)
    quantize(network, "w4a8", skip=["patch"])
    quantize(grouped, "w4a8", skip=["patch"], group_size=size)
    assert torch.equal(grouped(images(2)), network(images(2)))


@pytest.mark.parametrize("make", [unet, sd3])
def test_smaller_groups_are_closer_to_full_precision(make: type) -> None:
    exact = denoise(make())
    errors = []
    for size in (None, 32, 8):
        network = make()
        quantize(network, "w4a8", group_size=size)
        errors.append(distance(denoise(network), exact))
    assert errors[0] > errors[1] > errors[2] > 0


# --- Widths ---


def test_each_bit_halves_the_error(network: Network) -> None:
    x = images(8)
    exact = network(x)
    for names in (("w4", "w5", "w6", "w7", "w8"), ("w16a4", "w16a5", "w16a6", "w16a7", "w16a8")):
        errors = []
        for name in names:
            quantized = copy.deepcopy(network)
            quantize(quantized, name)
            errors.append((quantized(x) - exact).norm().item())
        ratios = [wide / narrow for narrow, wide in itertools.pairwise(errors)]
        assert all(0.3 < ratio < 0.7 for ratio in ratios), ratios


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
    assert isinstance(block, SimulatedLinear)
    assert (block.in_features, block.out_features) == (16, 16)
    assert network.patch.stride == (4, 4)
    assert network.state_dict().keys() == state.keys()
    assert torch.equal(network.get_parameter("out.bias"), state["out.bias"])
    assert "scheme=w4a8" in repr(network.out)
    assert "scheme=w4a8" in repr(network.patch)
    network(images(1))
    assert seen == ["out"]


def test_a_copy_is_quantized_too(network: Network) -> None:
    quantize(network, "w4a4")
    assert torch.equal(copy.deepcopy(network)(images(2)), network(images(2)))


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
