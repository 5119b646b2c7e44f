"""The earlier records that a plan is made from: all heads, and the latest whole."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from faqbench.records import RunRecord, find_heads, read_record

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
