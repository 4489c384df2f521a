"""What every quantization backend promises. In a test module of your own, for pytest:

    from qsched.testing.backends import BackendContract

    class TestFloat8(BackendContract):
        backend = "mine:Float8"        # as a study file names it

Most tests run for each scheme that the backend declares. Nothing needs a GPU.
"""

import copy

import pytest
import torch
from torch import Tensor, nn

from qsched.quantization.account import QuantizationReport
from qsched.quantization.backend import backend_named
from qsched.quantization.quantize import quantize
from qsched.quantization.schemes import FULL, Scheme, group_size_for


class SmallNetwork(nn.Module):
    """A convolution, two hidden layers and an output: images (N, 4, 8, 8) to (N, 16, 32).

    The weights are the same each time. Inputs are multiples of 64, so that groups divide them.
    """

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.patch = nn.Conv2d(4, 64, 2, stride=2)
            self.norm = nn.LayerNorm(64)
            self.blocks = nn.ModuleList(nn.Linear(64, 64) for _ in range(2))
            self.out = nn.Linear(64, 32)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.norm(self.patch(images).flatten(2).transpose(1, 2))
        for block in self.blocks:
            tokens = tokens + torch.relu(block(tokens))
        result: Tensor = self.out(tokens)
        return result


class BackendContract:
    """Derive it, and give the `backend` by its name."""

    backend: str

    def schemes(self) -> tuple[Scheme, ...]:
        """Those that are tested: all."""
        return backend_named(self.backend).schemes

    def network(self) -> SmallNetwork:
        """What is quantized. One of your own has Linear layers that every scheme converts."""
        return SmallNetwork()

    def images(self) -> Tensor:
        """Two inputs of the network."""
        return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))

    def largest_error(self, scheme: Scheme) -> float:
        """How far outputs may be from full precision, relative to their norm.

        A tenth; for few bits, of weights or of activations, twice the step of symmetric integers.
        """
        largest_integer: int = 2 ** (min(scheme.weight_bits, scheme.activation_bits) - 1) - 1
        return max(0.1, 2 / largest_integer)

    def quantized(self, scheme: Scheme) -> tuple[SmallNetwork, QuantizationReport]:
        """A new network, and what `quantize` says of it."""
        network = self.network()
        return network, quantize(network, scheme.name, backend=self.backend)

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """A test for each scheme."""
        if "scheme" in metafunc.fixturenames:
            metafunc.parametrize("scheme", self.schemes(), ids=lambda scheme: scheme.name)

    def test_it_says_what_it_is(self) -> None:
        backend = backend_named(self.backend)
        assert len(backend.description.splitlines()) == 1
        names = [scheme.name for scheme in backend.schemes]
        assert len(set(names)) == len(names)
        assert backend.listed

    def test_a_scheme_is_known_by_its_name(self, scheme: Scheme) -> None:
        assert Scheme.parse(scheme.name, self.backend) == scheme

    def test_layers_are_converted_where_they_are(self, scheme: Scheme) -> None:
        network, calls = self.network(), []
        layers = dict(network.named_modules())
        for layer in layers.values():
            layer.register_forward_hook(lambda module, *_: calls.append(module))
        report = quantize(network, scheme.name, backend=self.backend)
        assert report.quantized, "no layer was converted"
        assert dict(network.named_modules()) == layers, "a layer is not the object it was"
        assert not any(layer.training for layer in layers.values())
        _outputs(network, self.images())
        for layer in report.quantized:
            assert calls.count(layers[layer.name]) == 1, "a hook is gone, or called twice"

    def test_other_layers_keep_their_weights(self, scheme: Scheme) -> None:
        network, report = self.quantized(scheme)
        original, done = self.network(), {f"{layer.name}.weight" for layer in report.quantized}
        for name, value in original.named_parameters():
            if name not in done:
                assert torch.equal(network.get_parameter(name), value), name

    def test_outputs_stay_close(self, scheme: Scheme) -> None:
        network, _ = self.quantized(scheme)
        exact = _outputs(self.network(), self.images())
        error = ((_outputs(network, self.images()) - exact).norm() / exact.norm()).item()
        assert 0 < error < self.largest_error(scheme)

    def test_an_image_does_not_depend_on_its_batch(self, scheme: Scheme) -> None:
        network, _ = self.quantized(scheme)
        images = self.images()
        loud = torch.stack([images[0], 100 * images[1]])
        assert torch.equal(_outputs(network, images)[0], _outputs(network, loud)[0])

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_stays(self, scheme: Scheme, dtype: torch.dtype) -> None:
        network = self.network().to(dtype)
        quantize(network, scheme.name, backend=self.backend)
        outputs = _outputs(network, self.images().to(dtype))
        assert outputs.dtype == dtype
        assert outputs.isfinite().all()

    def test_a_copy_calculates_the_same(self, scheme: Scheme) -> None:
        network, _ = self.quantized(scheme)
        for _ in range(2):  # as it is made, and once it has run
            twin = copy.deepcopy(network)
            assert torch.equal(_outputs(twin, self.images()), _outputs(network, self.images()))

    def test_bytes_are_counted(self, scheme: Scheme) -> None:
        _, report = self.quantized(scheme)
        original = self.network()
        layers = {layer.name for layer in report.quantized}
        weights = sum(original.get_parameter(f"{name}.weight").numel() for name in layers)
        assert report.parameters == sum(each.numel() for each in original.parameters())
        assert report.bytes_before == 4 * report.parameters
        if scheme.weight_bits == FULL:
            assert report.quantized_parameters == 0
            return
        assert report.quantized_parameters == weights
        assert scheme.weight_bits <= report.nominal_bits < scheme.weight_bits + 2
        assert report.nominal_bits <= report.stored_bits

    def test_tied_layers_are_left_alone_or_stay_tied(self, scheme: Scheme) -> None:
        network = self.network()
        first, second = network.blocks
        second.weight = first.weight
        exact = _outputs(network, self.images())
        quantize(network, scheme.name, backend=self.backend)
        assert second.weight is first.weight
        outputs = _outputs(network, self.images())
        assert (outputs - exact).norm() < self.largest_error(scheme) * exact.norm()

    def test_the_pasted_code_does_the_same(self) -> None:
        """Of schemes without any, readers are told to paste qsched's own `quantize`."""
        for scheme in self.schemes():
            group_size = group_size_for(scheme.name, self.backend, None)
            snippet = backend_named(self.backend).snippet("network", scheme, group_size)
            if snippet is None:
                continue
            network, images = self.network(), self.images()
            rules = " and ".join(snippet.rules)
            wanted = f"def wanted(layer, name):\n    return {rules}"
            code = "\n".join([*snippet.imports, wanted, *snippet.lines])
            exec(code, {"torch": torch, "network": network, "device": "cpu"})
            by_qsched, _ = self.quantized(scheme)
            assert torch.equal(_outputs(network, images), _outputs(by_qsched, images))


@torch.no_grad()
def _outputs(network: nn.Module, images: Tensor) -> Tensor:
    outputs: Tensor = network(images)
    return outputs
