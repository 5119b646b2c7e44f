"""The arrays behind the numbers, read once per run, and what earlier studies tell of the spread of draws.

Window means and item scores serve the pairing of runs. Errors of linears and blocks say where a method
errs: per linear from `layers.parquet`, per block from the record's traces; what an older or foreign
record lacks is absent, and several runs, the draws of one row, give means.

A difference seen on one calibration set has an error that no window or item shows: another set gives
another difference. A study with several draws of both methods measures it, and that is a property of
model, bits and methods rather than of the one set; so it may widen the interval of a single draw. Looked
at are the runs of a folder and of its sub-folders (`runs/study`), with the same model, bits, group size,
scenario and stages (the method's family: options within a stage may differ) on the same task.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from faqbench.processes import in_forks
from faqbench.records import RunRecord, find_heads, read_items, read_layers, read_scores, same_model
from faqbench.report import facts
from faqbench.report.columns import Column, Row

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
            name: nll.mean(axis=1, dtype=np.float64)[:, None] for name, nll in read_scores(folder).items()
        }
        return Evidence(windows=windows, items=_by_task(read_items(folder)), layers=read_layers(folder))
    except ValueError as error:
        return Evidence(damage=str(error))


def _by_task(items: pd.DataFrame) -> dict[tuple[str, str], tuple[Array, Array]]:
    if not len(items):
        return {}
    numbers, values = items["item"].to_numpy(), items["value"].to_numpy(dtype=np.float64)
    places = items["item"].to_numpy(dtype=np.float64)
    by_task = {}
    for name, rows in items.groupby(["task", "metric"]).indices.items():
        task, metric = cast("tuple[object, object]", name)
        ordered = rows[np.argsort(places[rows], kind="stable")]
        by_task[str(task), str(metric)] = (numbers[ordered], values[ordered])
    return by_task


# A quantized block's output on full precision inputs, and on those the quantized blocks before give.
ALONE, ADDED_UP, COSINE = "local_error", "relative_error", "cosine"
LinearErrors = dict[tuple[str, int], float]
Curves = dict[str, dict[int, float]]


def linear_errors(runs: Sequence[RunRecord], store: EvidenceStore) -> LinearErrors:
    """Return (linear, block) -> relative squared output error; empty where none was measured."""
    per_linear: dict[tuple[str, int], list[float]] = {}
    for run in runs:
        layers = store.of(run.run_id).layers
        if layers is None or not {"block", "linear", "relative_error"} <= set(layers):
            continue
        columns = (layers["linear"], layers["block"], layers["relative_error"].astype(float))
        for linear, block, error in zip(*(c.tolist() for c in columns), strict=True):
            if math.isfinite(error):
                per_linear.setdefault((str(linear), int(block)), []).append(error)
    means = {key: fmean(errors) for key, errors in per_linear.items()}
    return means if any(error > 0 for error in means.values()) else {}


def block_curves(runs: Sequence[RunRecord], store: EvidenceStore) -> Curves:
    """Return kind of error -> block -> error; without traces, the mean over the block's linears."""
    traced = [curves for run in runs if (curves := traced_blocks(run))]
    if traced:
        kinds = (ALONE, ADDED_UP, COSINE)
        return {kind: _means(curves.get(kind, {}) for curves in traced) for kind in kinds}
    per_block: dict[int, list[float]] = {}
    for (_, block), error in linear_errors(runs, store).items():
        per_block.setdefault(block, []).append(error)
    return {ALONE: {b: fmean(per_block[b]) for b in sorted(per_block)}} if per_block else {}


def traced_blocks(run: RunRecord) -> Curves:
    """Return kind of error -> block -> error as the record traced it; empty when nothing was."""
    blocks = run.extra.get("blocks")
    well_formed = [b for b in blocks if isinstance(b, Mapping)] if isinstance(blocks, list) else []
    traced = {
        kind: {int(b["block"]): float(b[kind]) for b in well_formed if b.get(kind) is not None}
        for kind in (ALONE, ADDED_UP, COSINE)
    }
    return {kind: curve for kind, curve in traced.items() if curve}


def _means(curves: Iterable[Mapping[int, float]]) -> dict[int, float]:
    values: dict[int, list[float]] = {}
    for curve in curves:
        for block, error in curve.items():
            values.setdefault(block, []).append(error)
    return {block: fmean(values[block]) for block in sorted(values)}


_FEWEST_DRAWS = 3
_FAMILY = (
    "quant.rotate", "quant.scale", "quant.clip", "quant.correct", "quant.round", "quant.bits",
    "quant.group_size", "quant.activations.bits",
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
        spreads = [self._spread_in(name, a, b, column) for name in self._records]
        measured = [spread for spread in spreads if spread is not None]
        return max(measured, key=lambda spread: spread.n_draws, default=None)

    @cached_property
    def _records(self) -> dict[str, list[RunRecord]]:
        folders = [self._runs, *sorted(p for p in self._runs.glob("[!._]*/") if p.is_dir())]
        all_records = {}
        for folder in folders:
            records = [r for r in find_heads(folder)[0] if r.status == "finished"]
            if records:
                all_records[folder.name] = records
        return all_records

    def _spread_in(self, folder: str, a: Row, b: Row, column: Column) -> DrawSpread | None:
        settings: dict[tuple[str, str], list[float]] = defaultdict(list)
        values_a, values_b = (self._values(folder, row, column) for row in (a, b))
        is_paired = a.is_calibrated and b.is_calibrated
        for (setting_a, seed_a), value_a in values_a.items():
            for (setting_b, seed_b), value_b in values_b.items():
                # Two variants of a method are one family: a pair is counted once, and none with itself.
                if setting_a == setting_b or (setting_b, setting_a) in settings:
                    continue
                if seed_a == seed_b or not is_paired:
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
        first, values = row.runs[0], {}
        is_calibrated = row.is_calibrated
        family = _family(first, of_scenario=facts.is_calibrated(first))
        for run, setting, seed in self._families.get((folder, family), ()):
            value = _number(run, column) if same_model(run, first) else None
            if value is not None:
                values[setting, seed if is_calibrated else ""] = value
        return values

    @cached_property
    def _families(self) -> Mapping[tuple[str, tuple[str, ...]], list[tuple[RunRecord, str, str]]]:
        """The runs of each folder by their family, of its scenario and of any, with setting and seed."""
        families = defaultdict(list)
        for folder, records in self._records.items():
            for run in records:
                told = run, facts.setting_identity(run, {}), facts.seed(run)
                for family in {_family(run, of_scenario=True), _family(run, of_scenario=False)}:
                    families[folder, family].append(told)
        return families


def _family(run: RunRecord, *, of_scenario: bool) -> tuple[str, ...]:
    # Full precision has no grid and no calibration, whatever its configuration says.
    if facts.is_baseline(run):
        return ("full precision",)
    # A stage that a record is too old to name is idle in it.
    keys = (*_FAMILY, "scenario") if of_scenario else _FAMILY
    return tuple(facts.config_value(run.config, key) or "none" for key in keys)


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
