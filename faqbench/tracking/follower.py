"""The follower of one cell: a process that shows its samples as they come, then its record.

    python -m faqbench.tracking.follower       the task as one line of JSON on standard input

It learns that the record is written by a line "done", and that the cell's process is gone by the end
of standard input. What it says on standard output is a warning for the cell's log.

It has all the time while it waits for words, and else two minutes: the system ends it when the service has
not answered by then, wherever in the service it hangs.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from faqbench.config.experiment import TrackingSection
from faqbench.records import read_run
from faqbench.tracking.tracker import SECONDS_TO_ANSWER, OpenRun, Tracker
from faqbench.tracking.view import RunHead, head_of, samples_of, view_of

_LOOK_SECONDS = 0.5


def main() -> int:
    """Follow one cell; 0 when all that there is has been shown."""
    _log_to_standard_output()
    with suppress(OSError):
        os.nice(10)  # the cell goes first
    words = _words(sys.stdin.fileno())
    task = json.loads(next((word for word in words if word), "null"))
    if task is None:
        return 0  # the cell was interrupted before it said anything
    section = TrackingSection.model_validate_json(task["section"])
    head = head_of(task["run_id"], task["config"], section.group, section.tags)
    runs = Path(task["runs"])
    tracker = Tracker(section, runs)
    with tracker.never_fails(f"run {head.run_id}"), tracker.open(head) as run:
        if run is not None:
            _follow(run, head, runs, words)
    return 0


def _follow(run: OpenRun, head: RunHead, runs: Path, words: Iterator[str]) -> None:
    number = 0
    for word in words:
        for sample in samples_of(runs, head.run_id)[number:]:
            run.sample(number, sample)
            number += 1
        if word == "done":
            run.finish(view_of(read_run(runs / head.run_id), runs))
            return
    run.abandon()


def _words(source: int) -> Iterator[str]:
    """Yield an empty word twice a second and each line that arrives, and end with source or parent.

    Whatever is done between two words, or after the last, has so many seconds.
    The file is read below Python's buffers, in which a line could hide from `select`.
    """
    rest = b""
    parent = os.getppid()
    while True:
        signal.alarm(0)
        ready, _, _ = select.select([source], [], [], _LOOK_SECONDS)
        signal.alarm(SECONDS_TO_ANSWER)
        if os.getppid() != parent:  # another of its processes may hold the other end of the line
            return
        if not ready:
            yield ""
            continue
        chunk = os.read(source, 65536)
        if not chunk:
            return
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.decode().strip()


def _log_to_standard_output() -> None:
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log = logging.getLogger("faqbench")
    log.addHandler(handler)
    log.propagate = False


if __name__ == "__main__":
    sys.exit(main())
