"""What is tried, and the choice among the candidates that saw all draws, with the evidence for it.

Tried is every combination of the declared grids, each once, and AWQ beside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from faqbench.config import Experiment
from faqbench.config.experiment import PreviewSection, QuantSection
from faqbench.config.presearch import GridSection
from faqbench.statistics import aggregate_draws, exp, percent_of_log

AWQ = "awq"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One choice of FAQ's options.

    Attributes:
        name: the options in words, `awq` for the choice that previews nothing.
        preview: the options.
    """

    name: str
    preview: PreviewSection

    def quant(self, quant: QuantSection) -> QuantSection:
        """Return the method with this candidate's preview."""
        return quant.model_copy(update={"preview": self.preview, "trace_windows": 0})


def candidates(experiment: Experiment) -> list[Candidate]:
    """Return the candidates of an experiment, AWQ first.

    A choice whose window is 0 or whose gamma is 1 is AWQ, and weights do not matter for a window of one.
    """
    plain = experiment.quant.preview
    nothing = plain.model_copy(update={"window": 0, "gamma": 1.0, "alpha": None})
    found = {AWQ: Candidate(name=AWQ, preview=nothing)}
    for grid in experiment.presearch.grids:
        for values in _combinations(grid):
            preview = plain.model_copy(update=values)
            name = _name(preview)
            found.setdefault(name, Candidate(name=name, preview=preview))
    return list(found.values())


def _combinations(grid: GridSection) -> list[dict[str, object]]:
    names, values = zip(*((name, tuple(value)) for name, value in grid), strict=True)
    return [dict(zip(names, chosen, strict=True)) for chosen in product(*values)]


def _name(preview: PreviewSection) -> str:
    if preview.window == 0 or preview.gamma == 1.0:
        return AWQ
    words = [f"window={preview.window}", f"gamma={preview.gamma:g}", f"roles={preview.roles}"]
    usual: Sequence[tuple[str, str]] = (
        ("source", "same_role"),
        ("stream", "full"),
        ("norm", "none"),
        ("fuse", "convex"),
    )
    words += [
        f"{key}={getattr(preview, key)}" for key, value in usual if getattr(preview, key) != value
    ]
    if preview.window > 1 and preview.weights != "uniform":
        words.append(f"weights={preview.weights}")
    return " ".join(words)


Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is known of one finalist, over all draws.

    Attributes:
        name: of the candidate.
        perplexity: exp of the mean negative log-likelihood of the selection text.
        log_ratio: of its perplexity to AWQ's, paired over draws and windows; 0 for AWQ itself.
        low: lower end of the ratio's 95 % interval, as a logarithm.
        high: its upper end.
        output_error: mean relative squared output error on selection text over linears and draws.
        tied: whether one standard error cannot tell it from the best.
    """

    name: str
    perplexity: float
    log_ratio: float
    low: float
    high: float
    output_error: float
    tied: bool


def weigh(
    windows: Mapping[str, Array], output_errors: Mapping[str, Sequence[float]]
) -> list[Evidence]:
    """Return the finalists' evidence, the chosen one first and AWQ last.

    Args:
        windows: by candidate, AWQ included, mean negative log-likelihood [n_draws, n_windows] in nats.
        output_errors: by candidate, one per draw.

    The chosen one has the smallest output error among those whose perplexity is within one standard
    error of the best, the standard error being that of their paired difference from the best.
    """
    rivals = [name for name in windows if name != AWQ]
    best = min(rivals, key=lambda name: float(windows[name].mean()))
    found = []
    for name, nll in windows.items():
        against_awq = aggregate_draws(nll - windows[AWQ])
        from_best = aggregate_draws(nll - windows[best])
        found.append(
            Evidence(
                name=name,
                perplexity=exp(float(nll.mean())),
                log_ratio=against_awq.mean,
                low=against_awq.low,
                high=against_awq.high,
                output_error=float(np.mean(output_errors[name])),
                tied=name != AWQ and from_best.mean <= from_best.stderr,
            )
        )
    return sorted(
        found,
        key=lambda e: (
            e.name == AWQ,
            not e.tied,
            e.output_error if e.tied else e.log_ratio,
            e.log_ratio,
        ),
    )


def verdict(chosen: Evidence) -> str:
    """Return in words what the chosen candidate is against AWQ on the selection text."""
    percent = [percent_of_log(float(x)) for x in (chosen.log_ratio, chosen.low, chosen.high)]
    numbers = f"{percent[0]:+.2f} %, 95 % interval {percent[1]:+.2f} to {percent[2]:+.2f}"
    if chosen.high < 0:
        return f"better than AWQ on the selection text: perplexity {numbers}"
    if chosen.low > 0:
        return f"worse than AWQ on the selection text: perplexity {numbers}"
    return f"cannot be told from AWQ on the selection text: perplexity {numbers}"
