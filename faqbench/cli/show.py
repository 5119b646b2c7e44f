"""Show one run, its metrics, gates, stages and warnings: show RUN runs=…."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from faqbench.cli.arguments import KeysOfRuns, read_arguments
from faqbench.cli.console import print_table
from faqbench.config import UserError, did_you_mean
from faqbench.foreign import is_name
from faqbench.formatting import n_bytes, seconds
from faqbench.records import RunRecord, read_record, run_folders
from faqbench.report import truncation_notes
from faqbench.tables import Table


def run(arguments: list[str]) -> int:
    """Print the record of one run."""
    words, keys = read_arguments("show", arguments, KeysOfRuns, n_words=1)
    if not words:
        raise UserError("show needs the name of a run; `faqbench ls` lists them.")
    record = find_record(keys.runs, words[0])
    print(f"{record.run_id}: {record.status}, started {record.started}, {seconds(record.seconds)}")
    if record.error:
        print(record.error)
    print_table(
        Table.of(
            [
                {
                    "task": m.task,
                    "metric": m.name,
                    "value": "" if m.value is None else f"{m.value:.5g}",
                    "stderr": "" if m.stderr is None else f"{m.stderr:.2g}",
                    "n": str(m.n),
                }
                for m in record.metrics
            ]
        )
    )
    print_table(
        Table.of(
            [
                {"stage": name, "time": seconds(s.seconds), "cached": "yes" if s.cached else ""}
                for name, s in record.stages.items()
            ]
        )
    )
    print_table(
        Table.of(
            [
                {"gate": g.name, "passed": "yes" if g.passed else "NO", "detail": g.detail}
                for g in record.gates
            ]
        )
    )
    if (plan := record.extra.get("plan")) is not None:
        print(_plan(plan))
    for text in (*truncation_notes([record]), *record.warnings, *record.skipped_scales):
        print(f"note: {text}")
    return 0


def _plan(plan: Mapping[str, Mapping[str, float]]) -> str:
    planned, actual = plan["estimate"], plan["actual"]
    return (
        f"planned: {seconds(planned['seconds'])}, {n_bytes(planned['peak_memory_bytes'])} of memory, "
        f"{n_bytes(planned['n_bytes'])} of cache; it took {seconds(actual['seconds'])}, "
        f"{n_bytes(actual['peak_memory_bytes'])}, {n_bytes(actual['n_bytes'])}"
    )


def find_record(runs: Path, name: str) -> RunRecord:
    """Return the record of the run with this name, or with the only name that begins so.

    Raises:
        UserError: when there is none, or several, or it cannot be read.
    """
    folder = find_name(runs, name)
    try:
        return read_record(runs / folder)
    except ValueError as error:
        raise UserError(f"Run {folder} cannot be shown: {error}.") from error


def find_name(runs: Path, name: str) -> str:
    """Return the name of the run that is called so, or of the only one that begins so.

    Raises:
        UserError: when there is none, or several.
    """
    names = [folder.name for folder in run_folders(runs) if is_name(folder.name)]
    matches = [n for n in names if n == name] or [n for n in names if n.startswith(name)]
    if len(matches) != 1:
        what = f"{len(matches)} runs begin with" if matches else "There is no run"
        raise UserError(f"{what} '{name}' in {runs}.{did_you_mean(name, names)}")
    return matches[0]
