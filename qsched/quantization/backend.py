"""Backends: ways of quantizing, one class each that says all there is to say of one. No torch.

Three are built in; an installed package offers others as entry points of the group
``qsched.backends``, and one of your own is a file beside the study, ``backend = "mine:Float8"``:

    from qsched.quantization.backend import Backend, Converter
    from qsched.quantization.schemes import Scheme

    class Float8(Backend):
        description = "weights rounded to 8-bit floating point"
        schemes = (Scheme("e4m3", weight_bits=8, activation_bits=16),)

        def converter(self, group_size):
            return Rounding()

    class Rounding(Converter):
        def convert(self, layer, scheme):
            import torch
            layer.weight.data = layer.weight.to(torch.float8_e4m3fn).to(layer.weight.dtype)

Its modules are imported to check a study file, so torch and libraries come inside the methods.
`qsched.testing.backends` tests what every backend promises.
"""

import importlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

from qsched.errors import QuantizationError, in_one_line
from qsched.libraries import quiet
from qsched.plugins import Found, Origin, Registry

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from qsched.quantization.layers import Layer
    from qsched.quantization.schemes import Scheme

BACKENDS = Registry(
    "quantization backend",
    "qsched.backends",
    {
        "simulated": "qsched.quantization.simulated:Simulated",
        "torchao": "qsched.quantization.torchao:TorchAO",
        "bitsandbytes": "qsched.quantization.bitsandbytes:BitsAndBytes",
    },
    QuantizationError,
)
"""A scheme without a backend goes to the first that has it, in this order."""

logger = logging.getLogger(__name__)


