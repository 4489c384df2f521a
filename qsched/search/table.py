"""`[search]` of a study file."""

from typing import Annotated, Literal

from pydantic import Field

from qsched.schedule.parametrisations import DEFAULT_BOUNDS, NAMES, Bounds
from qsched.search.catalog import check_sampler
from qsched.tables import Section, Seed, accepted_by


class Search(Section):
    """`[search]`: the space, the sampler and the budget.

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
    trials: int = Field(default=48, ge=1, le=100_000)
    seed: Seed = 0
    stop_below: float = Field(default=0.0, ge=0, le=0.5)
    prior: float = Field(default=0.0, ge=0, allow_inf_nan=False)
