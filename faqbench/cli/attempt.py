"""One attempt at one cell: run it, or say why not, and leave a record either way.

`isolate=process` gives a cell a process of its own, whose death is that cell's failure and no other's:

    python -m faqbench.cli.attempt < cell.json     {"experiment": …, "estimate": …, "parent": …}

The parent loads no model and needs little memory, so what the system kills for want of memory is the
child. A child ends with code 0 when the record is written, whatever its status. A signal that ends the
parent is passed on to the child at once, one that ends the child ends the sweep, and a child whose parent
was killed ends by itself. A limit on a child's memory is on private writable memory (RLIMIT_DATA), not on
the address space, in which libraries and mapped weights take many gigabytes that cost nothing. Beyond it
an allocation fails inside the process, which can then say so.

A record is committed and shown in reports. Folders of whoever ran it are nobody's business there: of a
fault of the program modules and lines say as much.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import faqbench
from faqbench.cli.console import console_progress
from faqbench.cli.surroundings import own_streams
from faqbench.config import Experiment, UserError, run_id
from faqbench.interrupts import (
    ENDING,
    end_with,
    held_back,
    interrupt,
    must_pass,
    raise_if_interrupted,
    received,
    signals_end_it,
)
from faqbench.records import RunData, RunRecord, claimed, drop_dead_claim, read_record, read_run, stop_sweep
from faqbench.sources import reusable_record
from faqbench.stages import Progress, StageCache

if TYPE_CHECKING:
    from faqbench.models import ModelHolder
    from faqbench.pipeline.planning import Estimate


def attempt(
    experiment: Experiment, estimate: Estimate | None = None, beside: Sequence[Experiment] = ()
) -> RunRecord:
    """Run a cell, unless it finished before or another process runs it just now.

    Args:
        experiment: the cell.
        estimate: what a plan said of it.
        beside: the cells that this process runs one after another.

    Raises:
        UserError: when not even a record can be written.
    """
    from faqbench.tracking import is_awaited, live, tracker

    progress = console_progress()
    name, runs = run_id(experiment), experiment.paths.runs
    done, changed = reusable_record(experiment)
    if changed:
        progress.note(f"{name}: finished before and made again: {changed}")
    if done is not None:
        progress.note(f"{name}: finished before, skipped (rerun=true repeats it)")
        if is_awaited():
            try:
                tracker(experiment.tracking, runs).log(read_run(runs / name))
            except ValueError as error:
                progress.note(f"{name}: not shown again: {error}")
        return done

    def wait(holder: str) -> None:
        progress.note(f"{name}: {holder} is running it; waiting for it")

    with claimed(runs, name, wait) as waited:
        if waited and (record := _record_of(experiment)) is not None:
            return record
        progress.note(f"{name}: running")
        with live(experiment, progress) as watched:
            return _run(experiment, estimate, watched, beside)


def record_failure(experiment: Experiment, error: str) -> RunRecord:
    """Write the record of a cell that failed, and show it as any other.

    Raises:
        UserError: when it cannot be written.
    """
    from faqbench import pipeline

    return _show(experiment, pipeline.write_failure(experiment, error))


def _run(
    experiment: Experiment, estimate: Estimate | None, progress: Progress, beside: Sequence[Experiment]
) -> RunRecord:
    """Run a cell; where it fails, write the record of that, and raise what would end the sweep."""
    from faqbench import pipeline

    try:
        with StageCache(max_bytes=experiment.cache.max_bytes, owner=run_id(experiment)) as stages:
            data = pipeline.run(
                experiment,
                cache=stages,
                progress=progress,
                holder=_holder(),
                estimate=estimate,
                beside=beside,
            )
    except UserError as error:
        raise_if_interrupted()
        told_to_all = _beyond_limit(experiment, error) or without_paths(str(error))
        if told_to_all != str(error):  # the record is for others too, the sentence for whoever can mend it
            progress.note(f"{run_id(experiment)}: failed: {error}")
        return record_failure(experiment, told_to_all)
    except BaseException as error:  # a failing cell is a failed record, and its sweep goes on
        if must_pass(error):
            raise
        beyond = _beyond_limit(experiment, error)
        lift_memory_limit()
        return record_failure(experiment, beyond or told(error))
    return _show(experiment, data)


def _show(experiment: Experiment, data: RunData) -> RunRecord:
    """Show a cell where the user tracks runs, and stop its sweep if it failed and is to."""
    from faqbench.tracking import tracker

    group = experiment.tracking.group
    if data.record.status == "failed" and experiment.on_error == "stop" and group is not None:
        stop_sweep(experiment.paths.runs, group)
    tracker(experiment.tracking, experiment.paths.runs).log(data)
    return data.record


def _record_of(experiment: Experiment) -> RunRecord | None:
    try:
        return read_record(experiment.paths.runs / run_id(experiment))
    except ValueError:
        return None


@cache
def _holder() -> ModelHolder:
    """Return the one holder of this process, which keeps a model from cell to cell."""
    from faqbench.models import ModelHolder

    return ModelHolder()


_SECONDS_TO_FINISH = 5.0  # docker kills after ten


def attempt_in_a_process(experiment: Experiment, estimate: Mapping[str, float] | None = None) -> RunRecord:
    """Run a cell in a process of its own and return its record.

    Args:
        experiment: the cell.
        estimate: what a plan said of it.

    Raises:
        UserError: when no record can be written.
    """
    from faqbench.tracking import followed, is_awaited, tracker

    before = record_stamp(experiment)
    with held_back(), _blocked():  # the child inherits it, and is interrupted when `main` can answer
        child = subprocess.Popen(
            [sys.executable, "-m", "faqbench.cli.attempt"],
            stdin=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": _import_path()},
            text=True,
        )
    with _ending_with_this(child, experiment), followed(experiment, child.pid):
        cell = {
            "experiment": experiment.model_dump(mode="json"),
            "estimate": estimate,
            "parent": os.getpid(),
        }
        child.communicate(json.dumps(cell))
        if child.returncode - 128 in ENDING:
            interrupt(child.returncode - 128)
        if child.returncode != 0:
            return record_failure(experiment, _cause_of_death(experiment, child.returncode))
        data = read_run(experiment.paths.runs / run_id(experiment))
        if record_stamp(experiment) != before or is_awaited():
            tracker(experiment.tracking, experiment.paths.runs).log(data)
        return data.record


def record_stamp(experiment: Experiment) -> int | None:
    """Return when the cell's record was written, in nanoseconds; None without a record."""
    path = experiment.paths.runs / run_id(experiment) / "record.json"
    return path.stat().st_mtime_ns if path.is_file() else None


