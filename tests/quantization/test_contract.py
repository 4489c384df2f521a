"""The built-in backends keep what is asked of a plug-in's, and one that doesn't is found out."""

from collections.abc import Callable
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor, nn

from qsched.quantization.backend import Backend, Converter
from qsched.quantization.layers import Layer
from qsched.quantization.schemes import FULL, Scheme
from qsched.testing.backends import BackendContract


class TestSimulated(BackendContract):
    backend = "simulated"

    def schemes(self) -> tuple[Scheme, ...]:
        """Each width alone and with its like, of the 63 pairs."""
        widths = range(2, 9)
        pairs = [(bits, other) for bits in widths for other in (bits, FULL)]
        return tuple(Scheme.of_bits(*pair) for pair in (*pairs, (4, 8), (FULL, 8), (FULL, 2)))


@pytest.mark.skipif(find_spec("torchao") is None, reason="without torchao")
class TestTorchAO(BackendContract):
    backend = "torchao"


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="without bitsandbytes")
class TestBitsAndBytes(BackendContract):
    backend = "bitsandbytes"


# --- Backends that don't ---


class Right(Backend, Converter):
    """Eight bits, a scale for a layer: its own converter, so that those below are short."""

    description = "right"
    schemes = (Scheme("mine8", 8, FULL),)

    def converter(self, group_size: int | None) -> Converter:
        return self

    def convert(self, layer: Layer, scheme: Scheme) -> None:
        layer.weight.data = rounded(layer.weight.data)


def rounded(x: Tensor) -> Tensor:
    step = x.abs().amax() / 127
    return (x / step).round() * step


class Nothing(Right):
    """Says that it converted, and did not."""

    def convert(self, layer: Layer, scheme: Scheme) -> None:
        pass


class Far(Right):
    """One bit under the name of eight."""

    def convert(self, layer: Layer, scheme: Scheme) -> None:
        layer.weight.data = layer.weight.data.sign() * layer.weight.data.abs().mean()


class Batchwise(Right):
    """A scale of activations for the whole batch."""

    def convert(self, layer: Layer, scheme: Scheme) -> None:
        layer.register_forward_pre_hook(lambda _, inputs: rounded(inputs[0]))


class Deaf(Right):
    """The user's hooks are gone."""

    def convert(self, layer: Layer, scheme: Scheme) -> None:
        super().convert(layer, scheme)
        layer._forward_hooks.clear()


class Wide(Right):
    """Half precision becomes float32 at the end."""

    def convert(self, layer: Layer, scheme: Scheme) -> None:
        super().convert(layer, scheme)
        if len(layer.weight) == 32:
            layer.register_forward_hook(lambda *call: call[-1].float())


class Miscounted(Right):
    """Bytes out of thin air."""

    def nominal_bytes(self, layer: Layer, scheme: Scheme) -> int:
        return 1


class Untied(Right):
    """Simulates, and gives each of two tied layers a weight of its own."""

    simulates = True

    def convert(self, layer: Layer, scheme: Scheme) -> None:
        layer.weight = nn.Parameter(rounded(layer.weight.data))


def contract(backend: type[Backend]) -> tuple[BackendContract, Scheme]:
    found = BackendContract()
    found.backend = f"{__name__}:{backend.__name__}"
    return found, backend.schemes[0]


def of_a_scheme(suite: BackendContract) -> list[Callable[..., None]]:
    """The tests that take a scheme and nothing else."""
    names = [name for name in dir(suite) if name.startswith("test_")]
    others = ("test_it_says_what_it_is", "test_half_precision_stays")
    names = [name for name in names if name not in (*others, "test_the_pasted_code_does_the_same")]
    return [getattr(suite, name) for name in names]


def test_a_backend_of_five_lines_keeps_it() -> None:
    suite, scheme = contract(Right)
    suite.test_it_says_what_it_is()
    suite.test_half_precision_stays(scheme, torch.float16)
    for test in of_a_scheme(suite):
        test(scheme)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "broken"),
    [
        (Deaf, {"test_layers_are_converted_where_they_are"}),
        (Nothing, {"test_outputs_stay_close"}),
        (Far, {"test_outputs_stay_close", "test_tied_layers_are_left_alone_or_stay_tied"}),
        (Batchwise, {"test_an_image_does_not_depend_on_its_batch"}),
        (Miscounted, {"test_bytes_are_counted"}),
        (Untied, {"test_tied_layers_are_left_alone_or_stay_tied"}),
    ],
)
def test_one_that_breaks_it_fails_there_alone(backend: type[Backend], broken: set[str]) -> None:
    suite, scheme = contract(backend)
    for test in of_a_scheme(suite):
        if test.__name__ in broken:
            with pytest.raises(AssertionError):
                test(scheme)
        else:
            test(scheme)


def test_half_precision_has_to_stay() -> None:
    suite, scheme = contract(Wide)
    with pytest.raises(AssertionError):
        suite.test_half_precision_stays(scheme, torch.float16)