class Converter(ABC):
    """One backend's work on one network: its layers in place, each stays the object it was."""

    def obstacle(self, layer: "Layer", scheme: "Scheme") -> str | None:
        """Why this Linear or Conv2d layer can't be converted; None, as here, if it can."""
        return None

    @abstractmethod
    def convert(self, layer: "Layer", scheme: "Scheme") -> None:
        """Quantizes the layer, whose weight is plain finite floating point, where it is."""

    def settle(self, layer: "nn.Module") -> None:  # noqa: B027 - few have anything to do
        """Makes a layer that diffusers loaded straight into bits as `convert` would have."""

    def held(self, module: "nn.Module") -> "Iterator[Tensor]":
        """The plain tensors behind a module's own parameters; some may come twice."""
        from qsched.quantization.layers import tensors_held

        return tensors_held(module)

    def nominal_bytes(self, layer: "Layer", scheme: "Scheme") -> int:
        """Of a converted layer's weight, had its numbers been packed; scales as they are held."""
        from qsched.quantization.layers import plain, size_of, weights_of

        numbers = next(plain(layer.weight)).nbytes
        bias = 0 if layer.bias is None else layer.bias.nbytes
        scales = size_of(self.held(layer)) - numbers - bias
        return scales + -(-weights_of(layer) * scheme.weight_bits // 8)


@dataclass(frozen=True)
class Snippet:
    """Code that quantizes a network as a backend does, for people who have no qsched.

    `imports`: whole lines. `rules`: expressions of `layer`, all true for the layers to be
    quantized. `lines`: statements, which may use `device` and ``wanted(layer, name)``, the function
    of those rules and of the layers that a study spares. `on_device`: whether they come after the
    network was moved to its device, or before.
    """

    imports: tuple[str, ...]
    rules: tuple[str, ...]
    lines: tuple[str, ...]
    on_device: bool = True


class Backend(ABC):
    """A way of quantizing. `name`: what a study file calls it.

    `description`: it in one line, for study files. `schemes`: what it can do; 16 bits count as left
    as they are. `packages`: distributions whose version changes what it calculates, for the
    fingerprint. `modules`: what it imports, and `extra`, the extra of qsched that installs them; ""
    if `packages` do. `scales`: what shares a scale where `group_size` can't be set.

    `simulates`: its weights stay plain floating point, rounded: tied layers may stay tied, and a
    template prefers a backend that holds what the scheme says. `loads_straight`: diffusers can load
    a network into its schemes, by its `loading_config`.
    """

    description: str
    schemes: "tuple[Scheme, ...]"
    packages: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    extra: str = ""
    scales: str = "scales of its own"
    simulates: bool = False
    loads_straight: bool = False

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def listed(self) -> str:
        """Its schemes, as errors name them."""
        return ", ".join(scheme.name for scheme in self.schemes)

    def group_size(self, scheme: "Scheme", asked: int | None) -> int | None:
        """How many weights of an output channel share a scale, where a study asks for `asked`.

        None: all of them, or blocks of the backend's own. Raises QuantizationError for a size that
        it can't have; here, for any.
        """
        if asked is None:
            return None
        raise QuantizationError(
            f"quantization group_size = {asked}; {scheme.name} with backend {self.name} has "
            f"{self.scales}; leave group_size out"
        )

    @abstractmethod
    def converter(self, group_size: int | None) -> Converter:
        """For one network, with what `group_size` returned. Raises QuantizationError if what it
        needs is not installed, or too old."""

    def quantized_as(self, layer: "Layer") -> str | None:
        """How its library has quantized the layer, whoever asked it to; None if it has not.

        What `quantize` has converted it knows by itself. Where `loads_straight`: the scheme's name.
        """
        return None

    def loading_config(self, scheme: "Scheme", dtype: "torch.dtype", spared: Sequence[str]) -> Any:
        """diffusers' ``quantization_config`` that loads a network straight into `scheme`.

        `dtype`: of all the rest. `spared`: full names of layers to load in full precision; more may
        be, and are converted afterwards.
        """
        raise NotImplementedError

    def snippet(self, network: str, scheme: "Scheme", group_size: int | None) -> Snippet | None:
        """Plain code that quantizes `network`, an expression; None if it takes qsched itself."""
        return None

    def library(self, module: str) -> ModuleType:
        """One of its `modules`, or of theirs, imported. Raises QuantizationError if it can't be.

        Its log is kept to errors from now on: bitsandbytes says at every call of an 8-bit layer
        that it calculates in float16.
        """
        top = module.partition(".")[0]
        logging.getLogger(top).setLevel(logging.ERROR)
        try:
            with quiet():
                return importlib.import_module(module)
        except ImportError as error:
            raise QuantizationError(
                f"quantization backend {self.name} can't be imported: {error}; {self.remedy}"
            ) from error

    @property
    def remedy(self) -> str:
        """The command that installs what it imports."""
        return "pip install " + (
            f"'qsched[{self.extra}]'" if self.extra else " ".join(self.packages)
        )


def backend_named(name: str) -> Backend:
    """The backend that a study file calls `name`. Raises QuantizationError if there is none."""
    found = BACKENDS.find(name)
    if found.rest:
        head = name.partition(":")[0]
        raise QuantizationError(f"quantization backend {name!r}; expected {head!r} alone")
    return _made(found)


def backends() -> Iterator[Backend]:
    """Those that are built in and those of installed packages, each made as it is asked for.

    One that can't be loaded is left out, with a warning: it may not be in anybody's way.
    """
    for name in BACKENDS.names():
        try:
            yield backend_named(name)
        except QuantizationError as error:
            _warn(str(error))


def origin_of(name: str) -> Origin | None:
    """Where the backend of this name comes from; None for those that are built in."""
    return BACKENDS.find(name).origin


def _made(found: Found) -> Backend:
    if not (isinstance(found.value, type) and issubclass(found.value, Backend)):
        raise QuantizationError(
            f"quantization backend {found.name!r} is {found.value!r}; expected a subclass of "
            f"{Backend.__module__}.Backend"
        )
    absent = [each for each in ("description", "schemes") if not getattr(found.value, each, None)]
    if absent:
        raise QuantizationError(
            f"quantization backend {found.name!r} has no {' and no '.join(absent)}; declare it in "
            "the class"
        )
    if not all(hasattr(scheme, "weight_bits") for scheme in found.value.schemes):
        raise QuantizationError(
            f"quantization backend {found.name!r}: schemes = {found.value.schemes!r}; expected "
            "(Scheme(name, weight_bits, activation_bits), ...)"
        )
    try:
        return found.value(found.name)
    except TypeError as error:
        raise QuantizationError(
            f"quantization backend {found.name!r} can't be made: {in_one_line(error)}"
        ) from error


@cache
def _warn(words: str) -> None:
    """Once a process."""
    logger.warning("%s; it is left out", words)
