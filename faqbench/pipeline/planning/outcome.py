"""A plan's estimate of a cell against what then happened, for the record and for the sweep's last line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from faqbench.records import RunRecord
from faqbench.stages import StageUse

Estimate = Mapping[str, float]


def compare_with_plan(
    estimate: Estimate, record: RunRecord, uses: Sequence[StageUse]
) -> dict[str, dict[str, float | None]]:
    """Return the estimate, what happened, and the error of each part relative to what happened.

    Args:
        estimate: `seconds`, `peak_memory_bytes` and `n_bytes` of the cell.
        record: of the cell.
        uses: the entries of the cache that it asked for.
    """
    actual = {
        "seconds": record.seconds,
        "peak_memory_bytes": float(record.peak_memory_bytes),
        "n_bytes": float(sum(use.n_bytes for use in uses if not use.cached)),
    }
    error = {k: _relative(estimate[k], actual[k]) for k in actual if k in estimate}
    return {"estimate": dict(estimate), "actual": dict(actual), "error": error}


def total_error(records: Sequence[RunRecord]) -> tuple[float, float] | None:
    """Return the planned and the actual seconds of all cells that were planned; None without any."""
    plans = [r.extra["plan"] for r in records if r.status == "finished" and "plan" in r.extra]
    if not plans:
        return None
    planned, actual = (sum(p[k]["seconds"] for p in plans) for k in ("estimate", "actual"))
    return planned, actual


def _relative(estimate: float, actual: float) -> float | None:
    return round((estimate - actual) / actual, 4) if actual else None