@contextmanager
def _ending_with_this(child: subprocess.Popen[str], experiment: Experiment) -> Iterator[None]:
    """Let no child outlive what interrupts this process, nor the claim of one that had to be killed."""
    try:
        yield
    except BaseException:
        child.send_signal(received() or signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            child.wait(_SECONDS_TO_FINISH)
        child.kill()
        child.wait()
        drop_dead_claim(experiment.paths.runs, run_id(experiment))
        raise


def main() -> int:
    """Run the cell that is described on standard input."""
    code = 0
    with own_streams(), suppress(KeyboardInterrupt), signals_end_it() as came:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        try:
            _run_described(json.load(sys.stdin))
        except UserError as error:
            print(f"faqbench: {error}", file=sys.stderr)
            code = 2
    return 128 + came[0] if came else code


def _run_described(cell: Mapping[str, Any]) -> None:
    from faqbench.tracking import followed_by

    end_with(cell["parent"])
    experiment = Experiment.model_validate_json(json.dumps(cell["experiment"]))
    if experiment.memory_limit_gigabytes is not None:
        limit_memory(int(experiment.memory_limit_gigabytes * 1e9))
    with followed_by(lambda _: True):  # the parent shows it
        try:
            attempt(experiment, cell["estimate"])
        except Exception as error:  # before or after what `_run` records
            beyond = _beyond_limit(experiment, error)
            if must_pass(error) or beyond is None:
                raise
            lift_memory_limit()
            record_failure(experiment, beyond)


@contextmanager
def _blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _cause_of_death(experiment: Experiment, code: int) -> str:
    limit = experiment.memory_limit_gigabytes
    too_little = "" if limit is None else f"; memory_limit_gigabytes={limit:g} may be too little for it"
    if code >= 0:
        return f"The cell's process ended with code {code} and left no record{too_little}."
    name = signal.Signals(-code).name
    if name == "SIGKILL":  # which no limit of ours sends
        return f"The cell's process was killed by {name}, as the system does when memory runs out."
    return f"The cell's process was killed by {name}{too_little}."


# What the system's and torch's refusals to give memory say where they are no MemoryError.
_NO_MEMORY = re.compile(
    r"can't (allocate memory|start new thread)|cannot allocate memory|unable to allocate|bad_alloc"
    r"|failed to map segment|not enough memory|thread creation failed|resource temporarily unavailable",
    re.IGNORECASE,
)


def _beyond_limit(experiment: Experiment, error: BaseException) -> str | None:
    """Return the sentence for an error that a limit on memory brought about; None for any other."""
    limit = experiment.memory_limit_gigabytes
    cause: BaseException | None = error
    while limit is not None and cause is not None:
        if isinstance(cause, MemoryError) or _NO_MEMORY.search(str(cause)):
            return (
                f"The cell needs more memory than memory_limit_gigabytes={limit:g} lets its process have; "
                "set a higher limit, or null for none."
            )
        cause = cause.__cause__ or cause.__context__
    return None


def _import_path() -> str:
    """Let the child import what this process runs, wherever that lies."""
    here = str(Path(faqbench.__file__).parent.parent)
    return os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])


def limit_memory(n_bytes: int) -> None:
    """Let this process allocate no more than so many bytes."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        n_bytes = min(n_bytes, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (n_bytes, hard))


def lift_memory_limit() -> None:
    """Take the limit off again, so that what went wrong can be recorded."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


_MOST_FRAMES = 6
_LONGEST = 2000
# An absolute path of two parts or more, in quotes or between spaces, as messages hold them.
_PATH = re.compile(r"(?<![\w./:~-])/(?:[^\s/'\":;,]+/)+[^\s'\":;,]*")


def told(error: BaseException) -> str:
    """Return the last frames of an error as module and line, then its kind and message."""
    frames = list(traceback.walk_tb(error.__traceback__))[-_MOST_FRAMES:]
    lines = ["Traceback (most recent call last):"]
    for frame, line in frames:
        module = frame.f_globals.get("__name__", "?")
        lines.append(f"  {module}, line {line}, in {frame.f_code.co_name}")
    message = "".join(traceback.format_exception_only(error)).strip()
    return "\n".join([*lines, without_paths(message)[:_LONGEST]])


def without_paths(text: str) -> str:
    """Return a text in which absolute paths are their last part."""
    return _PATH.sub(lambda found: f"…/{PurePosixPath(found[0]).name}", text)


if __name__ == "__main__":
    sys.exit(main())
