"""Reading the tables of a run folder, and packs: a whole study in four files, whose runs read like others.

    runs/study/_pack/records.jsonl     one record per line, in the order of the ids
                     items.parquet     the rows of all runs' items, with a column `run`
                     layers.parquet    the same of their linears
                     windows.parquet   run, scores, value: means over each window, in their order

`compact.py` writes them. A folder of a run's name beside the pack comes before what the pack holds of it.
What is read may be damaged or foreign: tables are bounded, of the columns and types that were written, or
refused; a bad line is one bad run, a bad table is said of each.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from faqbench.foreign import is_name, parse_json, read_file, visible

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


PACK = "_pack"
RECORDS = "records.jsonl"
TABLES = ("items", "layers", "windows")
_MOST_MEGABYTES = 1000  # of a file, and of what it unpacks to
_MOST_ROWS = 50_000_000
_TEXTS = {"string", "empty", "boolean"}  # as pandas calls the values of a column of objects
_KINDS = {"task": "O", "metric": "O", "item": "iu", "value": "fiub", "role": "O", "linear": "O",
          "block": "iu", "relative_error": "fiu", "run": "O", "scores": "O"}  # fmt: skip


class RunPack:
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
        by_id: dict[str, Any] = {}
        for number, line in enumerate(lines, start=1):
            place = f"line {number} of {RECORDS}"
            try:
                raw = parse_json(line, place)
                name = raw["run_id"]
                if not isinstance(name, str) or not is_name(name) or name in by_id:
                    raise ValueError(f"{place} has no id of its own")
            except (ValueError, TypeError, KeyError) as error:
                said = error if isinstance(error, ValueError) else f"{place} is no record"
                by_id[f"pack-line-{number}"] = ValueError(str(said))
            else:
                by_id[name] = raw
        return by_id

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
        self[kind] = {str(name): rows.drop(columns="run").reset_index(drop=True) for name, rows in runs}
        return self[kind]


def pack_of(runs: Path) -> RunPack | None:
    """Return the pack in a folder of runs; None where there is none."""
    folder = runs / PACK
    state = tuple(_state_of(folder / name) for name in (RECORDS, *(f"{t}.parquet" for t in TABLES)))
    return None if state[0] is None else _pack(folder.absolute(), state)


def is_packed(folder: Path) -> bool:
    """Say whether a run lies in the pack beside the place where its folder would be."""
    pack = pack_of(folder.parent)
    return pack is not None and folder.name in pack.records and not os.path.lexists(folder)


@lru_cache(maxsize=4)
def _pack(folder: Path, _state: tuple[object, ...]) -> RunPack:
    return RunPack(folder)


def _state_of(path: Path) -> tuple[int, ...] | None:
    try:
        about = path.lstat()
    except OSError:
        return None
    return about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino


def read_table(path: Path, required: Sequence[str] = ()) -> pd.DataFrame:
    """Read a Parquet table of a run; one that the run did not keep comes back empty.

    Args:
        path: of the table.
        required: columns without which its rows say nothing.

    Raises:
        ValueError: with the reason, for a damaged table or one of other columns.
    """
    import pandas as pd
    import pyarrow.parquet as pq

    if not path.exists() and not path.is_symlink():
        return pd.DataFrame()
    data = read_file(path, _MOST_MEGABYTES)
    with _reader_may_raise(path.name):
        file = pq.ParquetFile(io.BytesIO(data))
        about = file.metadata
        n_bytes = sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
        if about.num_rows > _MOST_ROWS or n_bytes > _MOST_MEGABYTES * 1_000_000:
            raise ValueError(f"{about.num_rows:,} rows of {n_bytes:,} bytes are too many")
        table: pd.DataFrame = file.read(use_threads=False).to_pandas()
        if len(table) and (missing := set(required) - set(table)):
            raise ValueError(f"it has no column {sorted(missing)[0]}")
        for name, column in table.items():
            _check_column(str(name), column)
            if column.dtype.kind == "O":
                table[name] = _visible_column(column)
    return table


def read_tokens(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Read a run's scores per token, or per window; none where the run kept none.

    Raises:
        ValueError: with the reason, for a damaged file or arrays that are no scores of windows.
    """
    import numpy as np

    if not path.exists() and not path.is_symlink():
        return {}
    data = read_file(path, _MOST_MEGABYTES)
    with _reader_may_raise(path.name):
        sizes = [member.file_size for member in zipfile.ZipFile(io.BytesIO(data)).infolist()]
        if sum(sizes) > _MOST_MEGABYTES * 1_000_000:
            raise ValueError(f"{sum(sizes):,} bytes of arrays are too many")
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            tokens = {visible(name): arrays[name] for name in arrays.files}
        for name, values in tokens.items():
            if values.ndim != 2 or values.dtype.kind not in "fiub" or not values.size:
                shape = "x".join(map(str, values.shape))
                raise ValueError(f"{name} is an array {shape} of {values.dtype}, no windows")
    return tokens


@contextmanager
def _reader_may_raise(name: str) -> Iterator[None]:
    """Turn whatever a library's reader throws at a damaged file into a ValueError of one line."""
    try:
        yield
    except Exception as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise ValueError(f"{name} cannot be read: {visible(lines[0])}") from error


def _check_column(name: str, column: pd.Series[Any]) -> None:
    import pandas as pd

    kind, kinds = column.dtype.kind, _KINDS.get(name)
    held = "empty" if column.isna().all() else pd.api.types.infer_dtype(column, skipna=True)
    is_wanted = kinds is None or kind in kinds or held == "empty"
    if not is_wanted or (kind == "O" and held not in _TEXTS):
        raise ValueError(f"its column {visible(name)} holds {held}")


def _visible_column(column: pd.Series[Any]) -> pd.Series[Any]:
    texts = [text for text in column.unique() if isinstance(text, str)]
    shown = {text: visible(text) for text in texts if not text.isprintable()}
    return column.replace(shown) if shown else column
