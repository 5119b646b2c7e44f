"""Tables as CSV, Markdown and LaTeX, with everything escaped that could be read as markup."""

from __future__ import annotations

import csv
import html
import io
import math
from collections.abc import Sequence

from faqbench.report import formatting
from faqbench.report.tables import Cell, Table

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
            line += [_csv_value(cell.raw)] + (
                [_csv_value(cell.raw_error)] if heading.has_error else []
            )
        writer.writerow(line)
    return out.getvalue()


def plain_csv(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a figure's data as CSV, as its readers see it."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows([[_csv_text(text) for text in row] for row in (header, *rows)])
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


def _markdown_cell(cell: Cell) -> str:
    text = escape_markdown(cell.text)
    text = f"**{text}**" if cell.mark == "best" else f"{text} •" if cell.mark == "tied" else text
    return f"{text} ± {escape_markdown(cell.error)}" if cell.error else text


def _tex_cell(cell: Cell) -> str:
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
