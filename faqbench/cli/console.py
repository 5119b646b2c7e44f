"""What the terminal shows: rich progress bars on a terminal, plain lines everywhere else."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichBars
from rich.table import Table

from faqbench.stages import PlainProgress, Progress
from faqbench.stages.progress import Advance

_NARROWEST_COLUMN = 10


class RichProgress:
    """A bar with an estimate of the remaining time for every stage under way."""

    def __init__(self, console: Console) -> None:
        self._bars = RichBars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._depth = 0

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Advance]:
        """See `Progress.stage`."""
        if self._depth == 0:
            self._bars.start()
        self._depth += 1
        task = self._bars.add_task(title, total=total)

        def advance(steps: int = 1) -> None:
            self._bars.advance(task, steps)

        try:
            yield advance
            seconds = self._bars.tasks[self._bars.task_ids.index(task)].elapsed or 0.0
            self._bars.console.print(f"  {title} [dim]{seconds:.1f} s[/dim]", highlight=False)
        finally:
            self._bars.remove_task(task)
            self._depth -= 1
            if self._depth == 0:
                self._bars.stop()

    def note(self, text: str) -> None:
        """See `Progress.note`."""
        self._bars.console.print(text, style="yellow", markup=False, highlight=False)


class _StandardError(logging.Handler):
    """Writes to standard error as it is now, not as it was when the handler was made."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        print(self.format(record), file=sys.stderr)


def console_progress() -> Progress:
    """Return the progress that suits standard error, and send the log there."""
    log = logging.getLogger("faqbench")
    if not log.handlers:
        handler = _StandardError()
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False
    console = Console(stderr=True)
    return RichProgress(console) if console.is_terminal else PlainProgress()


def print_table(rows: Sequence[Mapping[str, str]], title: str | None = None) -> None:
    """Print rows as a table; columns are the keys of the first row, in their order.

    Where the terminal is too narrow for that many columns, every row is a paragraph of its own.
    """
    if not rows:
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(120, 16 * len(rows[0])))
    if title:
        console.print(title, style="bold", markup=False, highlight=False)
    if console.width < _NARROWEST_COLUMN * len(rows[0]):
        _print_paragraphs(console, rows)
        return
    table = Table(header_style="bold")
    for index, column in enumerate(rows[0]):
        # A space lets a long header wrap between a task and its split.
        header = column.replace("_validation", " validation")
        table.add_column(header, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*[row[column] for column in rows[0]])
    console.print(table, markup=False)


def _print_paragraphs(console: Console, rows: Sequence[Mapping[str, str]]) -> None:
    for row in rows:
        (_, name), *rest = row.items()
        console.print(name, style="bold", markup=False, highlight=False)
        for key, value in rest:
            if value:
                console.print(f"  {key}: {value}", markup=False, highlight=False)
