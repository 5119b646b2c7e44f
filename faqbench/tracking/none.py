"""`tracking=none`: the record is all there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from faqbench.records import RunData


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
