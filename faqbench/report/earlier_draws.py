"""How far calibration draws lie apart, as earlier studies of the same model tell it.

A difference seen on one calibration set has an error that no window or item shows: another set gives
another difference. A study with several draws of both methods measures it, and that is a property of
model, bits and methods rather than of the one set; so it may widen the interval of a single draw.

Looked at are the runs of a folder and of its sub-folders (`runs/study`), with the same model, bits, group
size, scenario and stages (the method's family: options within a stage may differ) on the same task.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from faqbench.records import RunRecord, find_heads, same_model
from faqbench.report import facts
from faqbench.report.columns import Column
from faqbench.report.panels import Row

_FEWEST_DRAWS = 3
_FAMILY = (
    "quant.scale", "quant.clip", "quant.correct", "quant.round", "quant.bits", "quant.group_size",
    "scenario",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DrawSpread:
    """The variance of a difference between draws.

    Attributes:
        variance: of one draw's difference, pooled over settings.
        degrees: of freedom that it rests on.
        n_draws: draws that it was seen on.
        folder: where they lie.
    """

    variance: float
    degrees: int
    n_draws: int
    folder: str


class EarlierDraws:
    """Finds the spread between draws in a folder's runs and studies."""

    def __init__(self, runs: Path) -> None:
        self._runs = runs

    def spread(self, a: Row, b: Row, column: Column) -> DrawSpread | None:
        """Return the spread of A - B, or None where no folder has three draws of both.

        The folder with the most draws speaks alone, since others may hold copies of its runs.
        """
        found = [self._spread_in(name, a, b, column) for name in self._records]
        known = [spread for spread in found if spread is not None]
        return max(known, key=lambda spread: spread.n_draws, default=None)

    @cached_property
    def _records(self) -> dict[str, list[RunRecord]]:
        folders = [self._runs, *sorted(p for p in self._runs.glob("[!._]*/") if p.is_dir())]
        found = {}
        for folder in folders:
            records = [r for r in find_heads(folder)[0] if r.status == "finished"]
            if records:
                found[folder.name] = records
        return found

    def _spread_in(self, folder: str, a: Row, b: Row, column: Column) -> DrawSpread | None:
        settings: dict[tuple[str, str], list[float]] = defaultdict(list)
        values_a, values_b = (self._values(folder, row, column) for row in (a, b))
        for (setting_a, seed_a), value_a in values_a.items():
            for (setting_b, seed_b), value_b in values_b.items():
                if seed_a == seed_b or not (a.is_calibrated and b.is_calibrated):
                    settings[setting_a, setting_b].append(value_a - value_b)
        enough = [x for x in settings.values() if len(x) >= _FEWEST_DRAWS]
        degrees = sum(len(x) - 1 for x in enough)
        if not degrees:
            return None
        return DrawSpread(
            variance=sum((len(x) - 1) * statistics.variance(x) for x in enough) / degrees,
            degrees=degrees,
            n_draws=max(map(len, enough)),
            folder=folder,
        )

    def _values(self, folder: str, row: Row, column: Column) -> dict[tuple[str, str], float]:
        """Return (setting, seed) -> the number that a difference is taken of, for a row's family."""
        first, found = row.runs[0], {}
        for run in self._records[folder]:
            alike = same_model(run, first) and all(_same(run, first, key) for key in _FAMILY)
            value = _number(run, column) if alike else None
            if value is not None:
                setting = facts.setting_identity(run, {})
                found[setting, facts.seed(run) if row.is_calibrated else ""] = value
        return found


def _same(run: RunRecord, other: RunRecord, key: str) -> bool:
    # Full precision has no grid and no calibration, whatever its configuration says.
    if facts.is_baseline(run) and facts.is_baseline(other):
        return True
    if key == "scenario" and not facts.is_calibrated(other):
        return True
    return facts.config_value(run.config, key) == facts.config_value(other.config, key)


def _number(run: RunRecord, column: Column) -> float | None:
    """Return a run's logarithm of the perplexity, or its other measure, on a column's task."""
    parts = column.parts or (column,)
    metrics = [run.metric(part.task, part.metric) for part in parts]
    values = [m.value for m in metrics if m is not None and m.value is not None]
    if len(values) < len(parts) or not all(map(math.isfinite, values)):
        return None
    if column.kind == "perplexity":
        return math.log(values[0])
    return sum(values) / len(values)
