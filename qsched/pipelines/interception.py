"""What passes through the parts of a pipeline: recognised, taken apart by image, put together.

`generator` replaces a pipeline's methods for a while and keeps what they return, in the computer's
memory. Values may be nested: tensors, lists, tuples, mappings and dataclasses of them.
"""

import dataclasses
import enum
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qsched.errors import QschedError

ATOMS = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)
"""What is told apart by its class and its `repr`, exactly."""

ROUNDING = 0.05
"""How far, in its norm, a tensor of a batch may be from the one of its image alone: other kernels
round otherwise, sixteen-bit encoders by a percent or so. Pixels are compared by the self-test."""


class UnknownValueError(Exception):
    """A value that can't be read exactly, or that may have side effects: nothing is kept of it."""


class ApartError(QschedError):
    """A batch's value isn't the values of its images beside each other."""


def digest(value: Any) -> bytes:
    """A digest of all that a nested value holds, classes, dtypes and shapes included.

    Raises UnknownValueError for a leaf whose content can't be read, such as a cache of keys and
    values.
    """
    found = hashlib.blake2b(digest_size=20)
    _feed(found, value)
    return found.digest()


def _feed(found: Any, value: Any) -> None:
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, Tensor):
        found.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
        found.update(_bytes(value).numpy().data)
    elif type(value) in ATOMS or isinstance(value, enum.Enum):
        said = repr(value).encode()
        found.update(f"{name}:{len(said)}=".encode() + said)
    elif isinstance(value, list | tuple):
        found.update(f"{name}:{len(value)}[".encode())
        for item in value:
            _feed(found, item)
    elif isinstance(value, Mapping):
        found.update(f"{name}:{len(value)}[".encode())
        for key, item in value.items():
            _feed(found, key)
            _feed(found, item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        if getattr(value, "__dict__", fields).keys() - fields.keys():
            raise UnknownValueError(name)
        found.update(f"{name};".encode())
        _feed(found, fields)
    else:
        raise UnknownValueError(name)


def _bytes(tensor: Tensor) -> Tensor:
    """The memory of a tensor as uint8 on the CPU, (n,)."""
    _require_plain(tensor)
    plain = tensor.detach().resolve_conj().resolve_neg().reshape(-1).cpu()
    # A copy, since a single expanded element has stride 0 and yet counts as contiguous.
    return plain.clone(memory_format=torch.contiguous_format).view(torch.uint8)


def row_digests(arguments: Mapping[str, Any], images: int) -> list[bytes]:
    """A digest of a network's inputs for each row of its batch.

    The first tensor, or list of tensors, is the sample; its length is the number of rows, a
    multiple of `images` (twice as many under classifier-free guidance). Which of these runs over
    the images a row is in counts: a network may treat one differently, as perturbed attention
    guidance does. Tensors of that length, and lists of so many tensors, count row by row; all else
    counts for every row, and so does what has that length by another axis too, where it can't be
    told which one is the batch's. Raises UnknownValueError for inputs of another form.
    """
    leaves = list(_leaves(arguments, ""))
    count = next((_length(value) for _, value in leaves if _length(value)), 0)
    if not count or count % images:
        raise UnknownValueError("the sample")
    by_row: list[tuple[str, Any]] = []
    shared: list[tuple[str, Any]] = []
    for name, value in leaves:
        if _length(value) != count:
            shared.append((name, value))
            continue
        if by_row and {count, images} & set(_other_axes(value)):
            shared.append((name, value))
        by_row.append((name, value))
    common = digest(shared)
    return [
        digest((common, row // images, [(name, value[row]) for name, value in by_row]))
        for row in range(count)
    ]


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """What nested arguments hold, such as SDXL's added_cond_kwargs, with its path; lists of tensors
    in one piece."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}")
        yield name, tuple(value)
    else:
        yield name, value


def _length(value: Any) -> int:
    """The length of a tensor or of a list of tensors; 0 for anything else."""
    if isinstance(value, Tensor):
        return len(value) if value.ndim else 0
    if isinstance(value, list | tuple) and all(isinstance(item, Tensor) for item in value):
        return len(value)
    return 0


def _other_axes(value: Any) -> tuple[int, ...]:
    """The lengths of a tensor but for its first axis; those of a list's tensors."""
    if isinstance(value, Tensor):
        return tuple(value.shape[1:])
    return tuple(length for item in value for length in item.shape)


@dataclass(frozen=True)
class _Share:
    """A tensor on the CPU and the device it belongs to. `axis`: the batch's, along which images are
    put together; None for what all images share."""

    tensor: Tensor
    device: torch.device
    axis: int | None = None


@dataclass(frozen=True)
class _Item:
    """An image's place in a list with one item for each image."""

    kept: Any


def kept(value: Any) -> Any:
    """A nested value's copy in the computer's memory, for `joined`.

    Raises UnknownValueError for what can't be copied exactly.
    """
    if isinstance(value, Tensor):
        _require_plain(value)
        return _Share(value.detach().to("cpu", copy=True), value.device)
    if type(value) in ATOMS:
        return value
    if type(value) in (list, tuple):
        return type(value)(kept(item) for item in value)
    if type(value) is dict:
        return {key: kept(item) for key, item in value.items()}
    raise UnknownValueError(type(value).__name__)


def _require_plain(tensor: Tensor) -> None:
    """Raises UnknownValueError for a tensor that holds more than it shows."""
    if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.layout is not torch.strided:
        raise UnknownValueError(type(tensor).__name__)


def apart(together: Any, alone: Sequence[Any]) -> list[Any]:
    """A batch's value taken apart by image, for `joined`.

    `alone`: the same of each image alone, which shows what belongs to an image: the axis whose
    length is 1 there, or the list that has one item. Raises ApartError where these are not the
    batch's parts, as where captions are padded to the longest, UnknownValueError for what can't be
    kept.
    """
    images = range(len(alone))
    if isinstance(together, Tensor) and all(isinstance(one, Tensor) for one in alone):
        return _tensor_apart(together, alone)
    if type(together) in (list, tuple) and all(type(one) is type(together) for one in alone):
        lengths = {len(one) for one in alone}
        if lengths == {len(together)}:
            columns = [apart(each, [one[k] for one in alone]) for k, each in enumerate(together)]
            return [type(together)(column[index] for column in columns) for index in images]
        if lengths == {1} and len(together) == len(alone) and type(together) is list:
            _require_alike([one[0] for one in alone], together)
            return [[_Item(kept(each))] for each in together]
    if type(together) is dict and all(
        type(one) is dict and one.keys() == together.keys() for one in alone
    ):
        found = {key: apart(each, [one[key] for one in alone]) for key, each in together.items()}
        return [{key: column[index] for key, column in found.items()} for index in images]
    if isinstance(together, Tensor) or any(digest(one) != digest(together) for one in alone):
        raise ApartError("a part of them is there or not with their neighbours")
    return [kept(together) for _ in images]


def _tensor_apart(together: Tensor, alone: Sequence[Tensor]) -> list[_Share]:
    _require_plain(together)
    shape, count = alone[0].shape, len(alone)
    if any(one.shape != shape for one in alone):
        raise ApartError("they differ in length")
    if together.shape == shape:
        if not all(torch.equal(one, together) for one in alone):
            raise ApartError("they don't add up to those of a batch")
        return [kept(together)] * count
    axes = [
        axis
        for axis, length in enumerate(shape)
        if length == 1 and together.shape == (*shape[:axis], count, *shape[axis + 1 :])
    ]
    if len(axes) != 1:
        raise ApartError("they don't add up to those of a batch")
    rows = torch.split(together.detach(), 1, dim=axes[0])
    _require_alike(alone, rows)
    return [_Share(row.to("cpu", copy=True), together.device, axes[0]) for row in rows]


def _require_alike(alone: Sequence[Any], rows: Sequence[Any]) -> None:
    """Raises ApartError for tensors that differ by more than rounding, or among each other in
    shape."""
    for one, row in zip(alone, rows, strict=True):
        if not isinstance(one, Tensor) or not isinstance(row, Tensor):
            raise ApartError("they are lists of lists")
        if one.shape != rows[0].shape or row.shape != one.shape or row.dtype != one.dtype:
            raise ApartError("they differ in length")
        if not one.is_floating_point():
            same = torch.equal(one, row)
        else:
            size, error = one.float().norm().item(), (one.float() - row.float()).norm().item()
            same = math.isfinite(size) and error <= ROUNDING * size
        if not same:
            raise ApartError("they depend on their neighbours")


def joined(rows: Sequence[Any]) -> Any:
    """What `apart` took apart, for other images in another order; what `kept` kept of a whole, as
    the only row. A fresh copy, each tensor on its device."""
    first = rows[0]
    if isinstance(first, _Share):
        if first.axis is None:
            return first.tensor.to(first.device, copy=True)
        return torch.cat([row.tensor for row in rows], dim=first.axis).to(first.device)
    if isinstance(first, list) and len(first) == 1 and isinstance(first[0], _Item):
        return [joined([row[0].kept]) for row in rows]
    if isinstance(first, list | tuple):
        return type(first)(joined([row[k] for row in rows]) for k in range(len(first)))
    if isinstance(first, dict):
        return {key: joined([row[key] for row in rows]) for key in first}
    return first


def network_rows(output: Any, count: int) -> list[Any]:
    """What a network returned as its only value, a tensor of `count` rows or a list of so many
    tensors, row by row for `joined`. Raises UnknownValueError for other outputs."""
    if type(output) is not tuple or len(output) != 1 or _length(output[0]) != count:
        raise UnknownValueError("the network's output")
    if isinstance(output[0], Tensor):
        _require_plain(output[0])
        return [
            (_Share(row.to("cpu", copy=True), output[0].device, 0),)
            for row in torch.split(output[0].detach(), 1)
        ]
    return [([_Item(kept(row))],) for row in output[0]]


@contextmanager
def replaced(owner: object, name: str, replacement: Callable[..., Any]) -> Iterator[None]:
    """An instance's method replaced for a while; an earlier replacement is put back."""
    own = vars(owner)
    before = own.get(name)
    object.__setattr__(owner, name, replacement)
    try:
        yield
    finally:
        if before is None:
            object.__delattr__(owner, name)
        else:
            object.__setattr__(owner, name, before)
