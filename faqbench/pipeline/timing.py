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
    """A stage under way; set `cached` when its result came from the cache.

    Attributes:
        cached: as recorded.
        inner_seconds: of the stages that ran inside it, which are counted there.
    """

    cached: bool = False
    inner_seconds: float = 0.0


class Timings:
    """Collects the timings of a run's stages."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.results: dict[str, StageTiming] = {}
        self._under_way: list[RunningStage] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[RunningStage]:
        """Time a stage; one that raises leaves no timing, one that comes again adds to its first.

        A stage may run inside another, as loading does when a stage first needs the model; its time
        is then not counted twice.
        """
        start, running = time.perf_counter(), RunningStage()
        self._under_way.append(running)
        try:
            yield running
        finally:
            self._under_way.pop()
        seconds = time.perf_counter() - start
        if self._under_way:
            self._under_way[-1].inner_seconds += seconds
        before = self.results.get(name, StageTiming(seconds=0.0, cached=True))
        self.results[name] = StageTiming(
            seconds=round(before.seconds + seconds - running.inner_seconds, 3),
            cached=before.cached and running.cached,
        )

    @property
    def elapsed(self) -> timedelta:
        """Wall-clock time since the run began."""
        return timedelta(seconds=time.perf_counter() - self.start)
