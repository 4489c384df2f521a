"""A device that is too small for a batch gets smaller ones; how much was in use is a number."""

from collections.abc import Sequence
from itertools import chain

import pytest
import torch

from qsched.errors import GenerationError
from qsched.pipelines.devices import PeakMemory, in_batches


class Device:
    """Doubles numbers; has room for so many at once."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.sizes: list[int] = []

    def __call__(self, numbers: Sequence[int]) -> list[int]:
        if len(numbers) > self.room:
            raise torch.OutOfMemoryError
        self.sizes.append(len(numbers))
        return [2 * number for number in numbers]


def test_all_is_done_once_in_its_order() -> None:
    device = Device(room=4)
    made = list(in_batches(range(10), 4, device, doing="is doubled"))
    assert [*chain(*made)] == list(range(0, 20, 2))
    assert device.sizes == [4, 4, 2]
    assert list(in_batches([], 4, device, doing="is doubled")) == []


def test_out_of_memory_halves_this_batch_and_the_following() -> None:
    device, told = Device(room=3), list[int]()
    made = in_batches(range(10), 8, device, doing="is doubled", on_halved=told.append)
    assert [*chain(*made)] == list(range(0, 20, 2))
    assert told == [4, 2]
    assert device.sizes == [2] * 5


def test_what_was_done_before_is_not_done_again() -> None:
    device = Device(room=4)
    batches = in_batches(range(8), 4, device, doing="is doubled")
    assert next(batches) == [0, 2, 4, 6]
    device.room = 2
    assert [*batches] == [[8, 10], [12, 14]]


def test_one_that_is_too_much_is_an_error_in_words() -> None:
    with pytest.raises(GenerationError) as refused:
        list(in_batches(range(3), 4, Device(room=0), doing="is doubled"))
    words = str(refused.value)
    assert words.startswith("out of memory while one image is doubled; set execution.offload")
    assert "\n" not in words


def test_an_error_of_who_takes_the_results_is_not_ours() -> None:
    def taken() -> None:
        for _ in in_batches(range(8), 4, device, doing="is doubled"):
            raise torch.OutOfMemoryError

    device = Device(room=4)
    with pytest.raises(torch.OutOfMemoryError):
        taken()
    assert device.sizes == [4]


def test_peak_memory_is_a_number_of_gigabytes() -> None:
    assert 0.05 < PeakMemory(torch.device("cpu"))() < 100
