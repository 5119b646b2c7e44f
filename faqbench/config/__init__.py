"""What a user may ask for: the frozen `Experiment`, its validation and its identity.

This is the lowest layer: it imports neither torch, transformers, lm_eval, wandb nor hydra, so that
`report`, `ls` and error messages start at once. Every default lives in `conf/`, none here.
"""

from faqbench.config.experiment import Experiment
from faqbench.config.identity import identity, run_id
from faqbench.config.section import UserError, did_you_mean
from faqbench.config.validation import check_tracking, validate

__all__ = ["Experiment", "UserError", "check_tracking", "did_you_mean", "identity", "run_id", "validate"]
