"""Other packages are quiet while we use them, and as they were afterwards."""

import logging
import sys
import types
import warnings

import pytest

from qsched.libraries import quiet


class Switch(types.ModuleType):
    """A package's switch for its progress bars, as Hugging Face's have one."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.bars = True

    def is_progress_bar_enabled(self) -> bool:
        return self.bars

    def enable_progress_bar(self) -> None:
        self.bars = True

    def disable_progress_bar(self) -> None:
        self.bars = False


def test_what_is_less_than_an_error_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    theirs, ours = logging.getLogger("timm.some.module"), logging.getLogger("qsched.test")
    with caplog.at_level(logging.INFO, logger="qsched"), quiet():
        theirs.warning("kernels are missing")
        theirs.error("broken")
        ours.info("ours")
        warnings.warn("old", FutureWarning, stacklevel=1)
    theirs.warning("heard again")
    assert caplog.messages == ["broken", "ours", "heard again"]


def test_a_level_that_a_package_sets_meanwhile_stays() -> None:
    """Optuna sets its own as it is imported."""
    logger = logging.getLogger("optuna")
    before = logger.level
    with quiet():
        logger.setLevel(logging.INFO)
    assert logger.level == logging.INFO
    logger.setLevel(before)


def test_bars_are_off_and_on_again(monkeypatch: pytest.MonkeyPatch) -> None:
    switch = Switch("diffusers.utils.logging")
    monkeypatch.setitem(sys.modules, switch.__name__, switch)
    with quiet():
        assert not switch.is_progress_bar_enabled()
    assert switch.is_progress_bar_enabled()
    switch.disable_progress_bar()
    with quiet():
        assert not switch.is_progress_bar_enabled()
    assert not switch.is_progress_bar_enabled()


def test_a_package_that_logs_as_the_program_does_gets_a_logger_of_its_own(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    factory = types.ModuleType("open_clip.factory")
    factory.__dict__["logging"] = logging
    monkeypatch.setitem(sys.modules, factory.__name__, factory)
    root = logging.getLogger()
    before = (root.level, list(root.handlers), list(root.filters))
    with quiet():
        factory.logging.warning("No pretrained weights loaded")
        assert (root.level, root.handlers, root.filters) == before
    assert factory.logging is logging
    assert not caplog.records
    assert (root.level, root.handlers, root.filters) == before


def test_all_is_put_back_after_a_failure() -> None:
    logger = logging.getLogger("diffusers")
    before = logger.level
    with pytest.raises(KeyError), quiet():
        raise KeyError
    assert logger.level == before
