"""`[search]` of a study file."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from qsched.errors import ConfigError
from qsched.schedule.parametrisations import DEFAULT_BOUNDS, NAMES, Bounds
from qsched.search.catalog import PROMPTS, check_sampler, resolved
from qsched.search.plan import GAUGE_PROMPTS, IMAGES, PER_TRIAL, TRIALS, Plan
from qsched.tables import Section, Seed, accepted_by


class Search(Section):
    """`[search]`: the space, the sampler and the budget.

    The budget is a number of `trials`, or the `images` that they may take in all.
    `prompts_per_trial`: so many of the calibration prompts a trial of the sampler `prompts` scores.

    `parametrisation`: "auto" is what repaired most at this width and number of steps.
    `stop_below`: a trial stops early when its chance to be the best falls below this; 0: never.
    `prior`: how much JAQ a vector costs at the edge of the box; it pulls towards the identity.
    """

    parametrisation: Literal["auto", *NAMES] = "ramp"  # type: ignore[valid-type]
    bounds: Annotated[tuple[float, float], accepted_by(lambda pair: Bounds(*pair))] = (
        DEFAULT_BOUNDS.low,
        DEFAULT_BOUNDS.high,
    )
    sampler: Annotated[str, accepted_by(check_sampler)] = "auto"
    trials: int | None = Field(default=None, ge=1, le=100_000)
    images: int | None = Field(default=None, ge=1, le=100_000_000)
    prompts_per_trial: int | None = Field(default=None, ge=1, le=100_000)
    seed: Seed = 0
    stop_below: float = Field(default=0.0, ge=0, le=0.5)
    prior: float = Field(default=0.0, ge=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        if self.trials is not None and self.images is not None:
            raise ValueError("trials and images are both a budget; expected one of them")
        return self

    def plan(self, pool: int) -> Plan | None:
        """Which prompts the trials score, of a `pool`; None where each scores all."""
        each = self.prompts_per_trial or PER_TRIAL
        return Plan(pool, each) if self.sampler == PROMPTS else None

    def settled(self, dimension: int, searched: int, pool: int) -> "Search":
        """With the sampler and the budget as they are for a space of `dimension` numbers, of which
        so many are `searched`, and a `pool` of prompts. Raises ConfigError for a budget of images
        that is too small, and for prompts a trial that mean nothing."""
        sampler = resolved(self.sampler, dimension)
        found = self.model_copy(update={"sampler": sampler})
        plan = found.plan(pool)
        changes: dict[str, Any] = {"sampler": sampler, "images": None}
        if plan is None:
            if self.prompts_per_trial is not None:
                raise ConfigError(
                    f"search.prompts_per_trial: sampler {sampler!r} scores all prompts in each "
                    f"trial; remove it, or set search.sampler = {PROMPTS!r}"
                )
            changes["trials"] = self.trials or TRIALS
            if self.images is not None:
                changes["trials"] = _enough(self.images // pool, self.images, pool, "the identity")
            return found.model_copy(update=changes)
        if self.stop_below:
            raise ConfigError(
                f"search.stop_below: sampler {PROMPTS!r} ends trials by itself; remove it, or set "
                "search.sampler = 'gp'"
            )
        changes["prompts_per_trial"] = plan.per_trial
        changes["trials"] = self.trials
        if self.trials is None:
            images, gauge = self.images or IMAGES, gauge_images(searched, pool)
            least = plan.images(2) + gauge
            changes["trials"] = _enough(
                plan.trials(max(images, least if self.images is None else 0) - gauge),
                images,
                least,
                "the identity on all prompts, the gauge and a trial",
            )
        return found.model_copy(update=changes)


def gauge_images(searched: int, pool: int) -> int:
    """How many images, without decoding, the gauge of so many numbers takes."""
    return 2 * searched * min(GAUGE_PROMPTS, pool)


def _enough(trials: int, images: int, least: int, takes: str) -> int:
    if trials < 1 or images < least:
        raise ConfigError(
            f"search.images = {images}; expected at least {least}: so many take {takes}"
        )
    return trials
