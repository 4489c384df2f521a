"""`[gallery]` of a study file."""

from pydantic import Field

from qsched.tables import Place, Section


class Gallery(Section):
    """`[gallery]`: the contact sheets in optuna-dashboard, of the identity, of every new best, and
    of the first `trials`; in a folder or s3://bucket."""

    trials: int = Field(default=8, ge=0)
    store: Place | None = None
