"""Sweeps: which runs a named one is made of, and what its processes tell each other through `runs/`.

runs/_sweeps/<name>.json      its runs, in their order
             <name>.stopped   a cell failed, and no further one is to start
             <name>.cells     runs of a search, one a line, as its sweeper chose them
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from faqbench.files import atomic_write, explain_os_error

_SWEEPS = "_sweeps"
_REMEDY = "free some space, or set paths.runs to a folder that can be written"


def write_sweep(runs: Path, name: str, run_ids: Sequence[str]) -> None:
    """Remember which runs a named sweep is made of, in their order.

    Raises:
        UserError: when the folder cannot be written.
    """
    if read_sweep(runs, name) == list(run_ids):
        return  # a finished sweep can be asked for again where nothing can be written
    target = runs / _SWEEPS / f"{name}.json"
    with explain_os_error("write the sweep's list of runs", target, _REMEDY):
        atomic_write(
            target, json.dumps({"name": name, "run_ids": list(run_ids)}, indent=1).encode()
        )


def read_sweep(runs: Path, name: str) -> list[str] | None:
    """Return the run ids of a named sweep, or None when there is no such sweep."""
    path = runs / _SWEEPS / f"{name}.json"
    return list(json.loads(path.read_text())["run_ids"]) if path.is_file() else None


def clear_sweep(runs: Path, name: str) -> None:
    """Forget what an earlier start of a sweep said: that it stopped, and which cells it chose."""
    for suffix in ("stopped", "cells"):
        with explain_os_error("start the sweep", runs, _REMEDY):
            (runs / _SWEEPS / f"{name}.{suffix}").unlink(missing_ok=True)


def stop_sweep(runs: Path, name: str) -> None:
    """Let no further cell of a sweep start, in whatever process."""
    with explain_os_error("stop the sweep", runs, _REMEDY):
        (runs / _SWEEPS).mkdir(parents=True, exist_ok=True)
        (runs / _SWEEPS / f"{name}.stopped").touch()


def is_stopped(runs: Path, name: str) -> bool:
    """Say whether a sweep was stopped."""
    return (runs / _SWEEPS / f"{name}.stopped").exists()


def note_cell(runs: Path, name: str, run_id: str) -> None:
    """Add one run to those that a search chose."""
    path = runs / _SWEEPS / f"{name}.cells"
    with explain_os_error("note the cell of the search", path, _REMEDY):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(f"{run_id}\n")


def noted_cells(runs: Path, name: str) -> list[str]:
    """Return the runs that a search chose, each once, in that order."""
    path = runs / _SWEEPS / f"{name}.cells"
    return list(dict.fromkeys(path.read_text().split())) if path.is_file() else []
