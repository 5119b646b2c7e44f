"""Show runs in W&B, trackio or MLflow from runs/ alone: sync [RUN ...] select=… report=… mode=…."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from faqbench.cli.arguments import KeysOfSelection, read_arguments
from faqbench.cli.console import console_progress, print_damaged
from faqbench.cli.show import find_record
from faqbench.config import UserError, check_tracking
from faqbench.config.experiment import TrackingSection
from faqbench.foreign import is_name
from faqbench.records import RunRecord, read_run
from faqbench.report import ReportRequest, select_runs
from faqbench.tracking import tracker


class SyncKeys(KeysOfSelection):
    """What is shown where.

    Attributes:
        report: a written report, shown as a run of its own beside its cells.
        to: the service.
        mode: whether it is reached.
        project: the project there.
        entity: the W&B entity.
        group: the group there, instead of the one the run was made in.
        reports: the folder of reports.
    """

    report: str | None = None
    to: Literal["wandb", "trackio", "mlflow"] = "wandb"
    mode: Literal["auto", "online", "offline"] = "auto"
    project: str = "faqbench"
    entity: str | None = None
    group: str | None = None
    reports: Path = Path("reports")


def run(arguments: list[str]) -> int:
    """Show runs; twice is the same as once, since names, ids and steps come from files alone."""
    words, keys = read_arguments("sync", arguments, SyncKeys, n_words=None)
    runs, progress = keys.runs, console_progress()
    if keys.report is not None:
        folder = keys.reports / keys.report
        if not is_name(keys.report) or not (folder / "index.html").is_file():
            raise UserError(f"There is no report in {folder}; `faqbench report` writes one.")
        _check_report(folder)
        return _code([tracker(_section({}, keys), runs).show_report(folder)], "reports")
    records = _records(runs, words, keys)
    sections = [_section(record.config.get("tracking") or {}, keys) for record in records]
    shown = []
    with progress.stage("sync", len(records)) as advance:
        for record, section in zip(records, sections, strict=True):
            try:
                data = read_run(runs / record.run_id)
            except ValueError as error:
                print_damaged([(record.run_id, str(error))])
                shown.append(False)
            else:
                shown.append(tracker(section, runs).show(data))
            advance()
    return _code(shown, "runs")


def _check_report(folder: Path) -> None:
    """Refuse a report with links or devices in its folder: what they lead to is no part of it.

    Raises:
        UserError: naming the first.
    """
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise UserError(f"{path} is no regular file, so the report is not shown; move it away.")


def _code(shown: Sequence[bool], what: str) -> int:
    """Return 1 when something was not shown; a service that failed has said why."""
    if all(shown):
        return 0
    print(
        f"faqbench: {shown.count(False)} of {len(shown)} {what} are not shown; their files are complete. "
        "(Mode 'disabled', also of WANDB_MODE, shows nothing.)",
        file=sys.stderr,
    )
    return 1


def _records(runs: Path, words: list[str], keys: SyncKeys) -> list[RunRecord]:
    if words:
        return [find_record(runs, word) for word in words]
    request = ReportRequest(runs=runs, reports=runs, name=keys.group or "all", select=keys.select)
    selection = select_runs(request)
    print_damaged(selection.damaged)
    records = [*selection.finished, *selection.failed]
    if not records:
        raise UserError(f"There are no runs in {runs} to show.")
    return records


def _section(recorded: dict[str, object], keys: SyncKeys) -> TrackingSection:
    """Return the section that a run is shown with: where it was made, unless said otherwise."""
    places = ("mode", "project", "entity", "group")
    section: dict[str, object] = {"name": keys.to} | {k: getattr(keys, k) for k in places}
    section |= {k: recorded[k] for k in ("project", "entity", "group") if recorded.get(k)}
    section |= {"tags": tuple(str(tag) for tag in _list(recorded.get("tags")))}
    section |= {k: getattr(keys, k) for k in places if k in keys.model_fields_set}
    made = TrackingSection.model_validate(section)
    check_tracking(made)
    return made


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []
