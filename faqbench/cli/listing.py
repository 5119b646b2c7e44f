"""List the runs: one line each, newest last; runs=… chooses the folder."""

from __future__ import annotations

import sys
from pathlib import Path

from faqbench.cli.arguments import read_arguments
from faqbench.cli.console import print_table
from faqbench.records import RunRecord, find_runs


def run(arguments: list[str]) -> int:
    """Print a table of all records."""
    _, values = read_arguments("ls", arguments, {"runs": "the folder of runs"})
    records, damaged = find_runs(Path(values.get("runs", "runs")))
    print_table([_row(record) for record in sorted(records, key=lambda r: r.started)])
    for name, reason in damaged:
        print(f"{name}: {reason}", file=sys.stderr)
    if not records and not damaged:
        print("No runs yet; `python -m faqbench experiment=quickstart` makes some.")
    return 0


def _row(record: RunRecord) -> dict[str, str]:
    first = record.metrics[0] if record.metrics else None
    value = f"{first.task} {first.name} {first.value:.4g}" if first and first.value else ""
    return {
        "run": record.run_id,
        "status": record.status,
        "started": record.started,
        "seconds": f"{record.seconds:.0f}",
        "result": value,
    }
