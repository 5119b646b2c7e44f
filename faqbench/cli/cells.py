"""Run one cell or a sweep: everything that is not a verb.

All cells are composed and validated first. Then Hydra, with whichever launcher the user chose, runs
`run_cell` for each: a cell that finished before is skipped, one that fails becomes a failed record and
never stops its sweep.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING

import hydra

from faqbench.cli.composing import (
    CONFIG_NAME,
    VERSION_BASE,
    Request,
    compose_cells,
    conf_dir,
    only_shows,
    parse_flags,
    to_experiment,
)
from faqbench.cli.console import console_progress, print_table
from faqbench.config import Experiment, UserError, run_id
from faqbench.files import explain_os_error
from faqbench.records import RunRecord, read_record, write_sweep
from faqbench.report import ReportRequest, summary_rows, write_report
from faqbench.stages import hash_json

if TYPE_CHECKING:
    from omegaconf import DictConfig

_TRACEBACK_LINES = 12


def run(arguments: list[str]) -> int:
    """Run the cells that a command line describes and return the exit code."""
    flags = parse_flags(arguments)
    if only_shows(flags):
        _hand_to_hydra(arguments)
        return 0
    request = compose_cells(flags)
    experiments = list({run_id(e): e for e in request.experiments}.values())
    runs = experiments[0].paths.runs
    ids = [run_id(e) for e in experiments]
    extra = []
    if request.is_sweep:
        name = _sweep_name(request)
        write_sweep(runs, name, ids)
        extra = [f"++tracking.group={name}"]
    with explain_os_error("make the folder of runs", runs, "set paths.runs to another folder"):
        runs.mkdir(parents=True, exist_ok=True)
    _hand_to_hydra([*arguments, *extra])
    return _conclude(experiments, request.is_sweep)


def run_cell(config: DictConfig) -> float:
    """Run one cell, in whatever process a launcher put it, and return its objective.

    Returns:
        The first metric, turned so that smaller is better; infinity when the cell failed.
    """
    from faqbench import pipeline
    from faqbench.stages import StageCache
    from faqbench.tracking import live, tracker

    progress = console_progress()
    experiment = to_experiment(config)
    done = pipeline.finished_record(experiment)
    if done is not None:
        progress.note(f"{done.run_id}: finished before, skipped (rerun=true repeats it)")
        return _objective(done)
    progress.note(f"{run_id(experiment)}: running")
    with live(experiment, progress) as watched:
        try:
            data = pipeline.run(experiment, cache=StageCache(), progress=watched)
        except UserError as error:
            data = pipeline.write_failure(experiment, str(error))
        except Exception:  # noqa: BLE001 - a failing cell is a failed record, and its sweep goes on
            lines = traceback.format_exc().strip().splitlines()[-_TRACEBACK_LINES:]
            data = pipeline.write_failure(experiment, "\n".join(lines))
        tracker(experiment.tracking, experiment.paths.runs).log(data)
    return _objective(data.record)


def _hand_to_hydra(arguments: Sequence[str]) -> None:
    decorate = hydra.main(
        config_path=str(conf_dir().absolute()), config_name=CONFIG_NAME, version_base=VERSION_BASE
    )
    before = sys.argv
    sys.argv = ["faqbench", *arguments]
    try:
        decorate(run_cell)()
    finally:
        sys.argv = before


def _sweep_name(request: Request) -> str:
    first = request.experiments[0]
    ids = [run_id(e) for e in request.experiments]
    return first.tracking.group or first.report.name or f"sweep-{hash_json(ids)[:10]}"


def _objective(record: RunRecord) -> float:
    if not record.metrics or record.metrics[0].value is None:
        return float("inf")
    metric = record.metrics[0]
    assert metric.value is not None
    return -metric.value if metric.higher_is_better else metric.value


def _conclude(experiments: Sequence[Experiment], is_sweep: bool) -> int:
    """Show what the cells gave, write the report that was asked for, and choose the exit code."""
    from faqbench.tracking import tracker

    runs = experiments[0].paths.runs
    records = [read_record(runs / run_id(e)) for e in experiments]
    failed = [r for r in records if r.status == "failed"]
    print_table(summary_rows([r for r in records if r.status == "finished"]))
    for record in records:
        for gate in record.gates:
            if not gate.passed:
                print(f"{record.run_id}: gate {gate.name} failed: {gate.detail}", file=sys.stderr)
    report = experiments[0].report
    if report.name is not None:
        request = ReportRequest(
            runs=runs,
            reports=experiments[0].paths.reports,
            name=report.name,
            run_ids=tuple(run_id(e) for e in experiments),
            title=report.title,
        )
        paths = write_report(request)
        print(f"Report: {paths.html}")
        tracker(experiments[0].tracking, runs).show_report(paths.folder)
    elif not is_sweep and not failed:
        print(f"Record: {runs / records[0].run_id}")
    if failed and not is_sweep:
        print(f"faqbench: {failed[0].error}", file=sys.stderr)
        return 1 if _is_trace(failed[0]) else 2
    if failed:
        print_table([{"failed cell": r.run_id, "error": _last_line(r)} for r in failed])
        return 1
    return 0


def _is_trace(record: RunRecord) -> bool:
    """Say whether a failure is a traceback, ours to mend, rather than a sentence to the user."""
    return "\n" in (record.error or "")


def _last_line(record: RunRecord) -> str:
    return (record.error or "").strip().splitlines()[-1]
