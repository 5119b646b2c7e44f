"""Live metrics of a cell: its activity, seconds and memory, while it runs and without touching it.

    the cell's process                       the follower's process, one for all cells of a sweep
    activity(), advance() -> counters        python -m faqbench.tracking.follower
    a thread -> runs/_progress/<id>.jsonl -> reads its lines and shows them
    record written, log(data) -> "done"   -> shows the record in the same run
    goes on with the next cell               goes on with the next cell
    wait_for_followers() at the end       -> ends

The cell's process imports no service: it counts steps, and a thread writes a line now and then. What a
service costs, and whatever goes wrong with it, happens in the follower; when it dies, the next cell has a
new one. Where each cell has a process of its own, the process that started them keeps the follower. The
file of samples is written under every `tracking`, `none` included, since `faqbench watch` reads it.
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
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil

import faqbench
from faqbench.config import Experiment, run_id
from faqbench.interrupts import raise_if_interrupted
from faqbench.records import read_run
from faqbench.stages import Progress
from faqbench.stages.cache import Advance
from faqbench.tracking.samples import End, ProgressSample, ProgressWriter
from faqbench.tracking.tracker import SECONDS_TO_ANSWER, SHOWN, Tracker, followed_by, is_followed

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
    watched = WatchedProgress(progress)
    config, runs, group = (
        experiment.model_dump(mode="json"),
        experiment.paths.runs,
        experiment.tracking.group,
    )
    sampler = _Sampler(watched, ProgressWriter(runs, run_id(experiment), group, config))
    with ExitStack() as ending:
        ending.callback(sampler.stop, "stopped")
        ending.enter_context(followed(experiment, os.getpid(), partial(sampler.stop, "ended")))
        ending.callback(sampler.stop, "stopped")  # before the follower is left
        yield watched
        sampler.stop("ended")


@contextmanager
def followed(
    experiment: Experiment, process: int, before_handing_over: Callable[[], None] | None = None
) -> Iterator[None]:
    """Let this process's follower show a cell, unless another process's does.

    Args:
        experiment: the cell.
        process: the id of the process that runs it and writes its samples.
        before_handing_over: what is to be done before the follower looks for the last sample.
    """
    section = experiment.tracking
    if section.name == "none" or section.mode == "disabled" or is_followed():
        yield
        return
    follower = _follower(run_id(experiment))
    if follower is None or not follower.begin(experiment, process):
        yield
        return

    def hand_over(name: str) -> bool:
        if before_handing_over is not None:
            before_handing_over()
        return follower.finish(name)

    try:
        with followed_by(hand_over):
            yield
    finally:
        follower.leave()


@dataclass
class RunningActivity:
    """What is under way, and its steps."""

    title: str
    done: int
    total: int


class WatchedProgress:
    """Passes everything on to another progress, and counts; no step follows an interrupt."""

    def __init__(self, inner: Progress) -> None:
        self._inner = inner
        self.activities: list[RunningActivity] = []
        self.changed = threading.Event()

    @contextmanager
    def activity(self, title: str, total: int) -> Iterator[Advance]:
        """See `Progress.activity`."""
        raise_if_interrupted()
        running = RunningActivity(title=title, done=0, total=total)
        self.activities.append(running)
        self.changed.set()
        try:
            with self._inner.activity(title, total) as inner:

                def advance(steps: int = 1) -> None:
                    raise_if_interrupted()
                    running.done += steps
                    inner(steps)

                yield advance
        finally:
            self.activities.remove(running)
            self.changed.set()

    def note(self, text: str) -> None:
        """See `Progress.note`."""
        self._inner.note(text)


class _Sampler:
    """A thread that writes a sample at every change of activity, and now and then."""

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

    def _sample(self) -> ProgressSample:
        under_way = list(self._watched.activities)
        activity = under_way[-1] if under_way else RunningActivity(title="", done=0, total=0)
        return ProgressSample(
            seconds=round(time.monotonic() - self._start, 2),
            activity=activity.title,
            done=activity.done,
            total=activity.total,
            memory_bytes=self._process.memory_info().rss,
            device_bytes=_device_bytes(),
        )


class _FollowerProcess:
    """The process that shows this process's cells; it lives on its own and may die on its own."""

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._current: Experiment | None = None
        self._handed: dict[str, Experiment] = {}  # told to show, and not shown as far as we know
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "faqbench.tracking.follower"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"PYTHONPATH": _import_path()},
            start_new_session=True,  # Ctrl-C is for the cell
        )
        self._relaying = threading.Thread(target=self._relay, name="faqbench-relay", daemon=True)
        self._relaying.start()

    def begin(self, experiment: Experiment, process: int) -> bool:
        """Let it show the cell that a process runs; False when it has died."""
        runs = str(experiment.paths.runs.absolute())
        self._current = experiment
        return self._say(json.dumps({"runs": runs, "run_id": run_id(experiment), "process": process}))

    def finish(self, name: str) -> bool:
        """Let it show the record, while this process goes on."""
        if self._current is None or run_id(self._current) != name or not self._say("done"):
            return False
        self._handed[name], self._current = self._current, None
        return True

    def leave(self) -> None:
        """Turn to the next cell; one that was not finished is marked as failed, and ends the follower."""
        if self._current is not None:
            self._current = None
            _followers.remove(self)
            _left.append(self._process)
            self._hang_up()
            self._wait(_PATIENCE_WHEN_STOPPED)

    def conclude(self, seconds: float) -> None:
        """Wait for it; when it ended badly, show from here what it has not shown."""
        self._hang_up()
        if self._wait(seconds):
            return
        self._relaying.join(_PATIENCE_WHEN_STOPPED)  # a service's own process may hold the other end
        for name, experiment in self._handed.items():
            if self._process.returncode == -signal.SIGALRM:  # from here it would hang as well
                _log.warning(
                    "%s did not answer for %d s and does not show run %s; its record is complete",
                    experiment.tracking.name,
                    SECONDS_TO_ANSWER,
                    name,
                )
            else:
                tracker = Tracker(experiment.tracking, experiment.paths.runs)
                with tracker.never_fails(f"run {name}"):
                    tracker.show(read_run(experiment.paths.runs / name))

    @property
    def is_listening(self) -> bool:
        """Whether it takes cells of this process."""
        return self._owner == os.getpid() and self._process.poll() is None

    def _hang_up(self) -> None:
        assert self._process.stdin is not None, "it was opened with a pipe"
        with suppress(OSError):
            self._process.stdin.close()

    def _say(self, line: str) -> bool:
        """Write a line to it; False when it has died."""
        assert self._process.stdin is not None, "it was opened with a pipe"
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except OSError:
            return False
        return self.is_listening

    def _wait(self, seconds: float) -> bool:
        """Wait for its end, but not for ever; False when it ended badly."""
        try:
            return self._process.wait(seconds) == 0
        except subprocess.TimeoutExpired:
            _log.info("%s: still being shown, in the background", ", ".join(self._handed))
            return True

    def _relay(self) -> None:
        """Take note of what it has shown, and pass whatever else it says on to the log."""
        assert self._process.stdout is not None
        with suppress(OSError, ValueError), self._process.stdout as lines:
            for line in lines:
                if line.startswith(SHOWN):
                    self._handed.pop(line.removeprefix(SHOWN).strip(), None)
                else:
                    _log.warning("%s", line.rstrip())


# This process's followers: the last one is at work, those before it died.
_followers: list[_FollowerProcess] = []
# Those that were left, perhaps still at work: Python complains of a child that nobody remembers.
_left: list[subprocess.Popen[str]] = []


def _follower(name: str) -> _FollowerProcess | None:
    """Return the process that is to show a cell: the one at work, or a new one."""
    if not _followers or not _followers[-1].is_listening:
        try:
            _followers.append(_FollowerProcess())
        except OSError as error:
            _log.warning("%s: no live metrics: %s", name, error)
            return None
    return _followers[-1]


def wait_for_followers() -> None:
    """Wait until every record that was handed over is shown; a command does so at its end."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while _followers:
        _followers.pop(0).conclude(max(1.0, deadline - time.monotonic()))


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
