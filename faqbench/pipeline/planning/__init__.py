"""Plans: what a sweep would compute and reuse, and about what it would cost, without loading a model.

Where each part lives:

    shape.py       the sizes of a model, from its configuration alone
    found.py       fingerprints that earlier runs found out, so that keys are known without tokenising
    needs.py       the stages of a cell, their keys, and which are there; fetching what is not
    earlier.py     the records that say what stages cost
    rate.py        how fast this machine is, measured
    estimates.py   seconds, memory and disk, from earlier records, or from the model's shape and the rate
    plan.py        all of it together for the cells of a sweep
    outcome.py     an estimate against what then happened
"""

from faqbench.pipeline.planning.earlier import earlier_records
from faqbench.pipeline.planning.estimates import Estimator
from faqbench.pipeline.planning.found import note_found
from faqbench.pipeline.planning.needs import fetch_assets
from faqbench.pipeline.planning.outcome import (
    Estimate,
    compare_with_plan,
    seconds_left,
    total_error,
)
from faqbench.pipeline.planning.plan import Plan, PlannedCell, PlannedStage, make_plan

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
    "note_found",
    "seconds_left",
    "total_error",
]
