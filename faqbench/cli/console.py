"""What the terminal shows: rich progress bars on a terminal, plain lines everywhere else."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import psutil
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichBars
from rich.table import Table as RichTable
from rich.text import Text

from faqbench.cli.surroundings import current_verbosity
from faqbench.formatting import n_bytes, seconds
from faqbench.stages import PlainProgress, Progress
from faqbench.stages.cache import Advance
from faqbench.tables import Table

_LONGEST_WHOLE = 24
_NARROW = 72
_log = logging.getLogger("faqbench")


class MemoryColumn(ProgressColumn):
    """The memory that this process holds."""

    max_refresh = 0.5

    def __init__(self) -> None:
        super().__init__()
        self._process = psutil.Process()

    def render(self, task: Task) -> Text:
        """Return the resident set."""
        return Text(n_bytes(self._process.memory_info().rss), style="dim")


class RichProgress:
    """A bar with an estimate of the remaining time for every activity under way, and the memory."""

    def __init__(self, console: Console) -> None:
        wide = console.width >= _NARROW
        rest: list[ProgressColumn] = [TextColumn("left"), TimeRemainingColumn(), MemoryColumn()]
        self._bars = RichBars(
            TextColumn("{task.description}"),
            *([BarColumn()] if wide else []),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            *(rest if wide else [TimeRemainingColumn()]),
            console=console,
            transient=True,
        )
        self._depth = 0

    @contextmanager
    def activity(self, title: str, total: int) -> Iterator[Advance]:
        """See `Progress.activity`."""
        if self._depth == 0:
            self._bars.start()
        self._depth += 1
        task = self._bars.add_task(title, total=total)

        def advance(steps: int = 1) -> None:
            self._bars.advance(task, steps)

        try:
            yield advance
            elapsed = self._bars.tasks[self._bars.task_ids.index(task)].elapsed or 0.0
            self._bars.console.print(
                Text(f"  {title} ").append(seconds(elapsed), style="dim"), highlight=False
            )
        finally:
            self._bars.remove_task(task)
            self._depth -= 1
            if self._depth == 0:
                self._bars.stop()

    def note(self, text: str) -> None:
        """See `Progress.note`."""
        self._bars.console.print(text, style="yellow", markup=False, highlight=False)


class QuietProgress:
    """Says nothing of activities and notes; warnings and errors take other ways."""

    @contextmanager
    def activity(self, title: str, total: int) -> Iterator[Advance]:
        """See `Progress.activity`."""

        def advance(steps: int = 1) -> None:
            pass

        yield advance

    def note(self, text: str) -> None:
        """See `Progress.note`."""


class VerboseProgress:
    """Plain lines in any terminal: when an activity begins, every few seconds, when it ends."""

    def __init__(self) -> None:
        self._plain = PlainProgress(interval_seconds=5.0)
        self._process = psutil.Process()

    @contextmanager
    def activity(self, title: str, total: int) -> Iterator[Advance]:
        """See `Progress.activity`."""
        _log.info("%s: begins, %d steps, %s", title, total, self._memory())
        with self._plain.activity(title, total) as advance:
            yield advance
        _log.info("%s: %s", title, self._memory())

    def note(self, text: str) -> None:
        """See `Progress.note`."""
        self._plain.note(text)

    def _memory(self) -> str:
        return f"memory {n_bytes(self._process.memory_info().rss)}"


class _StandardError(logging.Handler):
    """Writes to standard error as it is now, not as it was when the handler was made."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        print(self.format(record), file=sys.stderr)


def console_progress() -> Progress:
    """Return the progress that suits standard error, and send the log there."""
    level = current_verbosity()
    if not _log.handlers:
        handler = _StandardError()
        handler.setFormatter(logging.Formatter("%(message)s"))
        _log.addHandler(handler)
        _log.propagate = False
    _log.setLevel({"quiet": logging.WARNING, "verbose": logging.DEBUG}.get(level, logging.INFO))
    if level == "quiet":
        return QuietProgress()
    if level == "verbose":
        return VerboseProgress()
    console = Console(stderr=True)
    return RichProgress(console) if console.is_terminal else PlainProgress()


def print_table(table: Table) -> None:
    """Print a table under its caption, as many rows as it shows at a glance; an empty one not at all.

    Where the terminal is too narrow for that many columns, every row is a paragraph of its own. A file or
    a pipe gets one plain line per row with every value whole, so that `grep` and `awk` find it.
    """
    rows = table.texts()[: table.shown]
    if not rows:
        return
    console = Console()
    if not console.is_terminal:
        print(*([table.caption] if table.caption else []), *_plain_lines(rows), sep="\n")
        return
    if table.caption:
        console.print(table.caption, style="bold", markup=False, highlight=False)
    console.print(make_table(rows, console.width), markup=False)


def print_damaged(damaged: Iterable[tuple[str, str]]) -> None:
    """Say on standard error what could not be read and is left out, and why: a line each."""
    for name, reason in damaged:
        print(f"{name}: {reason}", file=sys.stderr)


def make_table(rows: Sequence[Mapping[str, str]], width: int) -> RenderableType:
    """Return rows as a table, or as paragraphs where so many columns do not fit."""
    if _least_width(rows) > width:
        return _paragraphs(rows)
    table = RichTable(header_style="bold")
    for index, column in enumerate(rows[0]):
        # A space lets a long header wrap between a task and its split.
        header = Text(column.replace("_validation", " validation"))
        table.add_column(header, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*[Text(row[column]) for column in rows[0]])
    return table


def print_text(text: str) -> None:
    """Print a paragraph: wrapped between words on a terminal, as one line elsewhere."""
    console = Console()
    console.print(Text(text), highlight=False, soft_wrap=not console.is_terminal)


def _plain_lines(rows: Sequence[Mapping[str, str]]) -> Iterator[str]:
    widths = {column: max(len(column), *(len(r[column]) for r in rows)) for column in rows[0]}
    for row in ({column: column for column in widths}, *rows):
        yield "  ".join(row[column].ljust(width) for column, width in widths.items()).rstrip()


def _least_width(rows: Sequence[Mapping[str, str]]) -> int:
    """Return the width below which a table would break words that a reader wants whole."""
    words = ([len(word) for row in rows for word in row[column].split()] or [0] for column in rows[0])
    return sum(min(max(lengths), _LONGEST_WHOLE) + 3 for lengths in words) + 1


def _paragraphs(rows: Sequence[Mapping[str, str]]) -> Text:
    text = Text()
    for row in rows:
        (_, name), *rest = row.items()
        text.append(f"{name}\n", style="bold")
        lines = (f"{key}: {value}" if key else value for key, value in rest if value)
        text.append("".join(f"  {line}\n" for line in lines))
    text.rstrip()
    return text
