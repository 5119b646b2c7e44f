"""Compact run folders: small enough to be committed, whole enough for every table, plot and paired test.

    record.json      without indentation and without the keys of the cache's stages
    items.parquet    as it was
    tokens.npz       per protocol, means over each window [n_windows, 1], which is all that pairing reads
    layers.parquet   its numbers in float32

`config.yaml` is left out: `record.json` holds the same configuration. A compact run reads like any other;
a report made from compact runs is the same from every clone, and compacting twice changes nothing.
"""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

from faqbench.config import UserError
from faqbench.files import atomic_directory, explain_os_error
from faqbench.records.store import RunData, without_nan

if TYPE_CHECKING:
    import pandas as pd

_REMEDY = "free some space, or set into to a folder that can be written"
_FILES = {"record.json", "items.parquet", "layers.parquet", "tokens.npz"}
_DROPPED = ("stage_keys",)


def compact_run(data: RunData) -> RunData:
    """Return a run with window means in the place of tokens, and its layers in float32."""
    import numpy as np

    extra = {k: v for k, v in data.record.extra.items() if k not in _DROPPED}
    means = {n: a.mean(axis=1, dtype=np.float64)[:, None] for n, a in data.tokens.items()}
    return RunData(
        record=dataclasses.replace(data.record, extra=extra),
        items=data.items,
        tokens=means,
        layers=_float32(data.layers),
    )


def write_compact_run(runs: Path, data: RunData) -> Path:
    """Write a compact run's folder atomically, replacing an earlier one, and return it.

    Raises:
        UserError: when the folder cannot be written, or holds more than a compact run.
    """
    import numpy as np

    small = compact_run(data)
    target = runs / small.record.run_id
    if target.exists() and (others := {p.name for p in target.iterdir()} - _FILES):
        raise UserError(
            f"{target} holds {sorted(others)[0]}, which no compact run does, so it is left as it is; set "
            "into to another folder."
        )
    with (
        explain_os_error("write the compact run", target, _REMEDY),
        atomic_directory(target) as folder,
    ):
        raw = without_nan(small.record.to_json())
        text = json.dumps(raw, separators=(",", ":"), allow_nan=False)
        (folder / "record.json").write_text(text)
        for name, table in (("items", small.items), ("layers", small.layers)):
            (folder / f"{name}.parquet").write_bytes(_parquet(table))
        arrays = io.BytesIO()
        np.savez_compressed(arrays, allow_pickle=False, **dict(small.tokens))
        (folder / "tokens.npz").write_bytes(arrays.getvalue())
    return target


def _float32(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table whose floats, and columns of nothing, are float32."""
    import pandas as pd

    changed = {
        name: column.astype("float32")
        for name, column in table.items()
        if pd.api.types.is_float_dtype(column) or (len(column) and column.isna().all())
    }
    return table.assign(**{str(name): column for name, column in changed.items()})


def _parquet(table: pd.DataFrame) -> bytes:
    """Return a table as Parquet without the statistics and schemas that small tables do not need."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = io.BytesIO()
    plain = pa.Table.from_pandas(table, preserve_index=False).replace_schema_metadata(None)
    pq.write_table(
        plain,
        out,
        compression="zstd",
        compression_level=19,
        write_statistics=False,
        store_schema=False,
        use_dictionary=[
            n for n in plain.column_names if not pa.types.is_floating(plain.schema.field(n).type)
        ],
    )
    return out.getvalue()
