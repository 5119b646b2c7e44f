"""What stands on which page: one self-contained file, or several linked ones for a large report.

A page that has to be scrolled through for minutes serves nobody. Up to `MOST_RUNS` runs all is in
`index.html`; beyond, the sections of the runs go to pages of their own, and so do the rows of tables
that are too long, each page as self-contained as the first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from faqbench.report.run_section import RunSection
from faqbench.report.tables import Table

MOST_RUNS = 240
_RUNS_PER_PAGE = 100
_ROWS_PER_PAGE = 500


@dataclass(frozen=True, kw_only=True)
class TablePart:
    """Some rows of a table on one page.

    Attributes:
        file: the page they are on.
        table: the table with these rows alone.
        first: number of the first of them, from 1.
        last: number of the last.
    """

    file: str
    table: Table
    first: int
    last: int


@dataclass(frozen=True, kw_only=True)
class Pages:
    """The pages beside the index.

    Attributes:
        run_pages: file -> the runs on it; empty when all runs are on the index.
        where: run id -> the file of its section; an empty string is the index.
    """

    run_pages: dict[str, tuple[RunSection, ...]]
    where: dict[str, str]

    def link(self, run_id: str) -> str:
        """Return the address of a run's section, from any page."""
        if self.run_pages:
            return f"{self.where.get(run_id, '')}#run-{run_id}"
        return f"#run-{run_id}"


def lay_out(runs: Sequence[RunSection]) -> Pages:
    """Decide where the runs' sections go."""
    if len(runs) <= MOST_RUNS:
        return Pages(run_pages={}, where={run.run_id: "" for run in runs})
    pages = {
        f"runs-{i // _RUNS_PER_PAGE + 1}.html": tuple(runs[i : i + _RUNS_PER_PAGE])
        for i in range(0, len(runs), _RUNS_PER_PAGE)
    }
    where = {run.run_id: file for file, sections in pages.items() for run in sections}
    return Pages(run_pages=pages, where=where)


@dataclass(frozen=True, kw_only=True)
class PagedTable:
    """A whole table, and its parts: the first on the index, the others on further pages."""

    whole: Table
    parts: tuple[TablePart, ...]


def paged(table: Table | None) -> PagedTable | None:
    """Cut a table into its parts; None where there is no table."""
    if table is None:
        return None
    parts = []
    for start in range(0, max(len(table.rows), 1), _ROWS_PER_PAGE):
        rows = table.rows[start : start + _ROWS_PER_PAGE]
        breaks = frozenset(i - start for i in table.breaks if start < i < start + len(rows))
        number = start // _ROWS_PER_PAGE + 1
        parts.append(
            TablePart(
                file=f"{table.name}-{number}.html" if start else "index.html",
                table=dataclasses.replace(table, rows=rows, breaks=breaks),
                first=start + 1,
                last=start + len(rows),
            )
        )
    return PagedTable(whole=table, parts=tuple(parts))
