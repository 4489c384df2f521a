"""The background of a worker: it renews the lease of the slot in hand and says it is alive."""

import logging
import threading
import time
from collections.abc import Iterator
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
            with heartbeat.holding(slot):
                ...

    A database that is away for longer than the lease is no harm in itself: when it is back the
    lease is renewed, unless another worker has claimed the slot. Then `lost` is true.
    """

    def __init__(self, storage: Storage, queue: Queue, worker: str, lease: float) -> None:
        self.storage = storage
        self.queue = queue
        self.worker = worker
        self.lease = lease
        self.images = 0
        self.seconds = 0.0
        self.lost = False
        self._told = 0.0
        self._slot: Slot | None = None
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
    def holding(self, slot: Slot) -> Iterator[None]:
        """The slot's lease is renewed while the context lasts."""
        self.lost = False
        self._slot = slot
        try:
            yield
        finally:
            self._slot = None

    def count(self, images: int, seconds: float) -> None:
        """Adds to the worker's work; the database hears of it every few seconds."""
        self.images += images
        self.seconds += seconds
        if time.monotonic() - self._told > TELL:
            self._told = time.monotonic()
            self.beat()

    def beat(self) -> None:
        """One renewal. A fault of the database is logged; the next beat tries again."""
        slot = self._slot
        try:
            if slot is not None and not self.lost:
                self.queue.renew(slot, self.lease)
            self.storage.seen(self.worker, self.images, self.seconds)
        except LeaseLost as error:
            if self._slot is slot:  # not given back in the meantime
                self.lost = True
                logger.warning("%s", error)
        except StudyGone:  # the worker's own next write says so
            pass
        except StorageError as error:
            logger.warning("%s", error)

    def _run(self) -> None:
        began = time.monotonic()
        while not self._ended.wait(self.lease / 3):
            late = time.monotonic() - began
            if late > self.lease:
                logger.info("the process stood still for %.0f s", late)
            self.beat()
            began = time.monotonic()
