"""Where a method errs: per linear from `layers.parquet`, per block from the record's traces.

Records are read leniently: what an older or foreign one lacks is absent. Several runs, the draws of
one row, give means.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from faqbench.records import RunRecord
from faqbench.report.evidence import EvidenceStore

# A quantized block's output on full precision inputs, and on those the quantized blocks before give.
ALONE, ADDED_UP, COSINE = "local_error", "relative_error", "cosine"
LinearErrors = dict[tuple[str, int], float]
Curves = dict[str, dict[int, float]]


def linear_errors(runs: Sequence[RunRecord], store: EvidenceStore) -> LinearErrors:
    """Return (linear, block) -> relative squared output error; empty where none was measured."""
    found: dict[tuple[str, int], list[float]] = {}
    for run in runs:
        layers = store.of(run.run_id).layers
        if layers is None or not {"block", "linear", "relative_error"} <= set(layers):
            continue
        columns = (layers["linear"], layers["block"], layers["relative_error"].astype(float))
        for linear, block, error in zip(*(c.tolist() for c in columns), strict=True):
            if math.isfinite(error):
                found.setdefault((str(linear), int(block)), []).append(error)
    means = {key: fmean(errors) for key, errors in found.items()}
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
    known = [b for b in blocks if isinstance(b, Mapping)] if isinstance(blocks, list) else []
    found = {
        kind: {int(b["block"]): float(b[kind]) for b in known if b.get(kind) is not None}
        for kind in (ALONE, ADDED_UP, COSINE)
    }
    return {kind: curve for kind, curve in found.items() if curve}


def _means(curves: Iterable[Mapping[int, float]]) -> dict[int, float]:
    values: dict[int, list[float]] = {}
    for curve in curves:
        for block, error in curve.items():
            values.setdefault(block, []).append(error)
    return {block: fmean(values[block]) for block in sorted(values)}
