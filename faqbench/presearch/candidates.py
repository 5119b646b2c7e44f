"""What is tried: every combination of the declared grids, each once, and AWQ beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from faqbench.config import Experiment
from faqbench.config.experiment import PreviewSection, QuantSection
from faqbench.config.presearch import GridSection

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
