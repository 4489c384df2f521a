"""The background of a worker: it renews the leases of the slots in hand and says it is alive."""

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType

from qsched.errors import LeaseLost, StorageError, StudyGone
from qsched.service.queue import Queue
from qsched.service.schema import Slot
from qsched.service.storage import Storage

TELL = 5.0
"""Seconds after which a worker that gets on says so."""

logger = logging.getLogger(__name__)


class Heartbeat:
    """Renews one worker's leases from a thread, a third of the lease apart.

        with Heartbeat(storage, queue, worker, lease=60) as heartbeat:
            with heartbeat.holding([slot]):
                ...

    A database that is away for longer than the lease is no harm in itself: when it is back the
    lease is renewed, unless another worker has claimed the slot. Then its number is in `lost`.
    """

    def __init__(self, storage: Storage, queue: Queue, worker: str, lease: float) -> None:
        self.storage = storage
        self.queue = queue
        self.worker = worker
        self.lease = lease
        self.images = 0
        self.seconds = 0.0
        self.lost: set[int] = set()
        self._told = 0.0
        self._slots: tuple[Slot, ...] = ()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="qsched-lease", daemon=True)

    def __enter__(self) -> "Heartbeat":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join(timeout=self.lease)

    @contextmanager
    def holding(self, slots: Sequence[Slot]) -> Iterator[None]:
        """The slots' leases are renewed while the context lasts, each until it is `let_go`."""
        self.lost = set()
        self._slots = tuple(slots)
        try:
            yield
        finally:
            self._slots = ()

    def let_go(self, slot: Slot) -> None:
        """A slot that is over, or somebody else's, is not renewed any more."""
        self._slots = tuple(each for each in self._slots if each.number != slot.number)

    def count(self, images: int, seconds: float) -> None:
        """Adds to the worker's work; the database hears of it every few seconds."""
        self.images += images
        self.seconds += seconds
        if time.monotonic() - self._told > TELL:
            self._told = time.monotonic()
            self.beat()

    def beat(self) -> None:
        """One renewal. A fault of the database is logged; the next beat tries again."""
        try:
            for slot in self._slots:
                if slot.number not in self.lost:
                    self._renew(slot)
            self.storage.seen(self.worker, self.images, self.seconds)
        except StudyGone:  # the worker's own next write says so
            pass
        except StorageError as error:
            logger.warning("%s", error)

    def _renew(self, slot: Slot) -> None:
        try:
            self.queue.renew(slot, self.lease)
        except LeaseLost as error:
            if slot in self._slots:  # not given back in the meantime
                self.lost.add(slot.number)
                logger.warning("%s", error)

    def _run(self) -> None:
        began = time.monotonic()
        while not self._ended.wait(self.lease / 3):
            late = time.monotonic() - began
            if late > self.lease:
                logger.info("the process stood still for %.0f s", late)
            self.beat()
            began = time.monotonic()
