"""How a cell is getting on, in a file: what live views show and rebuilt ones repeat.

    runs/_progress/<run_id>.jsonl    a header, then a line per sample, then how it ended

The file is written while the cell runs, by its own process, and stays: so a run's live curves can be
shown again at any time, and `watch` sees cells of any process on any machine that shares the folder.
It decides nothing and may be deleted.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import IO, Annotated, Any, Literal, TypeVar

from pydantic import AliasChoices, Field, TypeAdapter, ValidationError

from faqbench.foreign import is_name, parse_json, read_file, visible
from faqbench.records.run_record import Amount, Count, Text, first_fault

_MOST_MEGABYTES = 64
FOLDER = "_progress"
_T = TypeVar("_T")
End = Literal["ended", "stopped"]


@dataclass(frozen=True, kw_only=True)
class ProgressSample:
    """A moment of a running cell.

    Attributes:
        seconds: since the cell began.
        activity: the innermost under way; empty between two. Files written before 2026-11-29 call it
            `stage`.
        done: its finished steps.
        total: all its steps.
        memory_bytes: the process's resident set.
        device_bytes: memory held on the accelerator; None without one.
    """

    seconds: Amount
    activity: Annotated[Text, Field(validation_alias=AliasChoices("activity", "stage"))]
    done: Count
    total: Count
    memory_bytes: Count
    device_bytes: Count | None = None


@dataclass(frozen=True, kw_only=True)
class ProgressLog:
    """What a progress file says.

    Attributes:
        run_id: the cell.
        pid: the process that runs it.
        host: the machine it runs on.
        group: its sweep, or None.
        config: its configuration, nested as in `conf/`; empty where the writer did not know it.
        samples: in their order.
        end: how it ended, or None while it runs or when its process was killed.
        modified: when the file was last written, seconds since the epoch.
    """

    run_id: str
    pid: int
    host: str
    group: str | None
    config: Mapping[str, Any]
    samples: tuple[ProgressSample, ...]
    end: str | None
    modified: float

    @property
    def is_alive(self) -> bool:
        """Whether the cell is running, as far as this machine can tell."""
        if self.end is not None:
            return False
        if self.host != socket.gethostname():
            return True
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except OSError:
            return True
        return True


@dataclass(frozen=True, kw_only=True)
class _Header:
    """The first line of a progress file."""

    pid: Annotated[int, Field(strict=True, ge=1, lt=2**31)]
    host: Text = ""
    group: Text | None = None
    config: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _End:
    """The last line of a progress file."""

    end: Text


class ProgressWriter:
    """Writes one cell's progress file; a disk that fails ends the file and nothing else."""

    def __init__(
        self, runs: Path, run_id: str, group: str | None, config: Mapping[str, Any] | None = None
    ) -> None:
        self._file: IO[str] | None = None
        header = {"run_id": run_id, "pid": os.getpid(), "host": socket.gethostname(), "group": group}
        header |= {"config": dict(config or {})}
        try:
            path = progress_path(runs, run_id)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("w", buffering=1)
        except OSError:
            return
        self._write(header)

    def add(self, sample: ProgressSample) -> None:
        """Append a sample."""
        self._write(asdict(sample))

    def end(self, end: End) -> None:
        """Write how the cell ended and close the file."""
        self._write({"end": end})
        self._close()

    def _write(self, line: Mapping[str, Any]) -> None:
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(line) + "\n")
        except OSError:
            self._close()

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError:
                return


def progress_path(runs: Path, run_id: str) -> Path:
    """Return where a run's progress file lies."""
    return runs / FOLDER / f"{run_id}.jsonl"


def read_progress(runs: Path, run_id: str) -> ProgressLog | None:
    """Read a run's progress; None when there is none yet.

    The last line may be torn, since its writer may be at work or may have been killed.

    Raises:
        ValueError: with the reason, for a file that is no progress.
    """
    path = progress_path(runs, run_id)
    if not os.path.lexists(path):
        return None
    data = read_file(path, _MOST_MEGABYTES)
    whole, _, _ = data.rpartition(b"\n")
    lines = [parse_json(line, path.name) for line in whole.splitlines() if line]
    if not lines:
        return None
    try:
        header = _adapter(_Header).validate_python(lines[0])
        ends = [i for i, line in enumerate(lines) if isinstance(line, dict) and "end" in line]
        last = ends[0] if ends else len(lines)
        samples = [_adapter(ProgressSample).validate_python(line) for line in lines[1:last]]
        end = _adapter(_End).validate_python(lines[last]).end if ends else None
    except ValidationError as error:
        raise ValueError(f"{path.name} is no progress: {first_fault(error)}") from error
    return ProgressLog(
        run_id=run_id,
        pid=header.pid,
        host=header.host,
        group=header.group,
        config=header.config,
        samples=tuple(samples),
        end=end,
        modified=path.stat().st_mtime,
    )


def find_progress(runs: Path) -> tuple[list[ProgressLog], list[tuple[str, str]]]:
    """Return what all progress files of a folder say, and (name, reason) of those that say nothing."""
    logs, damaged = [], []
    folder = runs / FOLDER
    for path in sorted(folder.glob("*.jsonl")):
        try:
            if not is_name(path.stem):
                raise ValueError("its name is no run's")
            log = read_progress(runs, path.stem)
        except ValueError as error:
            damaged.append((f"{FOLDER}/{visible(path.name)}", str(error)))
            continue
        if log is not None:
            logs.append(log)
    return logs, damaged


@cache
def _adapter(kind: type[_T]) -> TypeAdapter[_T]:
    return TypeAdapter(kind)
