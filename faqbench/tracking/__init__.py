"""Tracking: a view of finished runs in somebody's dashboard, rebuilt from their records.

The record under `runs/` is the truth and is written first; a tracker reads it and shows it. So a
tracker may be slow, offline, broken or absent, and no result changes or is lost:

    tracker(experiment.tracking, runs).log(data)       after a cell is written
    tracker(experiment.tracking, runs).log(read_run(folder))     any time later, with the same
    result

The contract of a `Tracker`, which `tests/unit/tracking` checks:

* `log` never raises for a failure of its own service, of the network or of the disk; it leaves one
  warning in the log;
* logging the same record twice shows one run: names and ids come from the record alone;
* nothing but the record is shown: no code, no git state, no system metrics, no credentials.

Adding a tracker: one file here with a class that has `log`, its name in `TrackingSection.name`, and
a line in `tracker` below.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from faqbench.config.experiment import TrackingSection
from faqbench.records import RunData
from faqbench.tracking.none import NoTracker
from faqbench.tracking.wandb import WandbTracker

__all__ = ["NoTracker", "Tracker", "WandbTracker", "tracker"]


class Tracker(Protocol):
    """Shows finished runs somewhere."""

    def log(self, data: RunData) -> None:
        """Show one run, finished or failed."""
        ...


def tracker(section: TrackingSection, runs: Path) -> Tracker:
    """Return the tracker that `tracking` asks for.

    Args:
        section: the experiment's `tracking`.
        runs: the folder of runs; a tracker that needs files of its own keeps them below it.
    """
    match section.name:
        case "wandb":
            return WandbTracker(section, runs)
        case "none":
            return NoTracker()
