"""Sweeps: which runs a named one is made of, and what processes tell each other through `runs/`.

runs/_sweeps/<name>.json       its runs, in their order
             <name>.stopped    a cell failed, and no further one is to start
             <name>.cells      runs of a search, one a line, as its sweeper chose them
             running/<run_id>  a claim: locked by the process that runs the cell; gone when the cell ended

The lock of a claim ends with its process, whatever ends it, so no two processes run one cell, and a claim
that nobody holds is that of a process which was killed.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from faqbench.config import UserError
from faqbench.files import atomic_write, explain_os_error
from faqbench.foreign import is_name, read_file, read_json, visible
from faqbench.processes import locked

_SWEEPS = "_sweeps"
_MOST_MEGABYTES = 32
_REMEDY = "free some space, or set paths.runs to a folder that can be written"


def write_sweep(runs: Path, name: str, run_ids: Sequence[str]) -> None:
    """Remember which runs a named sweep is made of, in their order.

    Raises:
        UserError: when the folder cannot be written.
    """
    target = _path(runs, name, "json")
    with suppress(UserError):  # a list that cannot be read is written anew
        if read_sweep(runs, name) == list(run_ids):
            return  # a finished sweep can be asked for again where nothing can be written
    with explain_os_error("write the sweep's list of runs", target, _REMEDY):
        atomic_write(target, json.dumps({"name": name, "run_ids": list(run_ids)}, indent=1).encode())


def sweep_names(runs: Path) -> list[str]:
    """Return the names of a folder's sweeps, the latest last."""
    paths = [path for path in (runs / "_sweeps").glob("*.json") if is_name(path.stem)]
    return [path.stem for path in sorted(paths, key=lambda p: p.lstat().st_mtime)]


def read_sweep(runs: Path, name: str) -> list[str] | None:
    """Return the run ids of a named sweep, or None when there is no such sweep.

    Raises:
        UserError: when its list cannot be read: which runs it is made of, nobody can guess.
    """
    if not is_name(name):
        return None
    path = _path(runs, name, "json")
    if not os.path.lexists(path):
        return None
    try:
        raw = read_json(path, _MOST_MEGABYTES)
        run_ids = raw.get("run_ids") if isinstance(raw, dict) else None
        if not isinstance(run_ids, list) or not all(isinstance(i, str) for i in run_ids):
            raise ValueError("it holds no list of runs")
        if wrong := [i for i in run_ids if not is_name(i)]:
            raise ValueError(f"'{wrong[0]:.80}' is no run's name")
    except ValueError as error:
        raise UserError(
            f"The list of the sweep {name}, {path}, is damaged ({error}); asking for the sweep again "
            "writes it anew, and removing the file takes all runs."
        ) from error
    return run_ids


def clear_sweep(runs: Path, name: str) -> None:
    """Forget what an earlier start of a sweep said: that it stopped, and which cells it chose."""
    for suffix in ("stopped", "cells"):
        with explain_os_error("start the sweep", runs, _REMEDY):
            _path(runs, name, suffix).unlink(missing_ok=True)


def stop_sweep(runs: Path, name: str) -> None:
    """Let no further cell of a sweep start, in whatever process."""
    with explain_os_error("stop the sweep", runs, _REMEDY):
        path = _path(runs, name, "stopped")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def is_stopped(runs: Path, name: str) -> bool:
    """Say whether a sweep was stopped."""
    return _path(runs, name, "stopped").exists()


def note_cell(runs: Path, name: str, run_id: str) -> None:
    """Add one run to those that a search chose."""
    path = _path(runs, name, "cells")
    with explain_os_error("note the cell of the search", path, _REMEDY):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(f"{run_id}\n")


def noted_cells(runs: Path, name: str) -> list[str]:
    """Return the runs that a search chose, each once, in that order; what names no run is left out."""
    path = _path(runs, name, "cells")
    if not path.exists():
        return []
    try:
        words = read_file(path, _MOST_MEGABYTES).decode("utf-8", "replace").split()
    except ValueError as error:
        raise UserError(f"The cells of the search {name} cannot be read: {error}.") from error
    return [word for word in dict.fromkeys(words) if is_name(word)]


def _path(runs: Path, name: str, suffix: str) -> Path:
    """Return a sweep's file, which is never outside of its folder.

    Raises:
        UserError: for a name that cannot name a file.
    """
    if not is_name(name):
        raise UserError(
            f"name '{visible(name)}' cannot name a sweep; use letters, digits and . _ + - only."
        )
    return runs / _SWEEPS / f"{name}.{suffix}"


_FOLDER = Path("_sweeps") / "running"


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
        try:
            with explain_os_error("claim the cell", path, _REMEDY):
                path.parent.mkdir(parents=True, exist_ok=True)
                waited = held.enter_context(locked(path, "", wait))
        except BaseException:  # an interrupt may come between the file and its lock
            drop_dead_claim(runs, run_id)
            raise
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
        with suppress(OSError), _held_by_nobody(path):
            dead.append(path.name)
    return dead


def drop_dead_claim(runs: Path, run_id: str) -> None:
    """Forget a claim that no process holds, and leave one that is held."""
    path = runs / _FOLDER / run_id
    with suppress(OSError), _held_by_nobody(path):
        path.unlink()


@contextmanager
def _held_by_nobody(path: Path) -> Iterator[None]:
    """Hold a claim's lock meanwhile.

    Raises:
        OSError: when there is no claim, and when a process holds it.
    """
    handle = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)
