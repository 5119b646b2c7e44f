"""Live metrics of a cell: its stage, seconds and memory, while it runs and without touching it.

    the cell's process                       the follower's process
    stage(), advance() -> counters           python -m faqbench.tracking.follower
    a thread -> runs/_progress/<id>.jsonl -> reads its lines and shows them
    record written, log(data) -> "done"   -> shows the record in the same run, and ends
    goes on with the next cell
    wait_for_followers() at the end

The cell's process imports no service: it counts steps, and a thread writes a line now and then. What a
service costs, and whatever goes wrong with it, happens in the follower. The file of samples is written
under every `tracking`, `none` included, since `faqbench watch` reads it.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

import faqbench
from faqbench.config import Experiment, run_id
from faqbench.interrupts import raise_if_interrupted
from faqbench.records import read_run
from faqbench.stages import Progress
from faqbench.stages.progress import Advance
from faqbench.tracking.samples import End, ProgressWriter, Sample
from faqbench.tracking.tracker import SECONDS_TO_ANSWER, Tracker, followed_by

_log = logging.getLogger("faqbench")
_SHORTEST_INTERVAL = 2.0
_SAMPLES_PER_AGE = 100  # a cell of any length has some hundreds of samples
_PATIENCE_SECONDS = 60.0
_PATIENCE_WHEN_STOPPED = 3.0


@contextmanager
def live(experiment: Experiment, progress: Progress) -> Iterator[Progress]:
    """Show a cell while it runs: yield the progress to run it with.

    The record is shown by `tracker(...).log(data)` inside the block. A block that ends without it,
    as after Ctrl-C, leaves a run that is marked as failed. Nothing of this raises or changes the cell.
    """
    section = experiment.tracking
    writer = ProgressWriter(experiment.paths.runs, run_id(experiment), section.group)
    watched = WatchedProgress(progress)
    sampler = _Sampler(watched, writer)
    follower = None
    try:
        if section.name != "none" and section.mode != "disabled":
            follower = _FollowerProcess(experiment, sampler)
        with followed_by(follower):
            yield watched
        sampler.stop("ended")
    finally:
        sampler.stop("stopped")
        if follower is not None:
            follower.leave()


@dataclass
class RunningStage:
    """A stage under way and its steps."""

    title: str
    done: int
    total: int


class WatchedProgress:
    """Passes everything on to another progress, and counts; no step follows an interrupt."""

    def __init__(self, inner: Progress) -> None:
        self._inner = inner
        self.stages: list[RunningStage] = []
        self.changed = threading.Event()

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Advance]:
        """See `Progress.stage`."""
        raise_if_interrupted()
        running = RunningStage(title=title, done=0, total=total)
        self.stages.append(running)
        self.changed.set()
        try:
            with self._inner.stage(title, total) as inner:

                def advance(steps: int = 1) -> None:
                    raise_if_interrupted()
                    running.done += steps
                    inner(steps)

                yield advance
        finally:
            self.stages.remove(running)
            self.changed.set()

    def note(self, text: str) -> None:
        """See `Progress.note`."""
        self._inner.note(text)


class _Sampler:
    """A thread that writes a sample at every change of stage, and now and then."""

    def __init__(self, watched: WatchedProgress, writer: ProgressWriter) -> None:
        self._watched = watched
        self._writer = writer
        self._start = time.monotonic()
        self._process = psutil.Process()
        self._is_over = False
        self._thread = threading.Thread(target=self._work, name="faqbench-live", daemon=True)
        self._thread.start()

    def stop(self, end: End) -> None:
        """Take a last sample and write how the cell ended; only the first call counts."""
        if self._is_over:
            return
        self._is_over = True
        self._watched.changed.set()
        self._thread.join(timeout=5.0)
        self._writer.end(end)

    def _work(self) -> None:
        while True:
            self._watched.changed.clear()
            self._writer.add(self._sample())
            if self._is_over:
                return
            age = time.monotonic() - self._start
            self._watched.changed.wait(max(_SHORTEST_INTERVAL, age / _SAMPLES_PER_AGE))

    def _sample(self) -> Sample:
        stages = list(self._watched.stages)
        stage = stages[-1] if stages else RunningStage(title="", done=0, total=0)
        return Sample(
            seconds=round(time.monotonic() - self._start, 2),
            stage=stage.title,
            done=stage.done,
            total=stage.total,
            memory_bytes=self._process.memory_info().rss,
            device_bytes=_device_bytes(),
        )


class _FollowerProcess:
    """The process that shows this cell; it lives on its own and may die on its own."""

    def __init__(self, experiment: Experiment, sampler: _Sampler) -> None:
        self.run_id = run_id(experiment)
        self._section = experiment.tracking
        self._runs = experiment.paths.runs
        self._sampler = sampler
        self._process: subprocess.Popen[str] | None = None
        task = {
            "run_id": self.run_id,
            "runs": str(experiment.paths.runs.absolute()),
            "section": experiment.tracking.model_dump_json(),
            "config": experiment.model_dump(mode="json"),
        }
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "faqbench.tracking.follower"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=os.environ | {"PYTHONPATH": _import_path()},
                start_new_session=True,  # Ctrl-C is for the cell
            )
        except OSError as error:
            _log.warning("%s: no live metrics: %s", self.run_id, error)
            return
        threading.Thread(target=self._relay, name="faqbench-relay", daemon=True).start()
        self._say(json.dumps(task))

    def finish(self) -> bool:
        """Let it show the record, while this process goes on."""
        self._sampler.stop("ended")
        if not self._say("done"):
            return False
        self._hang_up()
        _showing.append(self)
        return True

    def leave(self) -> None:
        """Close the line to it: a follower that was not told "done" marks its run as failed."""
        if self._process is not None and self._hang_up():
            self._wait(_PATIENCE_WHEN_STOPPED)
            _left.append(self._process)

    def conclude(self, seconds: float) -> None:
        """Wait for it; when it ended badly, show the record from here."""
        if self._wait(seconds):
            return
        assert self._process is not None
        if self._process.returncode == -signal.SIGALRM:  # from here it would hang as well
            _log.warning(
                "%s did not answer for %d s and does not show run %s; its record is complete",
                self._section.name,
                SECONDS_TO_ANSWER,
                self.run_id,
            )
        else:
            tracker = Tracker(self._section, self._runs)
            with tracker.never_fails(f"run {self.run_id}"):
                tracker.show(read_run(self._runs / self.run_id))

    def _hang_up(self) -> bool:
        """Close the line; False when it was closed before."""
        assert self._process is not None and self._process.stdin is not None
        if self._process.stdin.closed:
            return False
        with suppress(OSError):
            self._process.stdin.close()
        return True

    def _say(self, line: str) -> bool:
        """Write a line to it; False when it has died."""
        if self._process is None or self._process.poll() is not None:
            return False
        assert self._process.stdin is not None, "it was opened with a pipe"
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except OSError:
            return False
        return True

    def _wait(self, seconds: float) -> bool:
        """Wait for its end, but not for ever; False when it ended badly."""
        assert self._process is not None, "only a process that started is waited for"
        try:
            return self._process.wait(seconds) == 0
        except subprocess.TimeoutExpired:
            _log.info("%s: still being shown, in the background", self.run_id)
            return True

    def _relay(self) -> None:
        """Pass what it says on to the log."""
        assert self._process is not None and self._process.stdout is not None
        with suppress(OSError, ValueError), self._process.stdout as lines:
            for line in lines:
                _log.warning("%s", line.rstrip())


# This process's followers that were told "done": its only trace outside of a `live` block.
_showing: list[_FollowerProcess] = []
# Those that were left, perhaps still at work: Python complains of a child that nobody remembers.
_left: list[subprocess.Popen[str]] = []


def wait_for_followers() -> None:
    """Wait until every record that was handed over is shown; a command does so at its end."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while _showing:
        _showing.pop().conclude(max(1.0, deadline - time.monotonic()))


def _device_bytes() -> int | None:
    """Return what this process holds on its accelerator, if it has one at work."""
    torch = sys.modules.get("torch")
    # The cell may be importing torch just now: then not all of it is there.
    cuda: Any = getattr(torch, "cuda", None)
    if cuda is None or not hasattr(cuda, "memory_reserved") or not cuda.is_initialized():
        return None
    return int(cuda.memory_reserved())


def _import_path() -> str:
    """Let the follower import what this process runs, wherever that lies."""
    here = str(Path(faqbench.__file__).parent.parent)
    return os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
