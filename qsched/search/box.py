"""What a sampler goes by: the trials of a study, and the box that it searches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qsched.schedule.parametrisations import Bounds, Parametrisation
from qsched.seeds import stable_seed

Vector = tuple[float, ...]
Array = NDArray[np.float64]
Trial = tuple[int, Vector, float]
"""A finished trial: slot, vector and value."""


@dataclass(frozen=True)
class Proposal:
    """What a slot tries: a vector on some `prompts`, by index, or on all (None).

    `origin`: the slot that tried the vector first, whose scores this one goes on from.
    """

    vector: Vector
    prompts: tuple[int, ...] | None = None
    origin: int | None = None


@dataclass
class History:
    """What a study has tried: the `finished` trials in the order of their ends, and the vectors
    of the slots that are `running`.

    Samplers that know prompts have the `scores` of the finished slots too, {slot: {prompt: value}},
    and the `prompts` of the running ones, where those are not all.
    """

    finished: list[Trial] = field(default_factory=list)
    running: dict[int, Vector] = field(default_factory=dict)
    scores: dict[int, Mapping[int, float]] = field(default_factory=dict)
    prompts: dict[int, tuple[int, ...]] = field(default_factory=dict)


class Box:
    """The box that is searched, and the seeds of its slots; `bounds` are those of c_eps and c_x."""

    def __init__(self, space: Parametrisation, bounds: Bounds, seed: int) -> None:
        self.space = space
        self.bounds = bounds
        self.seed = seed
        self._low, self._high = np.array(space.box(bounds)).T
        self.identity = self.to_unit(space.identity)
        self._pins = {space.names.index(name): v for name, v in space.pinned.items()}
        self._free = [axis for axis in range(space.dimension) if axis not in self._pins]
        self.origin: Array = self.identity[self._free]

    def to_unit(self, vector: Sequence[float]) -> Array:
        """A vector in [0, 1]^d."""
        unit: Array = (np.asarray(vector, dtype=float) - self._low) / (self._high - self._low)
        return unit

    def from_unit(self, unit: Array) -> Vector:
        """The inverse of `to_unit`, never outside the box, with what the space pins."""
        low, high = self._low, self._high
        vector = list(map(float, np.clip(low + unit * (high - low), low, high)))
        for index, value in self._pins.items():
            vector[index] = value
        return tuple(vector)

    def searched(self, vector: Sequence[float]) -> Array:
        """A vector's numbers that are searched, without what the space pins, in [0, 1] each;
        `origin` is the identity's."""
        return self.to_unit(vector)[self._free]

    def place(self, searched: Array) -> Vector:
        """The inverse of `searched`."""
        unit = self.identity.copy()
        unit[self._free] = searched
        return self.from_unit(unit)

    def slot_seed(self, slot: int, purpose: str = "sampler") -> int:
        """The seed of a slot, for 32 bits."""
        return stable_seed(purpose, self.seed, slot) % 2**32

    def rng(self, slot: int, purpose: str = "sampler") -> np.random.Generator:
        """Random numbers of a slot."""
        return np.random.default_rng(self.slot_seed(slot, purpose))

    def sobol(self, slot: int) -> Array:
        """Point `slot` of a scrambled Sobol sequence in [0, 1]^d, seeded by the study."""
        from scipy.stats.qmc import Sobol

        engine = Sobol(self.space.dimension, scramble=True, rng=self.slot_seed(0, "sobol"))
        point: Array = engine.fast_forward(slot).random(1)[0]
        return point

    def design(self, slot: int) -> Vector:
        """A quasi-random point around the identity: of odd slots within half the box."""
        reach = 0.5 if slot % 2 else 1.0
        offset = 2 * self.sobol(slot) - 1
        room = np.where(offset < 0, self.identity, 1 - self.identity)
        return self.from_unit(self.identity + reach * offset * room)

    def near(self, vector: Vector, rng: np.random.Generator, spread: float) -> Vector:
        """A point close by: `spread` is the standard deviation, in shares of the box."""
        unit = np.abs(self.to_unit(vector) + rng.normal(0, spread, self.space.dimension))
        return self.from_unit(np.where(unit > 1, 2 - unit, unit))  # reflected at the bounds

    def beside(self, vector: Vector, taken: set[Vector], slot: int) -> Vector:
        """`vector`, or a point close by if it is taken."""
        rng = self.rng(slot, "beside")
        while vector in taken:
            vector = self.near(vector, rng, 0.02)
        return vector
