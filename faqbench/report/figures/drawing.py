"""What a plot returns, and how it becomes the same bytes every time.

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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from faqbench.report.figures import style
from faqbench.tables import Table, text_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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


def _settle(figure: Figure) -> None:
    """Lay a figure out once, for all the formats that it is written in, and without drawing it yet."""
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    engine = figure.get_layout_engine()
    if isinstance(engine, ConstrainedLayoutEngine):
        engine.execute(figure)
        figure.set_layout_engine("none")


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
