"""Tables as Parquet: typed columns at full precision, no formatting."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING

from faqbench.report.tables import Table

if TYPE_CHECKING:
    import pyarrow as pa

_Value = float | str | None


def to_parquet(table: Table) -> bytes:
    """Return a table's raw values, with a column of its own for every standard error.

    A column that holds text anywhere is text; what was not measured is null.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    names: list[str] = []
    columns: list[pa.Array] = []
    for i, heading in enumerate(table.headings):
        name = heading.csv or heading.text
        names.append(name)
        columns.append(_column([row[i].raw for row in table.rows]))
        if heading.has_error:
            names.append(heading.csv_error or f"{name} stderr")
            columns.append(_column([row[i].raw_error for row in table.rows]))
    out = io.BytesIO()
    pq.write_table(pa.table(columns, names=names), out)
    return out.getvalue()


def _column(values: list[_Value]) -> pa.Array:
    import pyarrow as pa

    known = [v for v in values if v is not None and not (isinstance(v, float) and math.isnan(v))]
    if any(isinstance(v, str) for v in known):
        return pa.array([None if v is None else str(v) for v in values], pa.string())
    if known and all(isinstance(v, int) for v in known):
        return pa.array(values, pa.int64())
    return pa.array(
        [None if v is None else float(v) for v in values], pa.float64(), from_pandas=True
    )
