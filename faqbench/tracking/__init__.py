"""Tracking: a view of runs in somebody's dashboard, live while they run, rebuilt from their records.

The record under `runs/` is the truth and is written first; a tracker reads it and shows it. So a
tracker may be slow, offline, broken or absent, and no result changes or is lost:

    with live(experiment, progress) as progress:      while a cell runs
        data = run it
        tracker(experiment.tracking, runs).log(data)  after its record is written
    wait_for_followers()                              at the end of the command
    tracker(section, runs).log(read_run(folder))      any time later, with the same result

What is kept to, and `tests/unit/tracking` checks:

* `log` never raises for a failure of its service, of the network or of the disk; it leaves one
  warning in the log;
* showing the same record twice shows one run: names, ids and steps come from files alone;
* nothing but the record and its samples is shown: no code, no git state, no credentials.

Reading path: `view` (what is shown), `tracker` (how nothing can fail), one module per service, `live`
and `follower` (live metrics from a process of their own), `samples` (the file between them).

Adding a service: one module here with `open_run` as `tracker.Service` says, its name
in `TrackingSection.name` and in `tracker._PACKAGES`, and a yaml in `conf/tracking/`.
"""

from __future__ import annotations

import os
from pathlib import Path

from faqbench.config.experiment import TrackingSection
from faqbench.tracking.live import followed, live, wait_for_followers
from faqbench.tracking.samples import ProgressLog, ProgressSample, find_progress, read_progress
from faqbench.tracking.tracker import NoTracker, Tracker, followed_by

__all__ = [
    "NoTracker",
    "ProgressLog",
    "ProgressSample",
    "Tracker",
    "find_progress",
    "followed",
    "followed_by",
    "is_awaited",
    "live",
    "read_progress",
    "tracker",
    "wait_for_followers",
]


def is_awaited() -> bool:
    """Whether a W&B sweep agent started this process and waits for a run's numbers."""
    return "WANDB_SWEEP_ID" in os.environ


def tracker(section: TrackingSection, runs: Path) -> Tracker | NoTracker:
    """Return the tracker that `tracking` asks for.

    Args:
        section: the experiment's `tracking`.
        runs: the folder of runs; a service that needs files of its own keeps them below it.
    """
    return NoTracker() if section.name == "none" else Tracker(section, runs)
