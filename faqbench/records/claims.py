"""Claims: which cells are being run, so that no two processes run one, and a killed one is known.

    runs/_sweeps/running/<run_id>    locked by the process that runs the cell; gone when the cell ended

The lock ends with its process, whatever ends it. A claim that nobody holds is therefore that of a process
which was killed.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from faqbench.files import explain_os_error
from faqbench.locks import locked

_FOLDER = Path("_sweeps") / "running"
_REMEDY = "set paths.runs to a folder that can be written"


@contextmanager
def claimed(runs: Path, run_id: str, wait: Callable[[str], None]) -> Iterator[bool]:
    """Hold the claim to a cell, and yield whether another process held it first.

    Args:
        runs: the folder of runs.
        run_id: the cell.
        wait: called once with who holds the claim, before waiting for it.

    Raises:
        UserError: when the folder cannot be written.
    """
    path = runs / _FOLDER / run_id
    with ExitStack() as held:
        with explain_os_error("claim the cell", path, _REMEDY):
            path.parent.mkdir(parents=True, exist_ok=True)
            waited = held.enter_context(locked(path, "", wait))
        try:
            yield waited
        finally:
            with suppress(OSError):
                path.unlink()


def find_dead_claims(runs: Path) -> list[str]:
    """Return the cells whose process was killed while it ran them."""
    folder = runs / _FOLDER
    dead = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        with suppress(OSError):
            handle = os.open(path, os.O_RDWR)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                dead.append(path.name)
            finally:
                os.close(handle)
    return dead


def drop_claim(runs: Path, run_id: str) -> None:
    """Forget the claim of a process that was killed."""
    with suppress(OSError):
        (runs / _FOLDER / run_id).unlink()
