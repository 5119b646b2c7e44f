"""The arrays behind the numbers: window means and item scores of a run, read once per run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from faqbench.forked import in_forks
from faqbench.records import read_items, read_layers, read_scores
from faqbench.report.earlier_draws import EarlierDraws

if TYPE_CHECKING:
    import pandas as pd

_PART = 50  # runs that a process reads before it takes the next
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What pairing needs of one run.

    Attributes:
        windows: protocol -> [n_windows, 1] mean negative log-likelihood per window, nats.
        items: (task, metric) -> (item numbers [n], values [n]), in the order of the items.
        layers: one row per quantized linear; empty for baselines.
        damage: why the run's tables cannot be read, or an empty string.
    """

    windows: Mapping[str, Array] = field(default_factory=dict)
    items: Mapping[tuple[str, str], tuple[Array, Array]] = field(default_factory=dict)
    layers: pd.DataFrame | None = None
    damage: str = ""


class EvidenceStore:
    """Reads each run's tables at the first question about it and keeps only what pairing needs.

    Attributes:
        earlier: what runs of the folder's studies tell of the spread between draws.
    """

    def __init__(self, runs: Path) -> None:
        self._runs = runs
        self._known: dict[str, Evidence] = {}
        self.earlier = EarlierDraws(runs)

    def of(self, run_id: str) -> Evidence:
        """Return a run's evidence; a run whose tables are damaged has none, and says why."""
        if run_id not in self._known:
            self._known[run_id] = _read(self._runs / run_id)
        return self._known[run_id]

    def read_all(self, run_ids: Sequence[str]) -> None:
        """Read the evidence of runs that will all be asked for, on all the cores there are."""
        parts = [run_ids[i : i + _PART] for i in range(0, len(run_ids), _PART)]
        with in_forks([partial(self._read_part, part) for part in parts]) as results:
            self._known |= {k: v for part in results() for k, v in part.items()}

    def _read_part(self, run_ids: Sequence[str]) -> dict[str, Evidence]:
        return {run_id: _read(self._runs / run_id) for run_id in run_ids}

    def damaged(self) -> list[tuple[str, str]]:
        """Return (run id, reason) of the runs whose tables could not be read."""
        return [(run_id, e.damage) for run_id, e in sorted(self._known.items()) if e.damage]


def _read(folder: Path) -> Evidence:
    try:
        windows = {
            name: nll.mean(axis=1, dtype=np.float64)[:, None]
            for name, nll in read_scores(folder).items()
        }
        return Evidence(
            windows=windows, items=_by_task(read_items(folder)), layers=read_layers(folder)
        )
    except ValueError as error:
        return Evidence(damage=str(error))


def _by_task(items: pd.DataFrame) -> dict[tuple[str, str], tuple[Array, Array]]:
    if not len(items):
        return {}
    numbers, values = items["item"].to_numpy(), items["value"].to_numpy(dtype=np.float64)
    places = items["item"].to_numpy(dtype=np.float64)
    found = {}
    for name, rows in items.groupby(["task", "metric"]).indices.items():
        task, metric = cast("tuple[object, object]", name)
        ordered = rows[np.argsort(places[rows], kind="stable")]
        found[str(task), str(metric)] = (numbers[ordered], values[ordered])
    return found
