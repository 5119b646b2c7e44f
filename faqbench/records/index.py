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
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from faqbench.files import atomic_write
from faqbench.foreign import read_json
from faqbench.processes import uncollected
from faqbench.records.run_record import (
    Amount,
    Count,
    Gate,
    Metric,
    Number,
    RunRecord,
    Text,
    check_free_parts,
)
from faqbench.records.store import RECORD, find_with, read_written

_INDEX = "_index.json"
_VERSION = 1
_MOST_MEGABYTES = 256
_WORTH_WRITING = 64  # so many records are read as quickly as an index is written
_SETTLED_NANOSECONDS = 2_000_000_000  # a younger file may change without its times showing it

State = tuple[Count, int, int, Count]  # size, times of change in nanoseconds, inode
Heads = dict[str, tuple[State, RunRecord]]


@dataclass(frozen=True, kw_only=True)
class _Folded:
    """A head as the index holds it: what it shares with others by its number."""

    schema_version: Literal[1]
    run_id: Text
    status: Literal["finished", "failed"]
    error: Text | None
    bits_per_weight: Amount | None
    checkpoint_bytes: Count | None
    peak_memory_bytes: Count
    warnings: tuple[Text, ...]
    skipped_scales: tuple[Text, ...]
    started: Text
    seconds: Amount
    config: tuple[Count, ...]
    fingerprints: tuple[Count, ...]
    environment: Count
    gates: tuple[Count, ...]
    metrics: tuple[tuple[Count, Number | None, Amount | None], ...]
    evaluation: tuple[Count, ...]


_SHARING = ("config", "fingerprints", "environment", "gates", "metrics", "evaluation")
_WHOLE = tuple(f.name for f in dataclasses.fields(_Folded) if f.name not in _SHARING)


@dataclass(frozen=True, kw_only=True)
class _Content:
    """The file: what heads share, and each head with the state of the record that it was read from."""

    version: Literal[1]
    shared: tuple[Any, ...]
    heads: dict[Text, tuple[State, _Folded]]


_CONTENT = TypeAdapter(_Content)


def find_heads(runs: Path) -> tuple[list[RunRecord], list[tuple[str, str]]]:
    """Return what `find_runs` does, the records without what their heads leave out."""
    index = _Index(runs)
    with uncollected():
        heads = find_with(runs, index.head)
        index.keep()
    return heads


@lru_cache(maxsize=2)
def remembered(folder: str) -> Heads:
    """Return the heads that this process has seen in a folder, to be added to."""
    return {}


class _Index:
    """The heads of a folder's records: what the process and the index know of them, and what is new."""

    def __init__(self, runs: Path) -> None:
        self._runs = runs
        self._path = runs / _INDEX
        self._remembered = remembered(str(runs.absolute()))
        self._heads: Heads = {}
        self._n_read = 0

    @cached_property
    def _stored(self) -> tuple[_Shared, dict[str, tuple[State, _Folded]]]:
        """What the index holds; nothing where there is none that can be read."""
        with suppress(ValueError):  # then all records are read
            content = _CONTENT.validate_python(read_json(self._path, _MOST_MEGABYTES))
            return _Shared(content.shared), content.heads
        return _Shared(()), {}

    def head(self, name: str) -> RunRecord:
        """Return the head of a folder's record, from memory or the index where these are up to date.

        Raises:
            ValueError: with the reason, for a damaged record.
        """
        record = f"{self._runs}/{name}/{RECORD}"
        state = _state_of(record)
        head = self._known(name, state) if state is not None else None
        if head is None:
            head = _head_of(read_written(self._runs / name))
            state = state if state == _state_of(record) else None
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
            with suppress(ValueError, IndexError):
                head = _expanded(stored[name][1], shared)
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
        numbers = _Numbers()
        heads = {name: [state, _folded(head, numbers)] for name, (state, head) in self._heads.items()}
        content = {"version": _VERSION, "shared": numbers.values, "heads": heads}
        with suppress(OSError):  # a folder that cannot be written is read each time
            atomic_write(self._path, json.dumps(content, separators=(",", ":")).encode())


def _head_of(record: RunRecord) -> RunRecord:
    extra = {k: v for k, v in record.extra.items() if k == "evaluation"}
    return dataclasses.replace(record, stages={}, extra=extra)


class _Numbers:
    """Values that are stored once, and the number of each."""

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


class _Shared:
    """The values that heads share, each checked once as what it is used for."""

    def __init__(self, values: tuple[Any, ...]) -> None:
        self._values = values
        self._checked: dict[tuple[Callable[[Any], Any], int], Any] = {}

    def part(self, number: int, checked: Callable[[Any], Any]) -> Any:
        """Return the value of a number, as `checked` returns it.

        Raises:
            IndexError: where there is no such number.
            ValueError: where the value is not what it should be.
        """
        key = checked, number
        if key not in self._checked:
            self._checked[key] = checked(self._values[number])
        return self._checked[key]


def _folded(head: RunRecord, shared: _Numbers) -> dict[str, Any]:
    whole = {name: getattr(head, name) for name in _WHOLE}
    metrics = [
        [shared.number({**vars(m), "value": 0, "stderr": 0}), m.value, m.stderr] for m in head.metrics
    ]
    return whole | {
        "config": shared.numbers([k, v] for k, v in head.config.items()),
        "fingerprints": shared.numbers([k, v] for k, v in head.fingerprints.items()),
        "environment": shared.number(head.environment),
        "gates": shared.numbers(vars(g) for g in head.gates),
        "metrics": metrics,
        "evaluation": shared.numbers([k, v] for k, v in head.extra.get("evaluation", {}).items()),
    }


def _expanded(folded: _Folded, shared: _Shared) -> RunRecord:
    """Return a head, checked as a record is: its parts where they were not before, then what they make."""
    part = shared.part
    metrics = [
        Metric(**{**part(i, _metric), "value": value, "stderr": stderr})
        for i, value, stderr in folded.metrics
    ]
    return RunRecord(
        **{name: getattr(folded, name) for name in _WHOLE},
        config=dict(part(i, _config) for i in folded.config),
        fingerprints=dict(part(i, _FINGERPRINT.validate_python) for i in folded.fingerprints),
        environment=part(folded.environment, _MAPPING.validate_python),
        gates=tuple(part(i, _GATE.validate_python) for i in folded.gates),
        metrics=tuple(metrics),
        stages={},
        extra={"evaluation": dict(part(i, _evaluation) for i in folded.evaluation)},
    ).checked()


_PAIR: TypeAdapter[tuple[str, Any]] = TypeAdapter(tuple[Text, Any])
_FINGERPRINT: TypeAdapter[tuple[str, str]] = TypeAdapter(tuple[Text, Text])
_MAPPING: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[Text, Any])
_METRIC, _GATE = TypeAdapter(Metric), TypeAdapter(Gate)


def _config(value: Any) -> tuple[str, Any]:
    name, section = _PAIR.validate_python(value)
    check_free_parts({name: section}, {})
    return name, section


def _evaluation(value: Any) -> tuple[str, Any]:
    name, measured = _PAIR.validate_python(value)
    check_free_parts({}, {"evaluation": {name: measured}})
    return name, measured


def _metric(value: Any) -> dict[str, Any]:
    return vars(_METRIC.validate_python(value))


def _state_of(record: str) -> State | None:
    """Return what changes whenever the record's file does; None while the file is too young to tell."""
    try:
        about = os.lstat(record)
    except OSError:
        return None
    if time.time_ns() - max(about.st_mtime_ns, about.st_ctime_ns) < _SETTLED_NANOSECONDS:
        return None
    return about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino
