"""What a plot shows, what it returns, and how it becomes the same bytes every time.

Rows that compete at one setting stand together in one set of axes (`facets`), and lines stay few enough to
read. A setting is what rows share apart from method and bits, such as the scenario or the group size; what
makes a variant of a method (its gamma, its exponents) stays in the row's name.

matplotlib writes ids and dates into its files; here ids come from a fixed salt and all metadata is
left out. For the page, an SVG's dark strokes and texts are turned into the page's own colours, so
one drawing serves the light and the dark page, and its ids get a prefix, since one page holds many.

Layout and writing take a second or two a figure. So each figure is laid out once for all its formats, and a
canvas is asked to print itself: `Figure.savefig` draws everything once more, for nothing, beforehand.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from faqbench.report import facts
from faqbench.report.analysis import Contest
from faqbench.report.columns import Row, beside, in_words, is_variant
from faqbench.report.figures import style
from faqbench.report.panels import Panel, fits
from faqbench.tables import Table, text_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine


@dataclass(frozen=True, kw_only=True)
class FigureContent:
    """A finished figure in the forms that a page and a folder need; it holds no matplotlib object.

    Attributes:
        kind: the plot's module.
        name: of its files.
        title: its heading.
        caption: what is drawn and how to read it.
        alt: the figure's message for those who do not see it.
        data: its numbers, as texts.
        svg: the file.
        inline: the element for the page.
        png: the file.
    """

    kind: str
    name: str
    title: str
    caption: str
    alt: str
    data: Table
    svg: str
    inline: str
    png: bytes


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure with its caption and its numbers.

    Attributes:
        figure: the matplotlib figure.
        caption: what is drawn and how to read it.
        alt: the figure's message for those who do not see it.
        header: the heads of its data table.
        rows: its data, as text.
    """

    figure: Figure
    caption: str
    alt: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@contextmanager
def drawing_rules() -> Iterator[None]:
    """Draw by the house's rules inside this block."""
    import matplotlib

    with matplotlib.rc_context(style.RC):
        yield


def finish(kind: str, title: str, drawing: Drawing, end: str = "") -> FigureContent:
    """Return a drawing in all its forms; `end` makes its name one of a panel's own."""
    svg, name = to_svg(drawing), f"{kind}{end}"
    return FigureContent(
        kind=kind,
        name=name,
        title=title,
        caption=drawing.caption,
        alt=drawing.alt,
        data=text_table(f"{title}, data", drawing.header, drawing.rows),
        svg=svg,
        inline=to_inline(svg, f"fig-{name}"),
        png=to_png(drawing),
    )


def to_svg(drawing: Drawing) -> str:
    """Return the figure as SVG with its texts as text, equal for equal figures."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    out = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context(style.RC), _any_glyph():
        _settle(drawing.figure)
        canvas: Any = FigureCanvasSVG(drawing.figure)
        canvas.print_svg(out, metadata=nothing)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def to_png(drawing: Drawing, dpi: int = 200) -> bytes:
    """Return the figure as PNG, at twice the page's resolution unless another is given."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    out = io.BytesIO()
    with matplotlib.rc_context(style.RC), _any_glyph():
        _settle(drawing.figure)
        drawing.figure.set_dpi(dpi)
        canvas: Any = FigureCanvasAgg(drawing.figure)
        canvas.print_png(out, metadata={"Software": None})
    return out.getvalue()


_GROWTH, _MOST_GROWTHS = 1.2, 10  # of a figure in which names leave no room, each way


def _settle(figure: Figure) -> None:
    """Lay a figure out once, for all the formats that it is written in, and without drawing it yet.

    It grows until names and numbers leave its axes some room; where that does not help, they stay where
    they were made.
    """
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    engine = figure.get_layout_engine()
    if isinstance(engine, ConstrainedLayoutEngine):
        for _ in range(_MOST_GROWTHS):
            if _is_laid_out(figure, engine):
                break
            width, height = figure.get_size_inches()
            figure.set_size_inches(_GROWTH * width, _GROWTH * height)
        figure.set_layout_engine("none")


def _is_laid_out(figure: Figure, engine: ConstrainedLayoutEngine) -> bool:
    """Lay a figure out, and say whether there was room, which matplotlib tells by a warning alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "constrained_layout not applied", UserWarning)
        try:
            engine.execute(figure)
        except UserWarning:
            return False
    return True


@contextmanager
def _any_glyph() -> Iterator[None]:
    """Let a name in any script pass: a box in the PNG is no reason to warn."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def to_inline(svg: str, prefix: str) -> str:
    """Return an SVG element for the page: own ids, page colours, no background, no size in points.

    It is hidden from assistive technology; the figure around it carries the words and the table.
    """
    element = svg[svg.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', element)
    element = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", element)
    element = re.sub(r'xlink:href="#([^"]+)"', rf'xlink:href="#{prefix}-\1"', element)
    width = re.search(r'width="([\d.]+)pt"', element)
    size = f'style="width:{float(width[1]) * 4 / 3:.0f}px"' if width else ""
    head, rest = element.split(">", 1)
    head = re.sub(r'\s(width|height)="[\d.]+pt"', "", head)
    for color, variable in style.PAGE_COLORS.items():
        rest = rest.replace(color, f"var({variable})")
    return f'{head} {size} aria-hidden="true" focusable="false">{rest}'


@dataclass(frozen=True, kw_only=True)
class Facet:
    """The rows of one setting, full precision left out.

    Attributes:
        setting: the keys and values that make it; none for the only one.
        rows: those that compete there.
    """

    setting: tuple[tuple[str, str], ...]
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        """The values that make the setting, in words; empty for the only one."""
        return ", ".join(key_words(key, value) for key, value in self.setting)

    @property
    def fewest_bits(self) -> int | None:
        """The bit-width at which methods differ most."""
        return min((row.bits for row in self.rows if row.bits), default=None)

    @property
    def where(self) -> str:
        """The fewest bits and the setting, in words."""
        widths = next((row.widths for row in self.at(self.fewest_bits)), "")
        rest = [key_words(k, v) for k, v in beside(widths, self.setting)]
        return ", ".join(([in_words(widths)] if widths else []) + rest)

    def at(self, bits: int | None) -> list[Row]:
        """Return the rows of one bit-width."""
        return [row for row in self.rows if row.bits == bits]


def facets(panel: Panel) -> list[Facet]:
    """Return the settings of a panel; a method that a setting's key does not touch is in each."""
    keys = [k for k in panel.shown_keys if not is_variant(k)]
    rows = [row for row in panel.rows if not row.is_baseline]
    settings = list(dict.fromkeys(tuple(row.keys.get(k) for k in keys) for row in rows))
    full = [s for s in settings if None not in s] or settings
    all_facets = []
    for setting in full:
        fitting = [r for r in rows if fits(tuple(r.keys.get(k) for k in keys), setting)]
        named = tuple((k, v) for k, v in zip(keys, setting, strict=True) if v)
        all_facets.append(Facet(setting=named, rows=tuple(fitting)))
    return all_facets


def row_label(row: Row, longest: int = 38) -> str:
    """Return a row's name for an axis: the method, what makes it a variant or a setting, its bits."""
    named = beside(row.widths, row.named.items())
    words = [facts.display_method(row.method), *(key_words(k, v) for k, v in named)]
    bits = f", {row.widths_in_words}" if row.widths else ""
    return f"{style.label(' '.join(words), longest - len(bits))}{bits}"


def setting_label(contest: Contest) -> str:
    """Return a contest's setting in few words: the bits, then values that speak for themselves."""
    return ", ".join([in_words(contest.widths), *(key_words(k, v) for k, v in contest.rest)])


def representatives(rows: Sequence[Row], most: int, per_method: int = 3) -> list[Row]:
    """Return a few rows for a plot: at most so many in all, and of each method's variants."""
    kept: list[Row] = []
    for row in rows:
        if sum(other.method == row.method for other in kept) < per_method:
            kept.append(row)
    return kept[:most]


def how_many(shown: int, there: int, nouns: str) -> str:
    """Return a sentence about what was left out for the reader's sake, or nothing."""
    return "" if shown == there else f" {shown} of {there} {nouns} are drawn; the tables have all."


def key_words(key: str, value: str) -> str:
    """Return a value that speaks for itself, as a group's name does, or the key with it."""
    return value if key.endswith(".name") else f"{facts.key_label(key)}={value}"
