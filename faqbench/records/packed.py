"""Reading packed runs: a whole study in four files, each run of which reads like any other.

    runs/study/_pack/records.jsonl     one record per line, in the order of the ids
                     items.parquet     the rows of all runs' items, with a column `run`
                     layers.parquet    the same of their linears
                     windows.parquet   run, scores, value: means over each window, in their order

`compact.py` writes them. A folder of a run's name beside the pack comes before what the pack holds of it.
What lies in a pack may be damaged or foreign: a bad line is one bad run, a bad table is said of each.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from faqbench.foreign import is_name, parse_json, read_file
from faqbench.records.tables import read_table

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

PACK = "_pack"
RECORDS = "records.jsonl"
TABLES = ("items", "layers", "windows")
_MOST_MEGABYTES = 1000


class Pack:
    """The runs of one pack, each part of which is read when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @cached_property
    def records(self) -> Mapping[str, Any]:
        """What was read of each run's record by its id; a ValueError where that is nothing."""
        try:
            lines = read_file(self._folder / RECORDS, _MOST_MEGABYTES).splitlines()
        except ValueError as error:
            return {"pack": error}
        found: dict[str, Any] = {}
        for number, line in enumerate(lines, start=1):
            place = f"line {number} of {RECORDS}"
            try:
                raw = parse_json(line, place)
                name = raw["run_id"]
                if not isinstance(name, str) or not is_name(name) or name in found:
                    raise ValueError(f"{place} has no id of its own")
            except (ValueError, TypeError, KeyError) as error:
                said = error if isinstance(error, ValueError) else f"{place} is no record"
                found[f"pack-line-{number}"] = ValueError(str(said))
            else:
                found[name] = raw
        return found

    def record(self, name: str) -> Any:
        """Return what was read of a run's record.

        Raises:
            ValueError: with the reason, when that is nothing.
        """
        raw = self.records[name]
        if isinstance(raw, ValueError):
            raise ValueError(str(raw))
        return raw

    def table(self, kind: str, name: str) -> pd.DataFrame:
        """Return a run's `items` or `layers`, without rows where it kept none.

        Raises:
            ValueError: with the reason, for a damaged table.
        """
        import pandas as pd

        rows = self._tables[kind].get(name)
        return pd.DataFrame() if rows is None else rows

    def tokens(self, name: str) -> dict[str, np.ndarray[Any, Any]]:
        """Return a run's scores: for each protocol its means over windows, [n_windows, 1].

        Raises:
            ValueError: with the reason, for a damaged table.
        """
        rows = self.table("windows", name)
        if not len(rows):
            return {}
        by_scores = rows.groupby("scores", sort=False)["value"]
        return {str(scores): means.to_numpy()[:, None] for scores, means in by_scores}

    @cached_property
    def _tables(self) -> _Tables:
        return _Tables(self._folder)


class _Tables(dict[str, Mapping[str, "pd.DataFrame"]]):
    """The rows of each run, by the kind of the table, which is read once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __missing__(self, kind: str) -> Mapping[str, pd.DataFrame]:
        needed = {"items": ("task", "item", "metric", "value"), "windows": ("scores", "value")}
        table = read_table(self._folder / f"{kind}.parquet", ("run", *needed.get(kind, ())))
        runs = table.groupby("run", sort=False) if len(table) else ()
        self[kind] = {
            str(name): rows.drop(columns="run").reset_index(drop=True) for name, rows in runs
        }
        return self[kind]


def pack_of(runs: Path) -> Pack | None:
    """Return the pack in a folder of runs; None where there is none."""
    folder = runs / PACK
    state = tuple(_state_of(folder / name) for name in (RECORDS, *(f"{t}.parquet" for t in TABLES)))
    return None if state[0] is None else _pack(folder.absolute(), state)


def is_packed(folder: Path) -> bool:
    """Say whether a run lies in the pack beside the place where its folder would be."""
    pack = pack_of(folder.parent)
    return pack is not None and folder.name in pack.records and not os.path.lexists(folder)


@lru_cache(maxsize=4)
def _pack(folder: Path, _state: tuple[object, ...]) -> Pack:
    return Pack(folder)


def _state_of(path: Path) -> tuple[int, ...] | None:
    try:
        about = path.lstat()
    except OSError:
        return None
    return about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino
