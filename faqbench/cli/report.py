"""Rebuild a report from runs/ alone: name=… select=… baseline=… title=… runs=… reports=…."""

from __future__ import annotations

import sys
from pathlib import Path

from faqbench.cli.arguments import KeysOfSelection, read_arguments
from faqbench.cli.console import print_damaged, print_table
from faqbench.foreign import is_name
from faqbench.records import run_folders
from faqbench.report import ReportRequest, write_report


class ReportKeys(KeysOfSelection):
    """What a report shows, and where it goes; where `runs` is not given, runs/<name> comes first.

    Attributes:
        name: the report's folder below reports, and the sweep it shows.
        baseline: the method or run that others are compared with.
        title: the page's title.
        margin: differences within it count as none, as in '1% 1pt 0.01nats'; else what the runs state.
        reports: the folder of reports.
    """

    name: str = "all"
    baseline: str | None = None
    title: str | None = None
    margin: str | None = None
    reports: Path = Path("reports")


def run(arguments: list[str]) -> int:
    """Write a report and print where it lies; 1 when runs that contradict each other were left out."""
    _, keys = read_arguments("report", arguments, ReportKeys)
    paths = write_report(
        ReportRequest(
            runs=_runs(keys),
            reports=keys.reports,
            name=keys.name,
            select=keys.select,
            baseline=keys.baseline,
            title=keys.title,
            margin=keys.margin,
        )
    )
    print_damaged(paths.damaged)
    if paths.published is not None:
        print_table(paths.published)
    print(f"Report over {paths.n_runs} runs: {paths.html}")
    if paths.front is None:
        print(f"{paths.folder.parent}/index.html is no list of faqbench's reports, so it stays as it is.")
    for sentence in paths.left_out:
        print(f"faqbench: {sentence}", file=sys.stderr)
    return int(bool(paths.left_out))


def _runs(keys: ReportKeys) -> Path:
    """Return the folder of runs: the one that is asked for, or the one that has the report's name."""
    is_given, named = "runs" in keys.model_fields_set, keys.runs / keys.name
    return named if not is_given and is_name(keys.name) and run_folders(named) else keys.runs
