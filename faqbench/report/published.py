"""Values that papers published, shown beside ours and never as ours.

`published.json` holds one entry per number; a null for bits means that our source does not state
them. The FAQ paper's body is not available to this project; its numbers come by way of the
project's source material.
"""

from __future__ import annotations

import json
from importlib.resources import files

from faqbench.report import formatting
from faqbench.report.tables import Cell, Heading, Table, text_cell


def published_table() -> Table:
    """Return the published values as a table."""
    entries = json.loads(files("faqbench.report").joinpath("published.json").read_text("utf-8"))
    rows = tuple(
        (
            text_cell(e["model"]),
            text_cell(e["metric"]),
            Cell(text="not stated" if e["bits"] is None else str(e["bits"]), raw=e["bits"]),
            Cell(text=e["method"], raw=e["method"], method=e["method"].lower()),
            Cell(text=e["value"].replace("-", formatting.MINUS), raw=e["value"].removeprefix("+")),
            text_cell(e["source"]),
        )
        for e in entries
    )
    names = ("model", "metric", "bits", "method", "value", "source")
    models = [entry["model"] for entry in entries]
    return Table(
        name="published",
        caption="Published, not ours",
        headings=tuple(Heading(text=n, numeric=n in ("bits", "value")) for n in names),
        rows=rows,
        breaks=frozenset(i for i in range(1, len(models)) if models[i] != models[i - 1]),
    )
