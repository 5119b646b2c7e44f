"""Copy finished runs into a folder small enough to commit: compact into=runs/study name=… select=… runs=….

Window means stand in for tokens, so every table, plot and paired comparison of a report can be made from
the copy; `faqbench report name=study` finds runs/study by itself.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from faqbench.cli.arguments import KeysOfSelection, read_arguments
from faqbench.cli.console import print_damaged
from faqbench.config import UserError
from faqbench.foreign import is_name
from faqbench.formatting import n_bytes
from faqbench.records import RunData, RunRecord, compact_run, read_run, write_pack, write_sweep
from faqbench.report.facts import config_value
from faqbench.report.selection import ReportRequest, select_runs


class CompactKeys(KeysOfSelection):
    """Which runs go where.

    Attributes:
        into: the folder that the compact runs are written to.
        name: the sweep to copy, all runs otherwise.
    """

    into: Path | None = None
    name: str | None = None


def run(arguments: list[str]) -> int:
    """Copy runs and say how large the folder is now."""
    _, keys = read_arguments("compact", arguments, CompactKeys)
    if keys.into is None:
        raise UserError("compact needs into=FOLDER, such as into=runs/study.")
    runs, into, name = keys.runs, keys.into, keys.name
    if into.resolve() == runs.resolve():
        raise UserError(f"into={into} is the folder of runs itself; whole runs are not replaced.")
    if name is not None and not is_name(name):
        raise UserError(f"name '{name}' cannot name a sweep; use letters, digits and . _ + - only.")
    selection = select_runs(
        ReportRequest(runs=runs, reports=Path("reports"), name=name or "all", select=keys.select)
    )
    print_damaged(selection.damaged)
    if not selection.finished:
        raise UserError(f"There is no finished run to copy in {runs}.")
    copies = _read(runs, selection.finished)
    if not copies:
        raise UserError(f"No finished run in {runs} can be read whole.")
    write_pack(into, copies.values())
    if name is not None:
        write_sweep(into, name, list(copies))
    _say_where_models_lie(selection.finished)
    size = sum(path.stat().st_size for path in into.rglob("*") if path.is_file())
    n_runs = len(copies)
    print(f"{n_runs} runs copied; {into} holds {n_bytes(size)} ({n_bytes(size / n_runs)} a run)")
    return 0


def _read(runs: Path, records: Sequence[RunRecord]) -> dict[str, RunData]:
    """Return compact runs by their ids; one with a damaged table is named and left out."""
    copies = {}
    for record in records:
        try:
            copies[record.run_id] = compact_run(read_run(runs / record.run_id))
        except ValueError as error:
            print_damaged([(record.run_id, str(error))])
    return copies


def _say_where_models_lie(records: Sequence[RunRecord]) -> None:
    """Name the folders of this machine that the copies hold as they were typed."""
    folders = {config_value(r.config, "model.path") for r in records}
    for path in sorted(p for p in folders if p is not None):
        print(
            f"note: model.path={path} stands in the copies as it was typed; others will see it and cannot "
            "load the model from there.",
            file=sys.stderr,
        )
