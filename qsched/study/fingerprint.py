"""What a study's values depend on, and how two studies differ in it."""

from collections.abc import Mapping
from typing import Any

LIBRARIES = (
    "torch",
    "diffusers",
    "transformers",
    "open_clip_torch",
    "optuna",
    "numpy",
    "pyiqa",
    "textblob",
    "timm",
    "torchao",
    "bitsandbytes",
    "peft",
)
"""Packages whose version can change a score or a proposal."""


def differences(stored: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, str]:
    """{key in which two fingerprints differ: both values in words}."""
    return {
        key: f"{key}: the study has {stored.get(key)!r}, now it is {current.get(key)!r}"
        for key in sorted(stored.keys() | current.keys())
        if stored.get(key) != current.get(key)
    }
