"""`tracking=none`: the record is all there is."""

from __future__ import annotations

from faqbench.records import RunData


class NoTracker:
    """Shows nothing."""

    def log(self, data: RunData) -> None:
        """See `Tracker.log`."""
