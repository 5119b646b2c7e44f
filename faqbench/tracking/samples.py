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
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any, Literal

FOLDER = "_progress"
End = Literal["ended", "stopped"]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A moment of a running cell.

    Attributes:
        seconds: since the cell began.
        stage: the innermost stage under way; empty between stages.
        done: its finished steps.
        total: all its steps.
        memory_bytes: the process's resident set.
        device_bytes: memory held on the accelerator; None without one.
    """

    seconds: float
    stage: str
    done: int
    total: int
    memory_bytes: int
    device_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class ProgressLog:
    """What a progress file says.

    Attributes:
        run_id: the cell.
        pid: the process that runs it.
        host: the machine it runs on.
        group: its sweep, or None.
        samples: in their order.
        end: how it ended, or None while it runs or when its process was killed.
        modified: when the file was last written, seconds since the epoch.
    """

    run_id: str
    pid: int
    host: str
    group: str | None
    samples: tuple[Sample, ...]
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


class ProgressWriter:
    """Writes one cell's progress file; a disk that fails ends the file and nothing else."""

    def __init__(self, runs: Path, run_id: str, group: str | None) -> None:
        self._file: IO[str] | None = None
        header = {
            "run_id": run_id,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "group": group,
        }
        try:
            path = progress_path(runs, run_id)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("w", buffering=1)
        except OSError:
            return
        self._write(header)

    def add(self, sample: Sample) -> None:
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
    """Read a run's progress; None when there is no file that says anything.

    The last line may be torn, since its writer may be at work or may have been killed.
    """
    path = progress_path(runs, run_id)
    try:
        text, modified = path.read_text(), path.stat().st_mtime
    except (OSError, UnicodeDecodeError):
        return None
    lines = []
    for line in text.splitlines():
        try:
            parsed = json.loads(line)
        except json.JSONDecodeError:
            break
        if isinstance(parsed, dict):
            lines.append(parsed)
    if not lines or "pid" not in lines[0]:
        return None
    samples = tuple(s for line in lines[1:] if (s := _sample(line)) is not None)
    end = next((str(line["end"]) for line in lines if "end" in line), None)
    return ProgressLog(
        run_id=run_id,
        pid=int(lines[0]["pid"]),
        host=str(lines[0].get("host", "")),
        group=lines[0].get("group"),
        samples=samples,
        end=end,
        modified=modified,
    )


def find_progress(runs: Path) -> list[ProgressLog]:
    """Return what all progress files of a folder say, in the order of their names."""
    paths = sorted((runs / FOLDER).glob("*.jsonl"))
    found = (read_progress(runs, path.stem) for path in paths)
    return [log for log in found if log is not None]


def _sample(line: Mapping[str, Any]) -> Sample | None:
    names = {f.name for f in fields(Sample)}
    try:
        return Sample(**{k: v for k, v in line.items() if k in names})
    except TypeError:
        return None
