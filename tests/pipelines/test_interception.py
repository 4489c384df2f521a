"""Digests tell apart what differs; what is taken apart by image comes together again."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from qsched.pipelines.interception import (
    ApartError,
    UnknownValueError,
    apart,
    digest,
    joined,
    kept,
    network_rows,
    row_digests,
)


@dataclass
class Part:
    mask: object


class KeysAndValues:
    """Filled by whoever is given it; its repr is an address."""


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.zeros(2, 3), torch.zeros(3, 2)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
        (torch.arange(2000.0), torch.arange(2000.0).index_fill(0, torch.tensor([1000]), -1)),
        ([torch.zeros(2), torch.zeros(2)], [torch.zeros(4)]),
        ({"a": [1]}, {"a": (1,)}),
        (["ab", "c"], ["a", "bc"]),
        (1, True),
        (1, 1.0),
        (None, "None"),
        (Part(torch.zeros(2)), Part(torch.ones(2))),
    ],
)
def test_a_digest_tells_values_apart(one: Any, other: Any) -> None:
    assert digest([one]) == digest([one])
    assert digest([one]) != digest([other])


@pytest.mark.parametrize(
    "value", [KeysAndValues(), {"cache": [KeysAndValues()]}, Part(KeysAndValues()), lambda: 1]
)
def test_a_value_that_can_not_be_read_has_no_digest(value: Any) -> None:
    with pytest.raises(UnknownValueError):
        digest(value)


def batch(seeds: list[int]) -> dict[str, Any]:
    """A network's inputs for three images: a sample, lists, layers, and what they share."""
    rows = [torch.full((4, 2), float(seed)) for seed in seeds]
    stacked = torch.stack(rows)
    return {
        "sample": stacked,
        "captions": rows,
        "timestep": torch.tensor(0.5),
        "more": {"layers": torch.stack([stacked, stacked + 1])},
    }


def test_rows_are_known_by_what_is_theirs() -> None:
    plain = [{k: v for k, v in batch(seeds).items() if k != "more"} for seeds in ([1, 2, 3],) * 2]
    plain[1] = {k: v for k, v in batch([4, 2, 1]).items() if k != "more"}
    one, other = (row_digests(each, 3) for each in plain)
    assert (one[1], one[0]) == (other[1], other[2])
    assert one[2] not in other
    assert len(set(one)) == 3


def test_the_same_inputs_count_twice_where_a_network_perturbs_one_of_them() -> None:
    """(unconditional, conditional, perturbed) of two images: the last two are given the same."""
    rows = torch.tensor([[0.0], [0.0], [1.0], [2.0], [1.0], [2.0]])
    one = row_digests({"sample": rows}, 2)
    other = row_digests({"sample": rows[[1, 0, 3, 2, 5, 4]]}, 2)
    assert len(set(one[2:])) == 4
    assert other == [one[0], one[1], one[3], one[2], one[5], one[4]]


def test_layers_that_are_as_many_as_images_are_not_mistaken_for_them() -> None:
    """(2 layers, 2 images, 3): the first image's second layer enters its digest."""
    layers = torch.zeros(2, 2, 3)
    changed = layers.clone()
    changed[1, 0] = 1.0
    one, other = (
        row_digests({"sample": torch.zeros(2, 4), "layers": each}, 2) for each in (layers, changed)
    )
    assert one[0] != other[0]


def test_inputs_of_no_known_form_have_no_row_digests() -> None:
    with pytest.raises(UnknownValueError):
        row_digests({"tokens": torch.zeros(7, 4)}, 2)


def test_a_batch_is_taken_apart_by_what_an_image_alone_shows() -> None:
    """Tensors by any axis, lists by item; shared values stay whole."""

    def encode(values: list[float]) -> Any:
        rows = torch.tensor(values)[:, None].expand(-1, 2)
        return rows, rows[None].expand(3, -1, -1), list(rows), torch.zeros(2, 3), None, []

    together, alone = encode([1.0, 2.0]), [encode([1.0]), encode([2.0])]
    rows = apart(together, alone)
    again = joined([rows[1], rows[0], rows[1]])
    expected = encode([2.0, 1.0, 2.0])
    assert digest(again) == digest(expected)


@pytest.mark.parametrize(
    ("together", "alone"),
    [
        (torch.zeros(2, 5), [torch.zeros(1, 5), torch.zeros(1, 4)]),
        (torch.zeros(2, 5), [torch.zeros(1, 5), torch.ones(1, 5)]),
        (torch.zeros(4, 5), [torch.zeros(2, 5), torch.zeros(2, 5)]),
        ((torch.zeros(2, 5), torch.ones(2)), [(torch.zeros(1, 5), None)] * 2),
        ([torch.zeros(5), torch.zeros(5)], [[torch.zeros(5)], [torch.zeros(4)]]),
    ],
)
def test_a_batch_that_is_more_than_its_images_is_not_taken_apart(
    together: Any, alone: list[Any]
) -> None:
    """Padding, a dependence on neighbours, two rows an image, masks by chance."""
    with pytest.raises(ApartError):
        apart(together, alone)


@pytest.mark.parametrize("output", [(torch.rand(2, 3, 4),), ([torch.rand(3), torch.rand(3)],)])
def test_outputs_of_a_network_come_back_in_their_form(output: Any) -> None:
    first, second = network_rows(output, 2)
    assert digest(joined([first, second])) == digest(output)
    assert torch.equal(joined([second, first])[0][1], output[0][0])


def test_what_is_kept_is_a_copy() -> None:
    value = {"a": [torch.zeros(2)]}
    held = kept(value)
    joined([held])["a"][0].add_(1)
    value["a"][0].add_(1)
    assert torch.equal(joined([held])["a"][0], torch.zeros(2))
    with pytest.raises(UnknownValueError):
        kept([KeysAndValues()])
