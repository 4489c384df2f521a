"""Slots and leases: each transaction on both databases, and who may write after whom."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from qsched.errors import LeaseLost
from qsched.service.database import Database
from qsched.service.queue import FAILURES, LOSSES, Queue
from qsched.service.schema import Score, Slot
from qsched.service.storage import Storage

SCORE = Score(0, "tc", 1.5, 0.1)


@pytest.fixture
def queue(url: str) -> Queue:
    storage = Storage(url)
    record = storage.add_study("one", "{}", {"sampling.steps": 4}, budget=3)
    return Queue(storage.database, record.study)


def claim(queue: Queue, worker: str = "w", lease: float = 60.0) -> Slot:
    slot = queue.claim(worker, lease)
    assert slot is not None
    return slot


def test_slots_are_claimed_in_order_and_once(queue: Queue) -> None:
    claimed = [claim(queue, f"w{index}") for index in range(3)]
    assert [(slot.number, slot.attempt, slot.worker) for slot in claimed] == [
        (0, 1, "w0"),
        (1, 1, "w1"),
        (2, 1, "w2"),
    ]
    assert queue.claim("w4", 60) is None
    assert queue.counts() == {"waiting": 0, "running": 3, "finished": 0, "stopped": 0, "parked": 0}


def test_many_workers_at_once_claim_every_slot_once(url: str) -> None:
    storage = Storage(url)
    study = storage.add_study("many", "{}", {}, budget=60).study

    def work(worker: int) -> list[int]:
        own = Queue(Database(url), study)
        numbers = []
        while slot := own.claim(f"w{worker}", 60):
            numbers.append(slot.number)
            own.begin(slot, 60, vector=[1.0], trial=slot.number)
            own.finish(slot, 0.0)
        return numbers

    with ThreadPoolExecutor(6) as pool:
        claimed = [number for numbers in pool.map(work, range(6)) for number in numbers]
    assert sorted(claimed) == list(range(60))


def test_an_answer_that_was_lost_is_given_again(queue: Queue) -> None:
    """A worker holds one slot at a time: what it holds when it claims is what it never heard of."""
    first = claim(queue, "w")
    again = claim(queue, "w")
    assert (again.number, again.attempt) == (first.number, first.attempt + 1)


def test_nothing_but_the_identity_until_it_is_finished(queue: Queue) -> None:
    zero = queue.claim("w0", 60, barriers=lambda budget: (1,))
    assert zero is not None
    assert zero.number == 0
    assert queue.claim("w1", 60, barriers=lambda budget: (1,)) is None
    queue.finish(zero, 1.0)
    following = queue.claim("w1", 60, barriers=lambda budget: (1,))
    assert following is not None
    assert following.number == 1


def test_a_budget_grows_and_never_shrinks(queue: Queue) -> None:
    queue.grow(5)
    queue.grow(2)
    assert [slot.number for slot in queue.slots()] == [0, 1, 2, 3, 4]


def test_what_expired_is_free_again_and_its_former_owner_writes_nothing(queue: Queue) -> None:
    lost = claim(queue, "dead", lease=0.05)
    queue.begin(lost, 0.05, vector=[1.1, 0.9], trial=7)
    queue.record(lost, 0.05, [SCORE])
    time.sleep(0.1)
    slot = claim(queue, "living")
    assert (slot.number, slot.attempt) == (0, 2)
    assert (slot.vector, slot.trial) == ((1.1, 0.9), 7)
    writes: tuple[Callable[[], None], ...] = (
        lambda: queue.renew(lost, 60),
        lambda: queue.begin(lost, 60, vector=[9.0, 9.0], trial=9),
        lambda: queue.record(lost, 60, [Score(1, "tc", 9.9, 0.1)]),
        lambda: queue.finish(lost, 9.9),
    )
    for write in writes:
        with pytest.raises(LeaseLost, match="slot 0 went to another worker"):
            write()
    queue.release(lost)
    assert not queue.fail(lost, "too late")
    assert queue.scores(0) == [SCORE]
    now = queue.slot(0)
    assert (now.state, now.worker, now.value, now.vector) == ("running", "living", None, (1.1, 0.9))


def test_an_expired_lease_that_nobody_took_is_renewed(queue: Queue) -> None:
    slot = claim(queue, lease=0.05)
    time.sleep(0.1)
    queue.renew(slot, 60)
    other = claim(queue, "other")
    assert other.number == 1


def test_whoever_looks_returns_what_expired(queue: Queue) -> None:
    claim(queue, lease=0.05)
    time.sleep(0.1)
    assert queue.counts() == {"waiting": 3, "running": 0, "finished": 0, "stopped": 0, "parked": 0}
    assert queue.slot(0).worker is None


def test_a_slot_that_kills_its_workers_is_parked(queue: Queue) -> None:
    for attempt in range(LOSSES):
        assert claim(queue, f"w{attempt}", lease=-1).number == 0
    assert claim(queue, "last").number == 1
    parked = queue.slot(0)
    assert parked.state == "parked"
    assert "lost 10 times in a row" in (parked.reason or "")


def test_a_new_score_clears_the_losses(queue: Queue) -> None:
    for attempt in range(LOSSES + 5):
        slot = claim(queue, f"w{attempt}", lease=-1)
        assert slot.number == 0
        queue.record(slot, -1, [Score(attempt, "tc", 1.0, 0.1)])


def test_a_score_is_written_once_and_never_changed(queue: Queue) -> None:
    slot = claim(queue)
    queue.record(slot, 60, [SCORE])
    queue.record(slot, 60, [Score(0, "tc", 9.9, 0.1), Score(1, "tc", 2.0, 0.1)])
    assert queue.scores(0) == [SCORE, Score(1, "tc", 2.0, 0.1)]
    assert queue.effort() == pytest.approx((2, 0.2))


def test_finishing_twice_is_finishing_once(queue: Queue) -> None:
    slot = claim(queue)
    queue.begin(slot, 60, vector=[1.0, 1.0], trial=1)
    queue.finish(slot, 2.5)
    queue.finish(slot, 2.5)
    done, running = queue.news()
    assert running == []
    assert [(one.number, one.vector, one.value) for one in done] == [(0, (1.0, 1.0), 2.5)]
    assert queue.best() == queue.slot(0)
    assert abs(done[0].time - time.time()) < 60  # the database's clock, in seconds since 1970
    assert queue.news(done[0].time + 1) == ([], [])


def test_a_slot_is_parked_after_its_last_failure_and_freed_by_retry(queue: Queue) -> None:
    for attempt in range(FAILURES):
        slot = claim(queue)
        if not attempt:
            queue.begin(slot, 60, vector=[1.0], trial=5)
            queue.record(slot, 60, [SCORE])
        assert queue.fail(slot, f"reason {attempt}") == (attempt == FAILURES - 1)
    assert queue.reasons() == [(0, "reason 2")]
    assert claim(queue).number == 1
    assert queue.retry() == 1
    freed = queue.slot(0)
    assert (freed.state, freed.failures, freed.trial, freed.vector) == ("waiting", 0, None, (1.0,))
    assert queue.scores(0) == [SCORE]


def test_a_paused_study_gives_out_nothing(queue: Queue) -> None:
    storage = Storage(queue.database)
    storage.pause(queue.study, True)
    assert queue.claim("w", 60) is None
    storage.pause(queue.study, False)
    assert claim(queue).number == 0


def test_two_studies_do_not_see_each_other(queue: Queue) -> None:
    storage = Storage(queue.database)
    other = Queue(queue.database, storage.add_study("two", "{}", {}, budget=2).study)
    slot = claim(other)
    other.record(slot, 60, [SCORE])
    assert queue.counts()["running"] == 0
    assert queue.scores(0) == []
    storage.delete_study(other.study)
    assert storage.study_names() == ["one"]
    assert len(queue.slots()) == 3
