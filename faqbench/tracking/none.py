"""`tracking=none`: the record is all there is."""

from __future__ import annotations

from pathlib import Path

from faqbench.records import RunData


class NoTracker:
    """Shows nothing."""

    def log(self, data: RunData) -> None:
        """See `Tracker.log`."""

    def show(self, data: RunData) -> None:
        """See `Tracker.show`."""

    def show_report(self, folder: Path) -> None:
        """See `Tracker.show_report`."""
