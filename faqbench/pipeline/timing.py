"""Seconds per stage of one run, and whether a stage's result was already there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from faqbench.records import StageTiming


@dataclass
class RunningStage:
    """A stage under way; set `cached` when its result came from the cache."""

    cached: bool = False


class Timings:
    """Collects the timings of a run's stages."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.results: dict[str, StageTiming] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[RunningStage]:
        """Time a stage; one that raises leaves no timing."""
        start, running = time.perf_counter(), RunningStage()
        yield running
        seconds = round(time.perf_counter() - start, 3)
        self.results[name] = StageTiming(seconds=seconds, cached=running.cached)

    @property
    def elapsed(self) -> timedelta:
        """Wall-clock time since the run began."""
        return timedelta(seconds=time.perf_counter() - self.start)
