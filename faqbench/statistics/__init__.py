"""Statistics of a benchmark of quantizers: the error of a number, and of a difference.

Two runs of this benchmark score the same tokens and the same items, so a difference is taken window
by window and item by item before anything is averaged; this removes the large spread between texts
that both runs share, and finds what unpaired tests miss.

    one run         windows.perplexity_with_stderr, accuracy.accuracy_with_stderr
                    windows.mean_with_stderr (KL divergence, top-1 agreement)
    two runs        windows.mean_difference (block bootstrap; of perplexities its `ratio`)
                    accuracy.mcnemar, accuracy.accuracy_difference (paired bootstrap)
                    accuracy.mean_accuracy_difference (unweighted over several tasks)
    a whole table   errors.holm
    equality        errors.Error (two one-sided tests against a margin; what would be found)
    several draws   draws.aggregate_draws (variance split into draw, item and residual)
    while it runs   sequential.look_at (an interval that may be looked at after every draw)
    before a run    errors.detectable_…: the smallest difference that a given n can show

Arrays in, frozen values out; every random function takes its Generator. numpy is imported at once,
scipy.stats (about a second) only inside the functions that need it.
"""

from faqbench.statistics.accuracy import (
    AccuracyDifference,
    McNemar,
    accuracy_difference,
    accuracy_with_stderr,
    item_weights,
    mcnemar,
    mean_accuracy_difference,
)
from faqbench.statistics.draws import DrawSummary, aggregate_draws
from faqbench.statistics.errors import (
    Error,
    Items,
    Student,
    detectable_accuracy_difference,
    detectable_difference,
    holm,
)
from faqbench.statistics.sequential import Look, Verdict, draws_needed, fewest_draws, look_at
from faqbench.statistics.windows import (
    WindowDifference,
    block_length_for,
    exp,
    mean_difference,
    mean_with_stderr,
    percent_of_log,
    perplexity_with_stderr,
)

__all__ = [
    "AccuracyDifference",
    "DrawSummary",
    "Error",
    "Items",
    "Look",
    "McNemar",
    "Student",
    "Verdict",
    "WindowDifference",
    "accuracy_difference",
    "accuracy_with_stderr",
    "aggregate_draws",
    "block_length_for",
    "detectable_accuracy_difference",
    "detectable_difference",
    "draws_needed",
    "exp",
    "fewest_draws",
    "holm",
    "item_weights",
    "look_at",
    "mcnemar",
    "mean_accuracy_difference",
    "mean_difference",
    "mean_with_stderr",
    "percent_of_log",
    "perplexity_with_stderr",
]
