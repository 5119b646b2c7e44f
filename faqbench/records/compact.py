"""Compact runs: small enough to be committed, whole enough for every table, plot and paired test.

A compact run has the means over each window in the place of tokens, which is all that pairing reads, its
linears' numbers in float32, and a record without the keys of the cache's stages and without where on its
machine runs and reports lay. `config.yaml` is left out: a record holds the same configuration. Compact
runs lie together in a pack, see `packed.py`. A report made from them is the same from every clone, and
compacting twice changes nothing.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from faqbench.config import UserError
from faqbench.files import atomic_directory, explain_os_error
from faqbench.records.packed import PACK, RECORDS, TABLES, pack_of
from faqbench.records.store import RunData, read_run, without_nan

if TYPE_CHECKING:
    import pandas as pd

_REMEDY = "free some space, or set into to a folder that can be written"
_FILES = {RECORDS, *(f"{table}.parquet" for table in TABLES)}
_DROPPED = ("stage_keys",)


def compact_run(data: RunData) -> RunData:
    """Return a run with window means in the place of tokens, and its layers in float32."""
    import numpy as np

    extra = {k: v for k, v in data.record.extra.items() if k not in _DROPPED}
    means = {n: a.mean(axis=1, dtype=np.float64)[:, None] for n, a in data.tokens.items()}
    config = dict(data.record.config)
    if "paths" in config:
        config["paths"] = {k: _of_no_machine(v) for k, v in config["paths"].items()}
    return RunData(
        record=dataclasses.replace(data.record, extra=extra, config=config),
        items=data.items,
        tokens=means,
        layers=_float32(data.layers),
    )


def _of_no_machine(path: str) -> str:
    """Return the last part of an absolute path, and any other as it is."""
    return Path(path).name if Path(path).is_absolute() else path


def write_pack(runs: Path, new: Iterable[RunData]) -> Path:
    """Pack runs, beside those that the folder's pack holds, of which equal ids are replaced.

    Args:
        runs: the folder whose pack is written, all of it or nothing.
        new: whole or compact runs.

    Returns:
        The pack's folder.

    Raises:
        UserError: when it cannot be written, or holds a damaged run or what no pack does.
    """
    target, pack = runs / PACK, pack_of(runs)
    others = {p.name for p in target.iterdir()} - _FILES if target.is_dir() else set()
    if others:
        raise UserError(
            f"{target} holds {min(others)}, which no pack does, so it is left as it is; set into to "
            "another folder."
        )
    by_name = {data.record.run_id: compact_run(data) for data in new}
    for name in pack.records if pack is not None else ():
        if name not in by_name:
            by_name[name] = _packed_run(runs / name)
    packed = [by_name[name] for name in sorted(by_name)]
    with explain_os_error("write the pack", target, _REMEDY):
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_directory(target) as folder:
            (folder / RECORDS).write_text("".join(map(_line, packed)))
            for kind, table in _tables(packed).items():
                _write_parquet(table, folder / f"{kind}.parquet")
    return target


def _packed_run(folder: Path) -> RunData:
    try:
        return compact_run(read_run(folder))
    except ValueError as error:
        raise UserError(
            f"{folder.parent} holds a damaged run, {folder.name} ({error}), so it is left as it is; "
            "set into to another folder."
        ) from error


def _line(data: RunData) -> str:
    raw = without_nan(data.record.to_json())
    return json.dumps(raw, separators=(",", ":"), allow_nan=False) + "\n"


def _tables(packed: list[RunData]) -> dict[str, pd.DataFrame]:
    """Return the tables of all runs, each with the run's id in front of its rows."""
    import pandas as pd

    windows = [
        pd.DataFrame({"run": d.record.run_id, "scores": scores, "value": means[:, 0]})
        for d in packed
        for scores, means in d.tokens.items()
    ]
    parts = {
        "items": [_of_run(d, d.items) for d in packed],
        "layers": [_of_run(d, d.layers) for d in packed],
        "windows": windows,
    }
    filled = {kind: [t for t in tables if len(t)] for kind, tables in parts.items()}
    return {
        kind: pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
        for kind, tables in filled.items()
    }


def _of_run(data: RunData, table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(run=data.record.run_id)[["run", *table.columns]]


def _float32(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table whose floats, and columns of nothing, are float32."""
    import pandas as pd

    changed = {
        name: column.astype("float32")
        for name, column in table.items()
        if pd.api.types.is_float_dtype(column) or (len(column) and column.isna().all())
    }
    return table.assign(**{str(name): column for name, column in changed.items()})


def _write_parquet(table: pd.DataFrame, path: Path) -> None:
    """Write a table as Parquet without the statistics and schemas that small tables do not need."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    plain = pa.Table.from_pandas(table, preserve_index=False).replace_schema_metadata(None)
    pq.write_table(
        plain,
        path,
        compression="zstd",
        compression_level=19,
        write_statistics=False,
        store_schema=False,
        use_dictionary=[
            n for n in plain.column_names if not pa.types.is_floating(plain.schema.field(n).type)
        ],
    )
