"""Rebuild a report from runs/ alone: name=… select=… baseline=… title=… runs=… reports=…."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from faqbench.cli.arguments import read_arguments
from faqbench.cli.console import print_damaged, print_table
from faqbench.foreign import is_name
from faqbench.records import run_folders
from faqbench.report import ReportRequest, write_report

_KEYS = {
    "name": "the report's folder below reports, and the sweep it shows",
    "select": "patterns on run ids and key=value filters, separated by spaces",
    "baseline": "the method or run that others are compared with",
    "title": "the page's title",
    "margin": "differences within it count as none, as in '1% 1pt 0.01nats'; else what the runs state",
    "runs": "the folder of runs; runs/<name> where that is one, else runs",
    "reports": "the folder of reports",
}


def run(arguments: list[str]) -> int:
    """Write a report and print where it lies; 1 when runs that contradict each other were left out."""
    _, values = read_arguments("report", arguments, _KEYS)
    paths = write_report(
        ReportRequest(
            runs=_runs(values),
            reports=Path(values.get("reports", "reports")),
            name=values.get("name", "all"),
            select=tuple(shlex.split(values.get("select", ""))),
            baseline=values.get("baseline"),
            title=values.get("title"),
            margin=values.get("margin"),
        )
    )
    print_damaged(paths.damaged)
    if paths.published is not None:
        print_table(paths.published)
    print(f"Report over {paths.n_runs} runs: {paths.html}")
    if paths.front is None:
        print(
            f"{paths.folder.parent}/index.html is no list of faqbench's reports, so it stays as it is."
        )
    for sentence in paths.left_out:
        print(f"faqbench: {sentence}", file=sys.stderr)
    return int(bool(paths.left_out))


def _runs(values: Mapping[str, str]) -> Path:
    """Return the folder of runs: the one that is asked for, or the one that has the report's name."""
    name = values.get("name", "all")
    if "runs" not in values and is_name(name) and run_folders(Path("runs") / name):
        return Path("runs") / name
    return Path(values.get("runs", "runs"))
