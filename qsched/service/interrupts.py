"""How a worker is asked to stop: SIGTERM or Ctrl-C, then the end of its grace or another Ctrl-C."""

import logging
import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

logger = logging.getLogger(__name__)

AGAIN = 0.01
"""Seconds until an interrupt that Python dropped is raised again."""


class GraceOver(BaseException):
    """The trial in hand took longer than the grace; its slot is released."""


class Interrupts:
    """Whether a worker is asked to stop, and how much time it has left.

    `grace`: seconds from the first request until `GraceOver` is raised; with 0 the batch in hand
    may take its time.
    """

    def __init__(self, grace: float) -> None:
        self.asked = False
        self._grace = grace
        self._stop_by = math.inf
        self._reason: type[BaseException] = GraceOver

    def time_for(self, seconds: float) -> bool:
        """Whether so much time is left."""
        return not self.asked or time.monotonic() + seconds < self._stop_by

    @contextmanager
    def handled(self) -> Iterator[None]:
        """SIGTERM and the first SIGINT set a flag, read between batches, and start the grace;
        when it is over, or at a second SIGINT, the trial in hand is given up and its slot released.

        A handler that did more could run between any two instructions of a transaction; even so,
        what it interrupts is rolled back. Python drops what is raised while it runs a finalizer
        or a callback of its own: then it is raised again a moment later.
        """
        drop = sys.unraisablehook

        def dropped(unraisable: "sys.UnraisableHookArgs") -> None:
            if self.asked and isinstance(unraisable.exc_value, self._reason):
                signal.setitimer(signal.ITIMER_REAL, AGAIN)
            else:
                drop(unraisable)

        handlers = {
            signal.SIGINT: self._ask,
            signal.SIGTERM: self._ask,
            signal.SIGALRM: self._give_up,
        }
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        sys.unraisablehook = dropped
        try:
            yield
        except GraceOver:
            logger.warning("the grace of %.0f s is over", self._grace)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in before.items():
                signal.signal(number, handler)
            sys.unraisablehook = drop

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            self._reason = KeyboardInterrupt
            raise KeyboardInterrupt
        if not self.asked:
            self.asked = True
            self._stop_by = time.monotonic() + self._grace
            if self._grace:
                signal.setitimer(signal.ITIMER_REAL, self._grace)

    def _give_up(self, number: int, frame: FrameType | None) -> None:
        raise self._reason
