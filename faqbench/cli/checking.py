"""The models of cells that are yet to run, checked before the first of them starts."""

from __future__ import annotations

from collections.abc import Iterable

from faqbench.config import Experiment
from faqbench.records import finished_record


def check_unfinished(experiments: Iterable[Experiment]) -> None:
    """Check the models of cells that did not finish before; those that did need their models no more.

    Raises:
        UserError: all mistakes of all cells, each once.
    """
    from faqbench.pipeline import check_models

    check_models([e for e in experiments if finished_record(e) is None])
