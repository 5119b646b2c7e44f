"""An index of a folder's records: heads of thousands of runs, without reading thousands of files.

    runs/_index.json    for each run the state of its record's file, and the record's head

A head is a record without `stages` and without all of `extra` but `evaluation`, which together are most of
its bytes and seldom asked for. The index is never trusted: a head counts only while the file is in the very
state in which it was read (size, times, inode), it goes through the same checks as a record, and an index
that cannot be read is made anew. It may be deleted at any time, and where it cannot be written the records
are read. A process remembers the heads that it has seen, under the same condition: a sweep's next cell asks
for the state of each file, and reads only what is new.

What records have in common, such as the sections of their configurations, is stored once: records refer to
it by number.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from faqbench.files import atomic_write
from faqbench.foreign import read_json
from faqbench.garbage import uncollected
from faqbench.records.run_record import RunRecord
from faqbench.records.store import RECORD, find_with, read_written

_INDEX = "_index.json"
_VERSION = 1
_MOST_MEGABYTES = 256
_WORTH_WRITING = 64  # so many records are read as quickly as an index is written
_SETTLED_NANOSECONDS = 2_000_000_000  # a younger file may change without its times showing it
_WHOLE = ("schema_version", "status", "error", "bits_per_weight", "checkpoint_bytes",
          "peak_memory_bytes", "warnings", "skipped_scales", "started", "seconds", "run_id")  # fmt: skip

State = list[int]
Heads = dict[str, tuple[State, RunRecord]]


def find_heads(runs: Path) -> tuple[list[RunRecord], list[tuple[str, str]]]:
    """Return what `find_runs` does, the records without what their heads leave out."""
    index = _Index(runs)
    with uncollected():
        found = find_with(runs, index.head)
        index.keep()
    return found


@lru_cache(maxsize=2)
def remembered(folder: str) -> Heads:
    """Return the heads that this process has seen in a folder, to be added to."""
    return {}


class _Index:
    """The heads of a folder's records: what the process and the index know of them, and what is new."""

    def __init__(self, runs: Path) -> None:
        self._path = runs / _INDEX
        self._remembered = remembered(str(runs.absolute()))
        self._heads: Heads = {}
        self._n_read = 0

    @cached_property
    def _stored(self) -> tuple[list[Any], dict[str, tuple[State, Any]]]:
        """What heads share, and their states and folded selves; nothing where there is no index."""
        with suppress(ValueError, KeyError, TypeError, AttributeError):  # then all records are read
            raw = read_json(self._path, _MOST_MEGABYTES)
            if raw["version"] == _VERSION:
                return raw["shared"], {
                    name: (state, h) for name, (state, h) in raw["heads"].items()
                }
        return [], {}

    def head(self, folder: Path) -> RunRecord:
        """Return a record's head, from memory or the index where these are up to date.

        Raises:
            ValueError: with the reason, for a damaged record.
        """
        state, name = _state_of(folder), folder.name
        head = self._known(name, state) if state is not None else None
        if head is None:
            head = _head_of(read_written(folder))
            state = state if state == _state_of(folder) else None
            self._n_read += state is not None
        if state is not None:
            self._heads[name] = state, head
        return head

    def _known(self, name: str, state: State) -> RunRecord | None:
        seen = self._remembered.get(name)
        if seen is not None and seen[0] == state:
            return seen[1]
        shared, stored = self._stored
        if name in stored and stored[name][0] == state:
            with suppress(ValueError, KeyError, TypeError, IndexError):
                head = RunRecord.from_json(_expanded(stored[name][1], shared))
                if head.run_id == name:  # else the reader has something to say of it
                    return head
        return None

    def keep(self) -> None:
        """Remember the heads; write the index where it missed many records, or knows many that are gone."""
        self._remembered.clear()
        self._remembered.update(self._heads)
        n_gone = len(self._stored[1].keys() - self._heads.keys()) if "_stored" in vars(self) else 0
        if max(self._n_read, n_gone) < _WORTH_WRITING:
            return
        shared = _Shared()
        heads = {
            name: [state, _folded(head, shared)] for name, (state, head) in self._heads.items()
        }
        content = {"version": _VERSION, "shared": shared.values, "heads": heads}
        with suppress(OSError):  # a folder that cannot be written is read each time
            atomic_write(self._path, json.dumps(content, separators=(",", ":")).encode())


def _head_of(record: RunRecord) -> RunRecord:
    extra = {k: v for k, v in record.extra.items() if k == "evaluation"}
    return dataclasses.replace(record, stages={}, extra=extra)


class _Shared:
    """Values that are stored once, by their number."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._numbers: dict[str, int] = {}

    def number(self, value: Any) -> int:
        text = json.dumps(value)
        number = self._numbers.setdefault(text, len(self.values))
        if number == len(self.values):
            self.values.append(value)
        return number

    def numbers(self, values: Iterable[Any]) -> list[int]:
        return [self.number(value) for value in values]


def _folded(head: RunRecord, shared: _Shared) -> dict[str, Any]:
    whole = {name: getattr(head, name) for name in _WHOLE}
    metrics = [
        [shared.number({**vars(m), "value": 0, "stderr": 0}), m.value, m.stderr]
        for m in head.metrics
    ]
    return whole | {
        "config": shared.numbers([k, v] for k, v in head.config.items()),
        "fingerprints": shared.numbers([k, v] for k, v in head.fingerprints.items()),
        "environment": shared.number(head.environment),
        "gates": shared.numbers(vars(g) for g in head.gates),
        "metrics": metrics,
        "evaluation": shared.numbers([k, v] for k, v in head.extra.get("evaluation", {}).items()),
    }


def _expanded(folded: Mapping[str, Any], shared: list[Any]) -> dict[str, Any]:
    return {name: folded[name] for name in _WHOLE} | {
        "config": dict(shared[i] for i in folded["config"]),
        "fingerprints": dict(shared[i] for i in folded["fingerprints"]),
        "environment": shared[folded["environment"]],
        "gates": [shared[i] for i in folded["gates"]],
        "metrics": [
            {**shared[i], "value": value, "stderr": stderr}
            for i, value, stderr in folded["metrics"]
        ],
        "stages": {},
        "extra": {"evaluation": dict(shared[i] for i in folded["evaluation"])},
    }


def _state_of(folder: Path) -> State | None:
    """Return what changes whenever the record's file does; None while the file is too young to tell."""
    try:
        about = os.lstat(f"{folder}/{RECORD}")
    except OSError:
        return None
    if time.time_ns() - max(about.st_mtime_ns, about.st_ctime_ns) < _SETTLED_NANOSECONDS:
        return None
    return [about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino]
