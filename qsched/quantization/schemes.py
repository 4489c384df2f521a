"""Quantization schemes by name, and which backend has which. No torch: for checking study files.

w4a8        integers: 4 bits for weights, 8 for activations; any widths from 2 to 8
w4, w16a8   one of the two as it is
nf4, ...    what a backend declares under a name of its own
none        full precision
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from qsched.errors import QuantizationError
from qsched.quantization.backend import Backend, backend_named, backends

FULL = 16
"""The width that stands for "left as it is", whatever the network's own dtype."""

WIDTHS = (*range(2, 9), FULL)

FIRST_AND_LAST = (
    *("conv_in", "pos_embed.proj", "patch_embed.proj", "x_embedder", "x_embedder.proj"),
    *("img_in", "proj_in", "all_x_embedder.*", "embedding.1"),
    *("conv_out", "proj_out", "proj_out_2", "norm_out.linear_2", "final_layer.linear"),
    *("final_linear", "all_final_layer.*.linear", "clf.1"),
)
"""Patterns for the layers that take latents in and give them out, as diffusers' denoisers name
them. They are few and precious: in full precision unless a study says otherwise."""

SMALLEST_GROUP = 8
_INTEGERS = re.compile(r"w(\d{1,2})(?:a(\d{1,2}))?")


@dataclass(frozen=True)
class Scheme:
    """Bits of weights and activations, by a name such as ``w4a8``; 16 bits are left as they are."""

    name: str
    weight_bits: int
    activation_bits: int

    def __post_init__(self) -> None:
        for bits in (self.weight_bits, self.activation_bits):
            if bits not in WIDTHS:
                raise QuantizationError(
                    f"quantization scheme {self.name!r}: {bits} bits; expected 2 to 8, or {FULL} "
                    "for what is left as it is"
                )

    @classmethod
    def of_bits(cls, weight_bits: int, activation_bits: int) -> "Scheme":
        """Integers, under their shortest name: w4a8, or w4 if activations are left as they are."""
        activations = "" if activation_bits == FULL else f"a{activation_bits}"
        return cls(f"w{weight_bits}{activations}", weight_bits, activation_bits)

    @classmethod
    def parse(cls, name: str, backend: str | None = None) -> "Scheme":
        """The scheme of this name, under the shortest of its names: w4a16 is w4, fp16 is none.

        `backend`: a study's, whose names come first. Raises QuantizationError, which says what
        exists.
        """
        key = name.strip().lower()
        if key in ("none", "fp16"):
            return NONE
        if match := _INTEGERS.fullmatch(key):
            weight, activation = int(match[1]), int(match[2] or FULL)
            return NONE if weight == activation == FULL else cls.of_bits(weight, activation)
        named: dict[str, Scheme] = {}
        for each in (*([backend_named(backend)] if backend else []), *backends()):
            for scheme in each.schemes:
                if scheme.name.lower() == key:
                    return scheme
                if not _INTEGERS.fullmatch(scheme.name):
                    named.setdefault(scheme.name, scheme)
        raise QuantizationError(
            f"quantization scheme {name!r}; expected none, {', '.join(named)}, or bits from 2 to 8 "
            "such as w8a8, w4a8, w4a6, w4a4, w8, w4"
        )


NONE = Scheme("none", FULL, FULL)


def backend_for(scheme: str, backend: str | None) -> str:
    """The backend of a scheme: the one asked for, else the first that has it: simulated if it can.

    Raises QuantizationError for a name that is not known, and for a pair that does not exist, with
    the backend's schemes and the scheme's backends.
    """
    chosen = Scheme.parse(scheme, backend)
    if backend is None:
        return next(each.name for each in backends() if _has(each, chosen))
    found = backend_named(backend)
    if not _has(found, chosen):
        able = [each.name for each in backends() if _has(each, chosen)]
        raise QuantizationError(
            f"quantization scheme {chosen.name} with backend {backend}, which has {found.listed}; "
            f"{chosen.name} exists with {' and '.join(able)}"
        )
    return backend


def backend_to_hold(scheme: str) -> str:
    """The backend that a study template names: the first that holds what the scheme says and does
    not simulate it, else that of `backend_for`. Raises QuantizationError for an unknown scheme."""
    chosen = Scheme.parse(scheme)
    able = (each.name for each in backends() if chosen in each.schemes and not each.simulates)
    return next(able, None) or backend_for(scheme, None)


def group_size_for(scheme: str, backend: str, group_size: int | None) -> int | None:
    """How many weights of an output channel share a scale; None: all of them, or blocks of the
    backend's own. Raises QuantizationError for a size that the pair can't have.
    """
    if group_size is not None and group_size < SMALLEST_GROUP:
        raise QuantizationError(
            f"quantization group_size = {group_size}; expected at least {SMALLEST_GROUP} weights"
        )
    return backend_named(backend).group_size(Scheme.parse(scheme, backend), group_size)


def resolve(
    scheme: str, backend: str | None, overrides: Iterable[str] = (), group_size: int | None = None
) -> tuple[str, int | None]:
    """The one backend and the group size of a scheme and of the schemes of some layers.

    Raises QuantizationError as `backend_for` and `group_size_for` do.
    """
    names = [Scheme.parse(name, backend).name for name in (scheme, *overrides)]
    leading = next((name for name in names if name != NONE.name), NONE.name)
    chosen = backend_for(leading, backend)
    for name in names:
        backend_for(name, chosen)
    return chosen, group_size_for(leading, chosen, group_size)


def _has(backend: Backend, scheme: Scheme) -> bool:
    return scheme == NONE or scheme in backend.schemes
