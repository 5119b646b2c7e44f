"""What a report is asked for, and where it was written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ReportRequest:
    """One report.

    Attributes:
        runs: the folder with the run folders.
        reports: the folder below which `<name>/` is written.
        name: the report's folder; also the sweep whose list of runs is used when there is one.
        select: patterns on run ids (`*faq*`) and filters on the config (`quant=awq,faq`, `bits=3`,
            `calibration.n_samples=32`). A run must match one of the patterns and all filters.
        run_ids: exactly these runs; None takes the sweep's list, or all runs.
        baseline: the method, or the run, that others are compared with; None takes AWQ, else RTN.
        title: the page's title; None makes one.
    """

    runs: Path
    reports: Path
    name: str
    select: tuple[str, ...] = ()
    run_ids: tuple[str, ...] | None = None
    baseline: str | None = None
    title: str | None = None


@dataclass(frozen=True, kw_only=True)
class ReportPaths:
    """The files of a written report, (run id, reason) of damaged runs, a sentence on each left out."""

    folder: Path
    html: Path
    markdown: Path
    tables: tuple[Path, ...]
    figures: tuple[Path, ...]
    n_runs: int
    damaged: tuple[tuple[str, str], ...] = ()
    left_out: tuple[str, ...] = ()
