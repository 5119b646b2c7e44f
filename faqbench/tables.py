"""Every table that a reader sees as one value, from which all its forms are made.

A cell knows its text for readers, its number for sorting and files, and its mark; so a page (HTML is made
by the templates), a terminal, Markdown, LaTeX, CSV and Parquet cannot disagree. Whatever could be read as
markup is escaped.
"""

from __future__ import annotations

import csv
import html
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from faqbench import formatting

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class Heading:
    """A column's head.

    Attributes:
        text: the column's name.
        sub: a second line, such as the unit that readers see.
        numeric: whether numbers stand below it.
        has_error: whether every value has a standard error, which gets a column of its own in files.
        csv: the name in CSV and Parquet, where values are raw; `text` unless given.
        csv_error: the name of that second column; the name and "stderr" unless given.
    """

    text: str
    sub: str = ""
    csv: str = ""
    csv_error: str = ""
    numeric: bool = True
    has_error: bool = False


@dataclass(frozen=True, kw_only=True)
class TableCell:
    """One entry.

    Attributes:
        text: what a reader sees.
        error: the standard error, shown small after the text.
        raw: the number, or text, for sorting and files.
        raw_error: the standard error, or an interval's upper end, for files.
        mark: "best", "tied" or empty.
        href: a run id to link to.
        links: (text, run id) of further links.
        tone: "bad" for what a reader must not miss.
        color: a method's colour, for its swatch.
    """

    text: str
    error: str = ""
    raw: float | str | None = None
    raw_error: float | None = None
    mark: str = ""
    href: str = ""
    links: tuple[tuple[str, str], ...] = ()
    tone: str = ""
    method: str = ""

    @property
    def whole_text(self) -> str:
        """The text with its standard error, for where there is no small print."""
        return f"{self.text} ± {self.error}" if self.error else self.text


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table.

    Attributes:
        caption: what it shows.
        headings: one per column.
        rows: as many cells each.
        name: of its files, where it has some.
        breaks: the rows that begin a new group.
        notes: what stands below it.
        shown: how many rows are enough for a glance; None is all of them.
    """

    caption: str
    headings: tuple[Heading, ...]
    rows: tuple[tuple[TableCell, ...], ...]
    name: str = ""
    breaks: frozenset[int] = frozenset()
    notes: tuple[str, ...] = ()
    shown: int | None = None

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, str]], caption: str = "") -> Table:
        """Return a table of texts; its columns are the keys of the first row, in their order."""
        heads = list(rows[0]) if rows else []
        return text_table(caption, heads, [[row[head] for head in heads] for row in rows])

    def texts(self) -> list[dict[str, str]]:
        """Return what a reader sees, as a mapping from heads to texts per row."""
        heads = [heading.text for heading in self.headings]
        return [dict(zip(heads, (c.whole_text for c in row), strict=True)) for row in self.rows]


_NUMBER = re.compile(r"[-+]?[0-9]+([.][0-9]+)?(e[-+]?[0-9]+)?")


@lru_cache(maxsize=200_000)  # the same few numbers and words stand in the sections of all runs
def text_cell(text: str) -> TableCell:
    """Return a cell of plain text."""
    return TableCell(text=text, raw=text)


def text_table(
    caption: str,
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    n_names: int = 1,
    shown: int | None = None,
) -> Table:
    """Return a table of texts, of which all but the first columns hold numbers.

    Args:
        caption: what it shows.
        heads: of its columns.
        rows: as many texts each.
        n_names: how many columns hold names, at the left.
        shown: how many rows are enough for a glance.
    """
    return Table(
        caption=caption,
        headings=tuple(Heading(text=h, numeric=i >= n_names) for i, h in enumerate(heads)),
        rows=tuple(tuple(map(_cell_of_text, row)) for row in rows),
        shown=shown,
    )


@lru_cache(maxsize=200_000)
def _cell_of_text(text: str) -> TableCell:
    """Return a cell of text, which files hold as a number where it is one."""
    plain = text.replace(formatting.MINUS, "-").replace(",", "")
    if not _NUMBER.fullmatch(plain):
        return text_cell(text)
    return TableCell(text=text, raw=int(plain) if plain.isdecimal() else float(plain))


_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    formatting.MINUS: "$-$",
    "±": r"$\pm$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "∞": r"$\infty$",
    "—": "---", "\n": " ", "\r": " ", "•": r"$\bullet$",
}  # fmt: skip
_AFTER_LATIN = 0x180  # T1 fonts hold Latin-1 and Latin Extended-A
_MARKDOWN = "\\`*_[]#|~$"


def escape_tex(text: str) -> str:
    """Return text that LaTeX prints as it is, for any input; what T1 fonts lack is a question mark."""
    return "".join(_TEX.get(c) or _plain_tex(c) for c in text)


def _plain_tex(character: str) -> str:
    if not character.isprintable():
        return " "
    return character if ord(character) < _AFTER_LATIN else "?"


def escape_markdown(text: str) -> str:
    """Return text that Markdown, inline HTML included, shows as it is, on one line."""
    one_line = html.escape(" ".join(text.split()), quote=False)
    return "".join(f"\\{c}" if c in _MARKDOWN else c for c in one_line)


def to_csv(table: Table) -> str:
    """Return numbers at full precision, with a column of its own for every standard error."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    header: list[str] = []
    for heading in table.headings:
        name = heading.csv or heading.text
        header.append(_csv_text(name))
        if heading.has_error:
            header.append(_csv_text(heading.csv_error or f"{name} stderr"))
    writer.writerow(header)
    for row in table.rows:
        line: list[str] = []
        for heading, cell in zip(table.headings, row, strict=True):
            line += [_csv_value(cell.raw)] + ([_csv_value(cell.raw_error)] if heading.has_error else [])
        writer.writerow(line)
    return out.getvalue()


