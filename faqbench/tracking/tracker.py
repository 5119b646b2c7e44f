"""One tracker for every service, in which what goes wrong is one warning and no more; one for none.

A cell that runs in this context may be followed: then its record is handed over and not shown twice.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, cast

from faqbench.config.experiment import TrackingSection
from faqbench.interrupts import must_pass, raise_if_interrupted
from faqbench.records import RunData
from faqbench.tracking.samples import ProgressSample
from faqbench.tracking.view import RunHead, RunView, head_of, samples_of, view_of

_log = logging.getLogger("faqbench")
# What a service is made of: an exception that passed through one of these is the service's.
_PACKAGES = {"wandb": "wandb", "trackio": "trackio", "mlflow": "mlflow"}


class OpenRun(Protocol):
    """A run that a service shows while it goes on."""

    def sample(self, number: int, sample: ProgressSample) -> None:
        """Show a moment of the cell; the same number twice shows it once."""
        ...

    def finish(self, view: RunView) -> None:
        """Show what the run gave, and end it."""
        ...

    def abandon(self) -> None:
        """End a run that left no record, or whose showing failed."""
        ...

    def points(self, points: Sequence[Mapping[str, float]]) -> None:
        """Show numbers that are no cell's, a step each, and end the run."""
        ...

    def report(self, folder: Path) -> None:
        """Show a written report, its page, plots and tables, and end the run."""
        ...


class Service(Protocol):
    """A module that shows runs somewhere."""

    def open_run(self, head: RunHead, section: TrackingSection, runs: Path) -> OpenRun | None:
        """Begin to show a run, or take up one of the same name; None when nothing is to be shown."""
        ...


class Tracker:
    """Shows runs in the service that `tracking` names."""

    def __init__(self, section: TrackingSection, runs: Path) -> None:
        self.section = section
        self.runs = runs

    def log(self, data: RunData) -> None:
        """Show a run that ended, finished or failed.

        A run that is being followed live is handed to its follower; any other is shown from here.
        """
        if not _hand_over(data.record.run_id):
            self.show(data)

    def show(self, data: RunData) -> bool:
        """Show a run that ended, from its record alone, and return whether it is shown now."""
        record = data.record
        head = head_of(record.run_id, record.config, self.section.group, self.section.tags)
        with self.never_fails(f"run {record.run_id}"), self.open(head) as run:
            if run is not None:
                for number, sample in enumerate(samples_of(self.runs, record.run_id)):
                    run.sample(number, sample)
                run.finish(view_of(data, self.runs))
                return True
        return False

    def show_report(self, folder: Path) -> bool:
        """Show a written report, and return whether it is shown now."""
        head = RunHead(
            run_id=f"report-{folder.name}",
            group=self.section.group or folder.name,
            job_type="report",
            tags=self.section.tags,
            config={"report": folder.name},
        )
        with self.never_fails(f"report {folder.name}"), self.open(head) as run:
            if run is not None:
                run.report(folder)
                return True
        return False

    def show_points(
        self, name: str, config: Mapping[str, Any], points: Sequence[Mapping[str, float]]
    ) -> bool:
        """Show numbers that belong to no cell, such as the looks of a decision, in a run of their own.

        Args:
            name: of the run; the same name once more shows the same run.
            config: what is shown as its configuration.
            points: all of them so far, a step each.
        """
        group = self.section.group or name
        head = RunHead(run_id=name, group=group, job_type="settle", tags=self.section.tags, config=config)
        with self.never_fails(name), self.open(head) as run:
            if run is not None:
                run.points(points)
                return True
        return False

    @contextmanager
    def open(self, head: RunHead) -> Iterator[OpenRun | None]:
        """Yield the run in the service, or None where nothing is to be shown."""
        self.runs.mkdir(parents=True, exist_ok=True)
        run = self._service().open_run(head, self.section, self.runs)
        try:
            yield run
        except BaseException:
            if run is not None:
                run.abandon()
            raise

    def _service(self) -> Service:
        return cast("Service", importlib.import_module(f"faqbench.tracking.{self.section.name}"))

    @contextmanager
    def never_fails(self, what: str) -> Iterator[None]:
        """Turn whatever goes wrong in the service, the network or the disk into one warning.

        Raises:
            Interrupted: when a signal came, even where the service dropped its exception.
        """
        try:
            yield
            raise_if_interrupted()
        except BaseException as error:
            if must_pass(error):
                raise
            package = _PACKAGES[self.section.name]
            outside = isinstance(error, OSError | ImportError) or _passed_through(error, package)
            if not outside:
                raise
            reason = str(error).strip().splitlines() or [""]
            if isinstance(error, ImportError):
                reason = [f"{reason[0]}; pip install 'faqbench[{self.section.name}]'"]
            name = "W&B" if package == "wandb" else package
            _log.warning(
                "%s could not show %s (%s: %s); its record is complete",
                name,
                what,
                type(error).__name__,
                reason[0][:200],
            )


def _passed_through(error: BaseException, package: str) -> bool:
    """Return whether a package was on the stack; crashes have types of many modules and of none."""
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__", "").split(".")[0] == package:
            return True
        trace = trace.tb_next
    return False


class NoTracker:
    """Shows nothing."""

    def log(self, data: RunData) -> None:
        """See `Tracker.log`."""

    def show(self, data: RunData) -> bool:
        """See `Tracker.show`."""
        return False

    def show_report(self, folder: Path) -> bool:
        """See `Tracker.show_report`."""
        return False

    def show_points(
        self, name: str, config: Mapping[str, Any], points: Sequence[Mapping[str, float]]
    ) -> bool:
        """See `Tracker.show_points`."""
        return False


SECONDS_TO_ANSWER = 120  # that a follower gives its service, before the system ends it
SHOWN = "shown: "  # what a follower says before the name of a run that it has shown

# Takes the name of a run whose record now lies in `runs/`, and says whether somebody else will show it.
HandOver = Callable[[str], bool]
_current: ContextVar[HandOver | None] = ContextVar("hand_over", default=None)


@contextmanager
def followed_by(hand_over: HandOver) -> Iterator[None]:
    """Say inside this block to whom a cell's record is handed."""
    token = _current.set(hand_over)
    try:
        yield
    finally:
        _current.reset(token)


def is_followed() -> bool:
    """Whether somebody follows the cell that runs here."""
    return _current.get() is not None


def _hand_over(run_id: str) -> bool:
    """Give a run that ended to whoever follows it; False when it is to be shown from here."""
    take = _current.get()
    return take is not None and take(run_id)
