"""Plans: what a sweep would compute and reuse, and about what it would cost, without loading a model.

Where each part lives:

    rate.py        the sizes of a model, from its configuration, and how fast this machine is, measured
    estimates.py   seconds, memory and disk, from earlier records, or from the model's shape and the rate
    plan.py        all of it together for the cells of a sweep, from the records that say what stages cost;
                   fetching packaged assets at once; an estimate against what then happened
"""

from faqbench.pipeline.planning.estimates import Estimator
from faqbench.pipeline.planning.plan import (
    Estimate,
    Plan,
    PlannedCell,
    PlannedStage,
    compare_with_plan,
    earlier_records,
    fetch_assets,
    make_plan,
    seconds_left,
    total_error,
)

__all__ = [
    "Estimate",
    "Estimator",
    "Plan",
    "PlannedCell",
    "PlannedStage",
    "compare_with_plan",
    "earlier_records",
    "fetch_assets",
    "make_plan",
    "seconds_left",
    "total_error",
]