def to_markdown(table: Table) -> str:
    """Return a pipe table; bold is significant, a bullet cannot be told from the best."""
    heads = [escape_markdown(f"{h.text} ({h.sub})" if h.sub else h.text) for h in table.headings]
    rule = ["--:" if h.numeric else ":--" for h in table.headings]
    lines = [heads, rule, *([_markdown_cell(cell) for cell in row] for row in table.rows)]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
    return text + "".join(f"\n{escape_markdown(note)}\n" for note in table.notes)


def to_latex(table: Table) -> str:
    r"""Return a booktabs tabular; it needs \usepackage{booktabs} and T1 fonts, nothing else."""
    align = "".join("r" if h.numeric else "l" for h in table.headings)
    first = " & ".join(escape_tex(h.text) for h in table.headings)
    second = " & ".join(escape_tex(h.sub) for h in table.headings)
    lines = [rf"\begin{{tabular}}{{{align}}}", r"\toprule", first + r" \\"]
    lines += [second + r" \\"] if any(h.sub for h in table.headings) else []
    lines.append(r"\midrule")
    for i, row in enumerate(table.rows):
        lines += [r"\midrule"] if i in table.breaks else []
        lines.append(" & ".join(_tex_cell(cell) for cell in row) + r" \\")
    notes = [rf"\par{{\footnotesize {escape_tex(note)}\par}}" for note in table.notes]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", *notes, ""])


def _markdown_cell(cell: TableCell) -> str:
    text = escape_markdown(cell.text)
    text = f"**{text}**" if cell.mark == "best" else f"{text} •" if cell.mark == "tied" else text
    return f"{text} ± {escape_markdown(cell.error)}" if cell.error else text


def _tex_cell(cell: TableCell) -> str:
    text = escape_tex(cell.text)
    if cell.mark == "best":
        text = rf"\textbf{{{text}}}"
    elif cell.mark == "tied":
        text += r"$^{\bullet}$"
    return rf"{text} {{\scriptsize$\pm$ {escape_tex(cell.error)}}}" if cell.error else text


def _csv_value(value: float | str | None) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return _csv_text(value) if isinstance(value, str) else repr(value)


def _csv_text(text: str) -> str:
    """Return text that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


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

    present = [v for v in values if v is not None and not (isinstance(v, float) and math.isnan(v))]
    if any(isinstance(v, str) for v in present):
        return pa.array([None if v is None else str(v) for v in values], pa.string())
    if present and all(isinstance(v, int) for v in present):
        return pa.array(values, pa.int64())
    return pa.array([None if v is None else float(v) for v in values], pa.float64(), from_pandas=True)
