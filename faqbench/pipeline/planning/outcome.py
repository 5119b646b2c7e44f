"""Records and plans: the earlier ones that a plan is made from, and what then happened to its estimate."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from faqbench.records import RunRecord, find_heads, read_record
from faqbench.stages import StageUse

Estimate = Mapping[str, Any]  # seconds, stages (seconds by kind), peak_memory_bytes, n_bytes


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


def seconds_left(
    estimates: Mapping[str, Estimate], finished: Collection[RunRecord], n_workers: int = 1
) -> float:
    """Return what is left of a sweep's estimate, put right by what its finished cells took.

    A kind of stage that took twice its estimate so far is expected to go on so; a kind that none has run
    yet is as far off as all others together.

    Args:
        estimates: of all cells, by run id.
        finished: records of those that are done.
        n_workers: processes that share the cells.
    """
    planned: dict[str, float] = defaultdict(float)
    actual: dict[str, float] = defaultdict(float)
    for record in finished:
        _add(planned, estimates[record.run_id]["stages"], estimates[record.run_id]["seconds"])
        taken: dict[str, float] = defaultdict(float)
        for use in record.extra.get("stage_keys", []):
            if not use["cached"]:
                taken[use["entry"].partition("/")[0]] += use["seconds"]
        _add(actual, taken, record.seconds)
    done = {record.run_id for record in finished}
    left: dict[str, float] = defaultdict(float)
    for name in estimates.keys() - done:
        _add(left, estimates[name]["stages"], estimates[name]["seconds"])
    all_planned, all_actual = sum(planned.values()), sum(actual.values())
    pace = all_actual / all_planned if all_planned else 1.0
    seconds = sum(
        s * (actual[kind] / planned[kind] if planned[kind] and actual[kind] else pace)
        for kind, s in left.items()
    )
    return seconds / max(1, min(n_workers, len(estimates.keys() - done)))


def _add(sums: dict[str, float], stages: Mapping[str, float], seconds: float) -> None:
    """Add a cell's seconds by kind of stage, what they leave of the whole under an empty name."""
    for kind, s in stages.items():
        sums[kind] += s
    sums[""] += max(0.0, seconds - sum(stages.values()))


def _relative(estimate: float, actual: float) -> float | None:
    return round((estimate - actual) / actual, 4) if actual else None


_LATEST = 100  # of a model and a machine: a median over more would be no better, and takes longer


def earlier_records(
    runs: Path, models: Collection[str]
) -> tuple[list[RunRecord], list[tuple[str, str]]]:
    """Return what `find_runs` does, those records whole that say what the cells of these models cost.

    Args:
        runs: the folder of runs.
        models: by `model.name`.
    """
    found, damaged = find_heads(runs)
    heads = {record.run_id: record for record in found}
    alike: dict[tuple[str, object], list[RunRecord]] = defaultdict(list)
    for head in found:
        model = head.config.get("model", {}).get("name")
        if head.status == "finished" and model in models:
            alike[model, head.environment.get("device_name")].append(head)
    for group in alike.values():
        for head in sorted(group, key=lambda r: r.started)[-_LATEST:]:
            with suppress(ValueError):  # it was replaced or damaged just now
                heads[head.run_id] = read_record(runs / head.run_id)
    return list(heads.values()), damaged
