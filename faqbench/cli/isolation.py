"""`isolate=process`: a cell in a process of its own, whose death is that cell's failure and no other's.

    python -m faqbench.cli.isolation < cell.json     {"experiment": …, "estimate": …}

The parent loads no model and needs little memory, so what the system kills for want of memory is the
child. A child ends with code 0 when the record is written, whatever its status. A signal that ends the
parent is passed on to the child at once, one that ends the child ends the sweep, and a child whose parent
was killed ends by itself.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import faqbench
from faqbench.cli.attempt import attempt, record_failure
from faqbench.cli.memory import limit_memory
from faqbench.cli.surroundings import own_streams
from faqbench.config import Experiment, UserError, run_id
from faqbench.interrupts import ENDING, end_with, held_back, interrupt, received, signals_end_it
from faqbench.records import RunRecord, read_record

_SECONDS_TO_FINISH = 5.0  # docker kills after ten


def attempt_in_a_process(
    experiment: Experiment, estimate: Mapping[str, float] | None = None
) -> RunRecord:
    """Run a cell in a process of its own and return its record.

    Args:
        experiment: the cell.
        estimate: what a plan said of it.

    Raises:
        UserError: when no record can be written.
    """
    with (
        held_back(),
        _blocked(),
    ):  # the child inherits it, and is interrupted when `main` can answer
        child = subprocess.Popen(
            [sys.executable, "-m", "faqbench.cli.isolation"],
            stdin=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": _import_path()},
            text=True,
        )
    try:
        cell = {
            "experiment": experiment.model_dump(mode="json"),
            "estimate": estimate,
            "parent": os.getpid(),
        }
        child.communicate(json.dumps(cell))
    except BaseException:
        child.send_signal(received() or signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            child.wait(_SECONDS_TO_FINISH)
        child.kill()
        child.wait()
        raise
    if child.returncode == 0:
        return read_record(experiment.paths.runs / run_id(experiment))
    if child.returncode - 128 in ENDING:
        interrupt(child.returncode - 128)
    return record_failure(experiment, _cause_of_death(child.returncode))


def main() -> int:
    """Run the cell that is described on standard input."""
    code = 0
    with own_streams(), suppress(KeyboardInterrupt), signals_end_it() as came:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        try:
            _run(json.load(sys.stdin))
        except UserError as error:
            print(f"faqbench: {error}", file=sys.stderr)
            code = 2
    return 128 + came[0] if came else code


def _run(cell: Mapping[str, Any]) -> None:
    end_with(cell["parent"])
    experiment = Experiment.model_validate_json(json.dumps(cell["experiment"]))
    if experiment.memory_limit_gigabytes is not None:
        limit_memory(int(experiment.memory_limit_gigabytes * 1e9))
    attempt(experiment, cell["estimate"])


@contextmanager
def _blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _cause_of_death(code: int) -> str:
    if code >= 0:
        return f"The cell's process ended with code {code} and left no record."
    name = signal.Signals(-code).name
    hint = ", as the system does when memory runs out" if name == "SIGKILL" else ""
    return f"The cell's process was killed by {name}{hint}."


def _import_path() -> str:
    """Let the child import what this process runs, wherever that lies."""
    here = str(Path(faqbench.__file__).parent.parent)
    return os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])


if __name__ == "__main__":
    sys.exit(main())
