"""The follower of a process's cells: shows the samples of each as they come, then its record.

    python -m faqbench.tracking.follower       a cell as one line of JSON on standard input, then the next

It learns that a record is written by a line "done", and that the cells' process is gone by the end of
standard input. What is known of a cell stands in the head of its file of samples. What it says on
standard output is the name of a run that it has shown, or a warning for the cell's log.

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
from itertools import chain
from pathlib import Path

from faqbench.config.experiment import TrackingSection
from faqbench.records import read_run
from faqbench.tracking.tracker import SECONDS_TO_ANSWER, SHOWN, OpenRun, Tracker
from faqbench.tracking.view import head_of, progress_of, samples_of, view_of

_LOOK_SECONDS = 0.5


def main() -> int:
    """Follow one cell after the other; 0 when all that there is has been shown."""
    _log_to_standard_output()
    with suppress(OSError):
        os.nice(10)  # the cells go first
    words = _words(sys.stdin.fileno())
    for word in words:
        if word:
            cell = json.loads(word)
            rest = _up_to_its_end(words)
            _follow(Path(cell["runs"]), cell["run_id"], cell["process"], rest)
            for _ in rest:
                pass  # the service failed, and the cell goes on
            sys.stdout.write(f"{SHOWN}{cell['run_id']}\n")
            sys.stdout.flush()
    return 0


def _follow(runs: Path, name: str, process: int, words: Iterator[str]) -> None:
    """Show a cell from its first sample on; one of which nothing is known yet is waited for."""
    log, word = None, ""
    while word == "" and (log is None or log.pid != process):
        word = next(words, "gone")
        log = progress_of(runs, name)
    if word == "gone":
        return
    config = read_run(runs / name).record.config if log is None or log.pid != process else log.config
    section = TrackingSection.model_validate_json(json.dumps(config["tracking"]))
    tracker = Tracker(section, runs)
    head = head_of(name, config, section.group, section.tags)
    with tracker.never_fails(f"run {name}"), tracker.open(head) as run:
        if run is not None:
            _show(run, name, runs, chain([word], words))


def _show(run: OpenRun, name: str, runs: Path, words: Iterator[str]) -> None:
    number = 0
    for word in words:
        for sample in samples_of(runs, name)[number:]:
            run.sample(number, sample)
            number += 1
        if word == "done":
            run.finish(view_of(read_run(runs / name), runs))
            return
    run.abandon()


def _up_to_its_end(words: Iterator[str]) -> Iterator[str]:
    """Yield the words about one cell: after "done" the next one begins."""
    for word in words:
        yield word
        if word == "done":
            return


def _words(source: int) -> Iterator[str]:
    """Yield an empty word twice a second and each line that arrives, and end with source or parent.

    Whatever is done between two words, or after the last, has so many seconds.
    The file is read below Python's buffers, in which a line could hide from `select`.
    """
    rest = b""
    parent = os.getppid()
    while True:
        signal.alarm(0)
        is_orphan = os.getppid() != parent  # another of its processes may hold the other end of the line
        ready, _, _ = select.select([source], [], [], 0.0 if is_orphan else _LOOK_SECONDS)
        signal.alarm(SECONDS_TO_ANSWER)
        if not ready:
            if is_orphan:
                return
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
