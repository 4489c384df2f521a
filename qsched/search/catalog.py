"""The samplers that are known by name, declared. Nothing heavy is imported here.

check_sampler("nevergrad:DE")        # "nevergrad:DE"
resolved("auto", dimension=2)        # "gp"
"""

import difflib
from collections.abc import Mapping
from types import MappingProxyType

from qsched.errors import ConfigError

NEVERGRAD: tuple[str, ...] = (
    "CMA", "DiagonalCMA", "DE", "TwoPointsDE", "PSO", "RealSpacePSO",
    "OnePlusOne", "CauchyOnePlusOne", "TBPSA", "NaiveTBPSA",
)  # fmt: skip
"""Nevergrad's optimizers that a fresh process rebuilds exactly from the stored trials."""

SAMPLERS: Mapping[str, str] = MappingProxyType(
    {
        "auto": "the one that the benchmark found best for the number of parameters",
        "prompts": "a few prompts a trial, a Gaussian process over vectors and prompts, the gauge",
        "gp": "Gaussian process, log expected improvement (Optuna)",
        "tpe": "tree-structured Parzen estimator, multivariate (Optuna)",
        "cmaes": "CMA-ES around the identity, a generation per population of finished trials",
        "qmc": "scrambled Sobol sequence",
        "random": "uniform",
        "grid": "the official grid over the box, two parameters only",
        **{f"nevergrad:{name}": f"Nevergrad's {name}" for name in NEVERGRAD},
    }
)
"""{name: what it is}, every sampler that a study file may name."""

BLIND = ("random", "qmc", "grid")
"""Those that no result changes."""

PROMPTS = "prompts"
"""The sampler that knows which prompts a trial has scored."""

AUTO: tuple[tuple[int, str], ...] = ((32, PROMPTS), (1_000_000, "cmaes"))
"""(largest dimension, sampler): what `auto` stands for, the first row that fits."""

BEFORE: tuple[tuple[int, str], ...] = ((32, "gp"), (1_000_000, "cmaes"))
"""What it stood for in 0.1, which stored the word itself."""

_REFUSED = {
    "NGOpt": "fails with numpy 2",
    "MetaModel": "fails with numpy 2",
    "NgIohTuned": "fails with numpy 2",
    "Cobyla": "can't propose to several workers at once",
}


def check_sampler(name: str) -> str:
    """`name`, if it is a sampler's; raises ConfigError with those that exist."""
    if name in SAMPLERS:
        return name
    family, _, optimizer = name.partition(":")
    if family == "nevergrad":
        return f"nevergrad:{check_optimizer(optimizer)}"
    plain = [known for known in SAMPLERS if ":" not in known]
    near = difflib.get_close_matches(name.lower(), SAMPLERS, n=1)
    raise ConfigError(
        f"{name!r} is no sampler; expected {', '.join(plain)} or nevergrad:<optimizer>; "
        + (f"did you mean {near[0]!r}?" if near else "leave it out for 'auto'")
    )


def check_optimizer(name: str) -> str:
    """`name`, if it is a supported optimizer of Nevergrad; raises ConfigError with those."""
    if name in NEVERGRAD:
        return name
    reason = _REFUSED.get(name, "isn't known to be rebuilt exactly from the stored trials")
    near = difflib.get_close_matches(name, NEVERGRAD, n=1)
    raise ConfigError(
        f"Nevergrad's {name!r} {reason}; expected one of {', '.join(NEVERGRAD)}; "
        f"use {near[0] if near else NEVERGRAD[0]!r}"
    )


def resolved(name: str, dimension: int, auto: tuple[tuple[int, str], ...] = AUTO) -> str:
    """What `name` stands for in a space of `dimension` numbers: itself, unless it is `auto`.

    Raises ConfigError for a sampler that doesn't exist, or not for that dimension.
    """
    if check_sampler(name) == "auto":
        return next(sampler for largest, sampler in auto if dimension <= largest)
    if name == "grid" and dimension != 2:
        raise ConfigError(
            f"sampler 'grid' in {dimension} dimensions; expected 2; set search.parametrisation to "
            "'constant' or 'ramp', or search.sampler to 'qmc'"
        )
    return name


def packages_of_sampler(name: str, dimension: int) -> tuple[str, ...]:
    """The distributions whose versions decide what a sampler proposes."""
    found = resolved(name, dimension)
    if found == "cmaes":
        return ("cmaes", "numpy")
    if found == PROMPTS:
        return ("numpy", "scipy")
    if found.startswith("nevergrad:"):
        return ("nevergrad", "numpy")
    models = ("optuna", "torch") if found == "gp" else ("optuna",)
    return (*models, "numpy", "scipy") if found not in ("random",) else ("numpy",)
