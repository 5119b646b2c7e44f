"""What stands on which page, and how it becomes text.

A page that has to be scrolled through for minutes serves nobody. Up to `MOST_RUNS` runs all is in
`index.html`; beyond, the sections of the runs go to pages of their own, and so do the rows of tables that
are too long, each page as self-contained as the first.

Templates are Jinja2's. HTML is escaped by default; Markdown through the filter `md`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from faqbench.report.figures import style
from faqbench.report.run_section import RunSection
from faqbench.tables import Table, escape_markdown, to_markdown

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


GENERATOR = b'<meta name="generator" content="faqbench">'  # by which a page is known as ours


def slug_of(text: str) -> str:
    """Return a name that is safe in a file's name and in an id."""
    kept = "".join(c if c.isascii() and c.isalnum() else "-" for c in text.lower())
    return "-".join(part for part in kept.split("-") if part) or "unnamed"


def render(template: str, **values: Any) -> str:
    """Return a template's text with one newline at its end."""
    return _environment().get_template(template).render(**values).strip() + "\n"


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        autoescape=jinja2.select_autoescape(enabled_extensions=("html.j2",)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["md"] = escape_markdown
    environment.filters["md_table"] = to_markdown
    environment.filters["break_words"] = break_words
    environment.filters["slug"] = slug_of
    environment.filters["method_color"] = style.color
    environment.globals["asset"] = lambda name: Markup(_source(name))  # noqa: S704 (our own files)
    environment.globals["inline_svg"] = Markup  # drawn by matplotlib, which escapes all text
    return environment


@functools.lru_cache(maxsize=100_000)  # keys and values of configurations, the same for all runs
def break_words(text: str) -> Markup:
    """Return escaped text that may break after underscores, hyphens and slashes."""
    escaped = str(Markup.escape(text))
    for mark in ("_", "/"):
        escaped = escaped.replace(mark, f"{mark}<wbr>")
    return Markup(escaped)  # noqa: S704 (escaped above; <wbr> is ours)


def _source(name: str) -> str:
    return files("faqbench.report").joinpath("templates", name).read_text("utf-8")
