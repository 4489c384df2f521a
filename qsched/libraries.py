"""Other packages: which version is installed, and how to keep them from talking."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import PackageNotFoundError, version

_LOGGERS = (
    *("bitsandbytes", "diffusers", "open_clip", "optuna", "pyiqa", "timm", "torchao"),
    *("torch.utils._pytree", "transformers"),
)
_WITH_BARS = ("diffusers", "transformers")
_ROOTED = ("open_clip",)
"""Packages that log with the functions of `logging`, as the program itself would."""


def installed_version(package: str) -> str | None:
    """The installed version of a package, None where it is missing; nothing is imported."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@contextmanager
def quiet() -> Iterator[None]:
    """While the context lasts other packages log nothing but errors, warn of nothing and show no
    progress bars; afterwards they do as before.

    Imports none of them, and leaves the root logger alone. What they print is still printed.
    """
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        for package in _ROOTED:
            stack.enter_context(_own_logger(package))
        for name in _LOGGERS:
            stack.enter_context(_errors_only(logging.getLogger(name)))
        for package in _WITH_BARS:
            stack.enter_context(_no_bars(package))
        yield


@contextmanager
def _errors_only(logger: logging.Logger) -> Iterator[None]:
    before = logger.level
    if before >= logging.ERROR:
        yield
        return
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        if logger.level == logging.ERROR:  # else its package was imported here and set its own
            logger.setLevel(before)


@contextmanager
def _no_bars(package: str) -> Iterator[None]:
    """For packages whose `utils.logging` has a switch, as Hugging Face's have."""
    switch = sys.modules.get(f"{package}.utils.logging")
    if switch is None or not switch.is_progress_bar_enabled():
        yield
        return
    switch.disable_progress_bar()
    try:
        yield
    finally:
        switch.enable_progress_bar()


@contextmanager
def _own_logger(package: str) -> Iterator[None]:
    """A logger of the package's name takes the place of `logging` in its modules."""
    modules = [
        module
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] == package and vars(module).get("logging") is logging
    ]
    for module in modules:
        vars(module)["logging"] = logging.getLogger(package)
    try:
        yield
    finally:
        for module in modules:
            vars(module)["logging"] = logging
