"""Reading the tables of a run folder: bounded, of the columns and types that were written, or refused."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from faqbench.foreign import read_file, visible

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

_MOST_MEGABYTES = 1000  # of a file, and of what it unpacks to
_MOST_ROWS = 50_000_000
_TEXTS = {"string", "empty", "boolean"}  # as pandas calls the values of a column of objects
_KINDS = {"task": "O", "metric": "O", "item": "iu", "value": "fiub", "role": "O", "linear": "O",
          "block": "iu", "relative_error": "fiu", "run": "O", "scores": "O"}  # fmt: skip


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

    kind, wanted = column.dtype.kind, _KINDS.get(name)
    held = "empty" if column.isna().all() else pd.api.types.infer_dtype(column, skipna=True)
    is_wanted = wanted is None or kind in wanted or held == "empty"
    if not is_wanted or (kind == "O" and held not in _TEXTS):
        raise ValueError(f"its column {visible(name)} holds {held}")


def _visible_column(column: pd.Series[Any]) -> pd.Series[Any]:
    texts = [text for text in column.unique() if isinstance(text, str)]
    shown = {text: visible(text) for text in texts if not text.isprintable()}
    return column.replace(shown) if shown else column
