"""Quantization schemes by name, and which backend has which. No torch: for checking study files.

w4a8        integers: 4 bits for weights, 8 for activations; any widths from 2 to 8
w4, w16a8   one of the two as it is
nf4, fp4    4-bit weights on bitsandbytes' normal or floating-point levels
int8        LLM.int8 (Dettmers et al. 2022): 8-bit both, but outlying inputs in 16 bits
none        full precision
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from qsched.errors import QuantizationError

FULL = 16
"""The width that stands for "left as it is", whatever the network's own dtype."""

BACKENDS = ("simulated", "torchao", "bitsandbytes")
"""`simulated` rounds and calculates in floating point; the others hold and run real integers."""

FIRST_AND_LAST = (
    *("conv_in", "pos_embed.proj", "patch_embed.proj", "x_embedder", "x_embedder.proj"),
    *("img_in", "proj_in", "all_x_embedder.*", "embedding.1"),
    *("conv_out", "proj_out", "proj_out_2", "norm_out.linear_2", "final_layer.linear"),
    *("final_linear", "all_final_layer.*.linear", "clf.1"),
)
"""Patterns for the layers that take latents in and give them out, as diffusers' denoisers name
them. They are few and precious: in full precision unless a study says otherwise."""

SMALLEST_GROUP = 8
_OWN: Mapping[str, tuple[str, ...]] = {
    "torchao": ("w8a8", "w4a8", "w8", "w4"),
    "bitsandbytes": ("nf4", "fp4", "int8"),
}
_INTEGERS = re.compile(r"w(\d{1,2})(?:a(\d{1,2}))?")
_WIDTHS = (*range(2, 9), FULL)
_WHICH = "none, nf4, fp4, int8, or bits from 2 to 8 such as w8a8, w4a8, w4a6, w4a4, w8, w4"


@dataclass(frozen=True)
class Scheme:
    """Bits of weights and activations, by a name such as ``w4a8``; 16 bits are left as they are."""

    name: str
    weight_bits: int
    activation_bits: int

    def __post_init__(self) -> None:
        for bits in (self.weight_bits, self.activation_bits):
            if bits not in _WIDTHS:
                raise QuantizationError(
                    f"quantization scheme {self.name!r}: {bits} bits; expected 2 to 8, or {FULL} "
                    "for what is left as it is"
                )

    @classmethod
    def parse(cls, name: str) -> "Scheme":
        """The scheme of this name, under the shortest of its names: w4a16 is w4, fp16 is none.

        Raises QuantizationError, which says what exists.
        """
        key = name.strip().lower()
        if key in _NAMED:
            return _NAMED[key]
        match = _INTEGERS.fullmatch(key)
        if match is None:
            raise QuantizationError(f"quantization scheme {name!r}; expected {_WHICH}")
        weight, activation = int(match[1]), int(match[2] or FULL)
        if weight == activation == FULL:
            return NONE
        short = f"w{weight}" if activation == FULL else f"w{weight}a{activation}"
        return cls(short, weight, activation)


NONE = Scheme("none", FULL, FULL)
_NAMED: Mapping[str, Scheme] = {
    "none": NONE,
    "fp16": NONE,
    "nf4": Scheme("nf4", 4, FULL),
    "fp4": Scheme("fp4", 4, FULL),
    "int8": Scheme("int8", 8, 8),
}


def backend_for(scheme: str, backend: str | None) -> str:
    """The backend of a scheme: the one asked for, else bitsandbytes for its own, else simulated.

    Raises QuantizationError for a name that is not known, and for a pair that does not exist, with
    the backend's schemes and the scheme's backends.
    """
    name = Scheme.parse(scheme).name
    if backend is not None and backend not in BACKENDS:
        raise QuantizationError(
            f"quantization backend {backend!r}; expected one of {', '.join(BACKENDS)}"
        )
    able = [other for other in BACKENDS if _has(other, name)]
    if backend is None:
        return able[0]
    if backend not in able:
        own = ", ".join(_OWN.get(backend, ("w2 to w8, w2a2 to w8a8",)))
        raise QuantizationError(
            f"quantization scheme {name} with backend {backend}, which has {own}; "
            f"{name} exists with {' and '.join(able)}"
        )
    return backend


def group_size_for(scheme: str, backend: str, group_size: int | None) -> int | None:
    """How many weights of an output channel share a scale; None: all of them, or blocks of the
    backend's own. torchao's 4-bit weights come in groups of 32 unless another size is asked for.

    Raises QuantizationError for a size that the pair can't have.
    """
    chosen = Scheme.parse(scheme)
    grouped = backend == "simulated" or (backend == "torchao" and chosen.weight_bits != 8)
    if group_size is None:
        return 32 if backend == "torchao" and chosen.weight_bits == 4 else None
    if group_size < SMALLEST_GROUP:
        raise QuantizationError(
            f"quantization group_size = {group_size}; expected at least {SMALLEST_GROUP} weights"
        )
    if not grouped:
        what = "blocks of 64 weights" if backend == "bitsandbytes" else "a scale for each channel"
        raise QuantizationError(
            f"quantization group_size = {group_size}; {chosen.name} with backend {backend} has "
            f"{what}; leave group_size out"
        )
    return group_size


def resolve(
    scheme: str, backend: str | None, overrides: Iterable[str] = (), group_size: int | None = None
) -> tuple[str, int | None]:
    """The one backend and the group size of a scheme and of the schemes of some layers.

    Raises QuantizationError as `backend_for` and `group_size_for` do.
    """
    names = [Scheme.parse(name).name for name in (scheme, *overrides)]
    leading = next((name for name in names if name != NONE.name), NONE.name)
    chosen = backend_for(leading, backend)
    for name in names:
        backend_for(name, chosen)
    return chosen, group_size_for(leading, chosen, group_size)


def _has(backend: str, name: str) -> bool:
    if name == NONE.name:
        return True
    if backend == "simulated":
        return name not in _OWN["bitsandbytes"]
    return name in _OWN[backend]


def packages_of_backend(scheme: str, backend: str | None) -> tuple[str, ...]:
    """The distributions that a scheme's backend calculates with."""
    found = backend_for(scheme, backend)
    return () if found == "simulated" else (found,)
