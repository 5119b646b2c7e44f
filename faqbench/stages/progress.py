"""What a long stage tells its user: a protocol of one method, and its plain-lines implementation.

The command line supplies a rich implementation on a terminal. Stages never print.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

_log = logging.getLogger("faqbench")


class Advance(Protocol):
    """Called by a stage after each finished step."""

    def __call__(self, steps: int = 1) -> None:
        """Say that so many more steps are done."""
        ...


class Progress(Protocol):
    """Shows stages as they run; every stage is one context."""

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Advance]:
        """Announce a stage of `total` steps and yield the function that advances it."""
        ...

    def note(self, text: str) -> None:
        """Show one line that is worth reading, as a warning is."""
        ...


class PlainProgress:
    """One log line when a stage ends, and one every `interval_seconds` with an estimate of the rest."""

    def __init__(self, interval_seconds: float = 30.0) -> None:
        self._interval_seconds = interval_seconds

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Advance]:
        """See `Progress.stage`."""
        start = shown = time.monotonic()
        done = 0

        def advance(steps: int = 1) -> None:
            nonlocal done, shown
            done += steps
            now = time.monotonic()
            if now - shown >= self._interval_seconds and done < total:
                shown = now
                left = (now - start) / done * (total - done)
                _log.info("%s: %d/%d, about %.0f s left", title, done, total, left)

        yield advance
        _log.info("%s: done in %.1f s", title, time.monotonic() - start)

    def note(self, text: str) -> None:
        """See `Progress.note`."""
        _log.warning("%s", text)
