"""Verbs that show runs as they run, here or in a tracking service: watch, sync, wandb-report."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from faqbench import formatting
from faqbench.cli.arguments import Flag, KeysOfRuns, KeysOfSelection, between, read_arguments
from faqbench.cli.console import console_progress, make_table, print_damaged
from faqbench.cli.results import find_record
from faqbench.config import UserError, check_tracking, did_you_mean
from faqbench.config.experiment import TrackingSection
from faqbench.foreign import is_name
from faqbench.records import RunRecord, find_heads, read_run, read_sweep, sweep_names
from faqbench.report import ReportRequest, answer, select_runs
from faqbench.tracking import ProgressLog, find_progress, tracker
from faqbench.tracking.wandb import publish

_MOST_ROWS = 40


class WatchKeys(KeysOfRuns):
    """What is watched, and how often.

    Attributes:
        name: the sweep; the latest one unless given, and all runs where there is none.
        interval: seconds between two looks.
    """

    name: str | None = None
    interval: Annotated[float, between(0.1, 3600, "a number of seconds from 0.1 to 3600")] = 2.0


@dataclass(frozen=True, kw_only=True)
class Status:
    """One cell as it stands: `state` is finished, failed, running, killed, stopped or waiting."""

    run_id: str
    state: str
    detail: str
    seconds: float | None
    memory_bytes: int | None


def watch(arguments: list[str]) -> int:
    """Watch a sweep, or all runs: what finished, what runs and how far it is; name=… runs=… interval=…."""
    _, keys = read_arguments("watch", arguments, WatchKeys)
    runs = keys.runs
    name, run_ids = _cells(runs, keys.name)
    print_damaged([*find_heads(runs)[1], *find_progress(runs)[1]])
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
        console.print(_view(name, statuses(runs, run_ids)))
        return 0
    cells = statuses(runs, run_ids)
    with Live(_view(name, cells, console), console=console, auto_refresh=False) as shown:
        while any(s.state in ("running", "waiting") for s in cells):
            time.sleep(keys.interval)
            name, run_ids = _cells(runs, keys.name)
            cells = statuses(runs, run_ids)
            shown.update(_view(name, cells, console), refresh=True)
    return 0


def statuses(runs: Path, run_ids: Sequence[str] | None) -> list[Status]:
    """Return how cells stand, in the order of their run ids; all that there are when None are named."""
    records, damaged = find_heads(runs)
    recorded = {record.run_id: record for record in records}
    logs = {log.run_id: log for log in find_progress(runs)[0]}
    broken = {name for name, _ in damaged}
    alive = [i for i, log in logs.items() if log.is_alive and i not in recorded]
    order = run_ids if run_ids is not None else [*recorded, *sorted(broken), *alive]
    return [_status(i, recorded.get(i), logs.get(i), is_damaged=i in broken) for i in dict.fromkeys(order)]


def _status(run_id: str, record: RunRecord | None, log: ProgressLog | None, *, is_damaged: bool) -> Status:
    if log is not None and log.is_alive:
        return _running(run_id, log)
    if record is not None:
        detail = _first_metric(record) if record.status == "finished" else record.error_line
        return Status(
            run_id=run_id,
            state=record.status,
            detail=detail,
            seconds=record.seconds,
            memory_bytes=record.peak_memory_bytes,
        )
    if is_damaged:
        return _plain(run_id, "damaged", "its record cannot be read; running it again replaces it")
    if log is None:
        return _plain(run_id, "waiting", "")
    if log.end is None:
        return _plain(run_id, "killed", "its process is gone; running the sweep again repeats it")
    return _plain(run_id, "stopped", "running the sweep again repeats it")


def _plain(run_id: str, state: str, detail: str) -> Status:
    return Status(run_id=run_id, state=state, detail=detail, seconds=None, memory_bytes=None)


def _running(run_id: str, log: ProgressLog) -> Status:
    if not log.samples:
        return _plain(run_id, "running", "starting")
    last = log.samples[-1]
    detail = last.activity or "between two activities"
    if last.total > 1:
        detail += f" {last.done}/{last.total}"
    silent = time.time() - log.modified
    if silent > 60 + last.seconds / 20:
        detail += f", silent for {formatting.seconds(silent)}"
    return Status(
        run_id=run_id, state="running", detail=detail, seconds=last.seconds, memory_bytes=last.memory_bytes
    )


def _first_metric(record: RunRecord) -> str:
    first = record.metrics[0] if record.metrics else None
    if first is None or first.value is None:
        return ""
    failed = sum(not gate.passed for gate in record.gates)
    gates = f", {formatting.count(failed, 'gate')} failed" if failed else ""
    return f"{first.task} {first.name} {first.value:.4g}{gates}"


def _cells(runs: Path, name: str | None) -> tuple[str, list[str] | None]:
    """Return the name and cells of the sweep to watch; no cells are all runs.

    Raises:
        UserError: when there is no such sweep.
    """
    if not runs.is_dir():
        raise UserError(f"There is no folder {runs}; runs=FOLDER names another.")
    names = sweep_names(runs)
    if name is None:
        name = names[-1] if names else None
    if name is None:
        return "all runs", None
    run_ids = read_sweep(runs, name)
    if run_ids is None:
        raise UserError(f"There is no sweep '{name}' in {runs}.{did_you_mean(name, names)}")
    return name, run_ids


def _view(name: str, statuses: Sequence[Status], console: Console | None = None) -> Group:
    counts = {s: sum(x.state == s for x in statuses) for s in dict.fromkeys(x.state for x in statuses)}
    head = f"{name}: " + ", ".join(f"{n} {state}" for state, n in counts.items())
    left = _seconds_left(statuses)
    head += f"; about {formatting.seconds(left)} left" if left else ""
    shown = _worth_showing(statuses)
    rows = [
        {
            "cell": s.run_id,
            "state": s.state,
            "": s.detail,
            "time": "" if s.seconds is None else formatting.seconds(s.seconds),
            "memory": "" if s.memory_bytes is None else formatting.n_bytes(s.memory_bytes),
        }
        for s in shown
    ]
    hidden = len(statuses) - len(shown)
    tail = [Text(f"and {hidden} more finished or waiting", style="dim")] if hidden else []
    width = console.width if console else 120
    return Group(Text(head or "no runs yet"), *([make_table(rows, width)] if rows else []), *tail)


def _worth_showing(statuses: Sequence[Status]) -> list[Status]:
    """Return as many as fit: those that run or went wrong, then what finished last, then waits."""
    rank = {"running": 0, "failed": 1, "killed": 1, "stopped": 1, "damaged": 1, "finished": 2}
    order = sorted(range(len(statuses)), key=lambda i: (rank.get(statuses[i].state, 3), -i))
    kept = set(order[:_MOST_ROWS])
    return [s for i, s in enumerate(statuses) if i in kept]


def _seconds_left(statuses: Sequence[Status]) -> float | None:
    """Guess from the cells that finished how long the others will take."""
    took = [s.seconds for s in statuses if s.state == "finished" and s.seconds]
    running = [s.seconds or 0.0 for s in statuses if s.state == "running"]
    n_waiting = sum(s.state == "waiting" for s in statuses)
    if not took or not running:
        return None
    typical = statistics.median(took)
    rest = sum(max(typical - seconds, 0.0) for seconds in running)
    return (rest + n_waiting * typical) / len(running)


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


def sync(arguments: list[str]) -> int:
    """Show runs in W&B, trackio or MLflow from runs/ alone: sync [RUN ...] select=… report=… mode=…."""
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
    with progress.activity("sync", len(records)) as advance:
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


class WandbReportKeys(KeysOfSelection):
    """What the report is about, and where it goes.

    Attributes:
        name: the sweep, whose W&B group the panels show.
        baseline: the method or run that others are compared with.
        title: the report's title.
        project: the W&B project.
        entity: the W&B entity.
        draft: whether to save a draft.
    """

    name: str | None = None
    baseline: str | None = None
    title: str | None = None
    project: str = "faqbench"
    entity: str | None = None
    draft: Flag = False


def wandb_report(arguments: list[str]) -> int:
    """Make a W&B report, with the answer in words and panels over a sweep's runs: name=… project=…."""
    _, keys = read_arguments("wandb-report", arguments, WandbReportKeys)
    if keys.name is None:
        raise UserError("wandb-report needs name=SWEEP, the sweep that it is about.")
    said = answer(
        ReportRequest(
            runs=keys.runs,
            reports=keys.runs,
            name=keys.name,
            select=keys.select,
            baseline=keys.baseline,
            title=keys.title,
        )
    )
    if not said.n_runs:
        raise UserError(f"No run of '{keys.name}' in {keys.runs} has finished.")
    address = publish(said, project=keys.project, entity=keys.entity, group=keys.name, draft=keys.draft)
    print(f"W&B report: {address}")
    return 0
