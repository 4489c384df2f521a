"""What quantization covered of a network, in numbers and in one line. No torch."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from qsched.quantization.schemes import NONE, Scheme


@dataclass(frozen=True)
class QuantizedLayer:
    """One layer that was quantized: its dotted name, ``Linear`` or ``Conv2d``, and how."""

    name: str
    kind: str
    scheme: Scheme


@dataclass(frozen=True)
class LayerLeft:
    """One layer that is as it was, and why."""

    name: str
    kind: str
    reason: str


@dataclass(frozen=True)
class LayerFound:
    """One layer that came quantized, or as a class of somebody's own: `kind`, its class; `how`, the
    kind of its numbers."""

    name: str
    kind: str
    how: str


@dataclass(frozen=True)
class QuantizationReport:
    """What was done to a network's Linear and Conv2d layers, and to its size.

    `parameters`: all of the network's; `quantized_parameters`: those now quantized, which are
    weights and never biases. `bytes_before`: of all parameters in full precision, as they were
    loaded; `quantized_bytes_before`: of those now quantized. `bytes_nominal`: of all parameters,
    had each quantized weight just the scheme's bits, and its scales (float32 when simulated, else
    as they are held). `bytes_stored`: what is really held now, measured. `found`: under scheme none
    what was quantized before, by whomever; the sizes then are what is held.
    """

    scheme: Scheme
    backend: str
    group_size: int | None
    quantized: tuple[QuantizedLayer, ...]
    left: tuple[LayerLeft, ...]
    parameters: int
    quantized_parameters: int
    bytes_before: int
    quantized_bytes_before: int
    bytes_nominal: int
    bytes_stored: int
    found: tuple[LayerFound, ...] = ()

    @property
    def share(self) -> float:
        """Quantized parameters as a share of all, in [0, 1]."""
        return self.quantized_parameters / self.parameters

    @property
    def byte_share(self) -> float:
        """Bytes before of the quantized parameters as a share of all bytes before, in [0, 1]."""
        return self.quantized_bytes_before / self.bytes_before

    @property
    def nominal_bits(self) -> float:
        """Bits for each quantized weight at the scheme's width, scales included; 0 if none is."""
        return self._bits(self.bytes_nominal)

    @property
    def stored_bits(self) -> float:
        """Bits really held for each quantized weight, scales included; 0 if none is."""
        return self._bits(self.bytes_stored)

    def to_dict(self) -> dict[str, Any]:
        """All of it for JSON."""
        return asdict(self) | {
            "scheme": self.scheme.name,
            "quantized": [
                asdict(layer) | {"scheme": layer.scheme.name} for layer in self.quantized
            ],
            "left": [asdict(layer) for layer in self.left],
            "found": [asdict(layer) for layer in self.found],
            "share": self.share,
            "byte_share": self.byte_share,
            "nominal_bits": self.nominal_bits,
            "stored_bits": self.stored_bits,
        }

    def summary(self) -> str:
        """All of it in one line."""
        if self.found:
            listed = Counter(f"{layer.kind} ({layer.how})" for layer in self.found)
            came = ", ".join(f"{count} {words}" for words, count in listed.items())
            return f"none: as it came, quantized already: {came}; {_short(self.bytes_stored)}B"
        size = f"{_short(self.parameters)} parameters"
        if not self.quantized:
            why = f"; left alone: {self._left()}" if self.scheme != NONE else ""
            return (
                f"{self.scheme.name}: nothing quantized; {size}, {_short(self.bytes_before)}B{why}"
            )
        kinds = Counter(layer.kind for layer in self.quantized)
        others = Counter(
            layer.scheme.name for layer in self.quantized if layer.scheme != self.scheme
        )
        layers = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        exceptions = "".join(f", {count} of them {name}" for name, count in others.items())
        groups = f", groups of {self.group_size}" if self.group_size else ""
        return (
            f"{self.scheme.name} ({self.backend}{groups}): {self.share:.1%} of {size} and "
            f"{self.byte_share:.1%} of the bytes in {layers}{exceptions}; "
            f"{_short(self.bytes_before)}B -> {_short(self.bytes_nominal)}B nominal, "
            f"{_short(self.bytes_stored)}B stored ({self.nominal_bits:.1f} and "
            f"{self.stored_bits:.1f} bits a weight); left alone: {self._left()}"
        )

    def _left(self) -> str:
        """Layers by reason: ``conv_in, conv_out (first or last); a, b, c and 9 more (skipped)``."""
        reasons = dict.fromkeys(layer.reason for layer in self.left)
        return (
            "; ".join(
                f"{_some(layer.name for layer in self.left if layer.reason == reason)} ({reason})"
                for reason in reasons
            )
            or "nothing"
        )

    def _bits(self, total: int) -> float:
        if not self.quantized_parameters:
            return 0.0
        rest = self.bytes_before - self.quantized_bytes_before
        return 8 * (total - rest) / self.quantized_parameters


def _some(names: Iterable[str]) -> str:
    first, *rest = names
    listed = ", ".join((first, *rest[:2]))
    return listed if len(rest) <= 2 else f"{listed} and {len(rest) - 2} more"


def _short(number: int) -> str:
    """4600000 -> "4.6 M"; for counts and, with a B behind it, bytes."""
    for unit, factor in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= factor:
            return f"{number / factor:.1f} {unit}"
    return f"{number} "
