"""How a budget is spent by the sampler `prompts`: which trials score how many prompts."""

from bisect import bisect_right
from dataclasses import dataclass

PER_TRIAL = 4
"""Prompts that a trial scores, where the study says nothing else."""

GAUGE_PROMPTS = 2
"""Prompts that the gauge is measured on."""

IMAGES = 800
TRIALS = 48
"""The budgets of a study that names none: images of the sampler `prompts`, trials of any other."""


@dataclass(frozen=True)
class Plan:
    """The prompts of a study's trials: `per_trial` of a `pool`.

    The identity has the whole pool. The last trials of a budget go on with vectors that were tried:
    two of them have half of the pool in the end, and one of those all.
    """

    pool: int
    per_trial: int

    def last(self, budget: int) -> tuple[int, ...]:
        """How many prompts each of the last trials has in the end; fewer trials where the budget is
        small."""
        sizes = (self.pool // 2, self.pool // 2, self.pool)
        larger = [size for size in sizes if size > self.per_trial]
        return tuple(larger[-max(1, (budget - 1) // 4) :]) if budget > 1 else ()

    def before(self, size: int, budget: int) -> int:
        """How many prompts a vector has before one of the last trials brings it to `size`."""
        return max((each for each in self.last(budget) if each < size), default=self.per_trial)

    def barriers(self, budget: int) -> tuple[int, ...]:
        """The slots that begin when all slots before them are done: the first after the identity,
        and the first of each round of the last trials."""
        last = self.last(budget)
        first = budget - len(last)
        rounds = [first + at for at, size in enumerate(last) if at == 0 or size != last[at - 1]]
        return tuple(dict.fromkeys((1, *rounds))) if budget > 1 else ()

    def images(self, budget: int) -> int:
        """The images of so many trials."""
        each, last = min(self.per_trial, self.pool), self.last(budget)
        again = sum(size - self.before(size, budget) for size in last)
        return self.pool + (budget - 1 - len(last)) * each + again

    def trials(self, images: int) -> int:
        """The most trials that take no more than so many images; 0 where one of them is too many,
        the identity's."""
        return bisect_right(range(1, images + 2), images, key=self.images)
