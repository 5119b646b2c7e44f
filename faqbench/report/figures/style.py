"""One style for every figure: sizes, quiet axes, and one colour and marker per method everywhere.

The colours are Okabe and Ito's, which stay apart for all common kinds of colour blindness; markers
and line styles repeat the distinction. INK, QUIET, RULE and white are exact values that the
page replaces by its own colours.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

INK, QUIET, RULE = "#1c1d21", "#5f636b", "#dcdee2"
PAGE_COLORS = {INK: "--ink", QUIET: "--quiet", RULE: "--rule", "#ffffff": "--paper"}

# By the words of the table of methods; a method without one takes a spare look by its name.
_LOOKS = {
    "fp": (QUIET, "|"), "rtn": ("#d55e00", "s"), "awq": ("#0072b2", "o"), "faq": ("#009e73", "D"),
    "gptq": ("#cc79a7", "^"), "qep": ("#e69f00", "v"), "loaq": ("#56b4e9", "P"),
    "gptaq": ("#882255", ">"), "foem": ("#999933", "<"), "rescomp": ("#332288", "p"),
    "qronos": ("#44aa99", "X"), "omniquant": ("#117733", "d"), "lrquant": ("#ddaa33", "h"),
    "signround": ("#aa4499", "*"),
    "smoothquant": ("#661100", "H"), "lae": ("#6699cc", "8"), "hadamard": ("#aa4466", "<"),
    "random": ("#888888", "d"),
}  # fmt: skip
_COLORS = {word: color for word, (color, _) in _LOOKS.items()}
_MARKERS = {word: marker for word, (_, marker) in _LOOKS.items()}
_SPARE_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_SPARE_MARKERS = ("X", "p", "h", "<", ">", "*")
LINE_STYLES = ("-", "--", ":", "-.")
STAGE_COLORS = ("#56b4e9", "#e69f00", "#0072b2", "#cc79a7", "#009e73", "#d55e00", "#999999")

ROLE_COLORS = {"qkv": "#0072b2", "o": "#56b4e9", "gate_up": "#e69f00", "down": "#d55e00"}

RC: Any = {
    "svg.hashsalt": "faqbench", "svg.fonttype": "none", "font.family": ["DejaVu Sans"],
    "font.size": 9, "text.color": INK, "axes.edgecolor": QUIET, "axes.labelcolor": QUIET,
    "axes.labelsize": 8.5, "axes.titlesize": 9.5, "axes.titlelocation": "left", "axes.titlepad": 8,
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": RULE, "grid.linewidth": 0.6,
    "xtick.color": QUIET, "ytick.color": QUIET, "xtick.labelsize": 8.5, "ytick.labelsize": 8.5,
    "xtick.major.size": 3, "ytick.major.size": 3, "xtick.minor.size": 0, "ytick.minor.size": 0,
    "lines.linewidth": 1.6, "lines.markersize": 6, "legend.frameon": False, "legend.fontsize": 8.5,
    "figure.facecolor": "white", "axes.facecolor": "none", "savefig.facecolor": "white",
    "axes.unicode_minus": True, "text.parse_math": False, "figure.dpi": 72,
}  # fmt: skip
WIDTH = 5.2


def color(method: str) -> str:
    """Return a method's colour; a composition such as qep-gptq has the colour of its last part."""
    colors = [_COLORS[p] for p in method.split("-") if p in _COLORS]
    return colors[-1] if colors else _SPARE_COLORS[zlib.crc32(method.encode()) % len(_SPARE_COLORS)]


def marker(method: str) -> str:
    """Return a method's marker; a composition has the marker of its last part."""
    markers = [_MARKERS[p] for p in method.split("-") if p in _MARKERS]
    spare = _SPARE_MARKERS[zlib.crc32(method.encode()) % len(_SPARE_MARKERS)]
    return markers[-1] if markers else spare


def look(method: str, variant: int = 0) -> dict[str, Any]:
    """Return what draws a method's line and points: a composition is hollow and dashed.

    Args:
        method: the preset's name.
        variant: which of its lines in one set of axes; each has a line style of its own.
    """
    composed = sum(part in _COLORS for part in method.split("-")) > 1
    styles = LINE_STYLES[1:] if composed else LINE_STYLES
    return {
        "color": color(method),
        "marker": marker(method),
        "markerfacecolor": "#ffffff" if composed else color(method),
        "linestyle": styles[variant % len(styles)],
    }


def label(text: str, longest: int = 34) -> str:
    """Return text for a figure: printable characters, and no more than fit."""
    clean = "".join(c if c.isprintable() else " " for c in text)
    return clean if len(clean) <= longest else clean[: longest - 1] + "…"


def new_figure(
    width: float, height: float, n_rows: int = 1, n_columns: int = 1, **kwargs: Any
) -> tuple[Figure, list[Axes]]:
    """Return a figure of inches with its axes in a list, made without any global state."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(n_rows, n_columns, squeeze=False, **kwargs)
    return figure, list(axes.flat)


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Label the rows of a dot plot from the top down, and keep only its vertical grid lines."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.spines["left"].set_visible(False)


def plain_log_ticks(axes: Axes, axis: str) -> None:
    """Put plain numbers (20, 50, 100) on a logarithmic axis."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    target = axes.xaxis if axis == "x" else axes.yaxis
    low, high = axes.get_xlim() if axis == "x" else axes.get_ylim()
    subs = (1, 2, 3, 4, 5, 7) if high / low < 12 else (1, 2, 5) if high / low < 300 else (1,)
    target.set_major_locator(LogLocator(base=10, subs=subs, numticks=12))
    target.set_minor_formatter(NullFormatter())
    target.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.10g}"))


_LEGEND_ROW, _LEGEND_ROWS = 0.22, 2  # inches of a row, and how many a figure's height has room for


def add_legend(figure: Figure, all_axes: Sequence[Axes]) -> None:
    """Put one legend of all axes above a figure, which a long one makes taller; none for one name."""
    handles_by_label: dict[str, Any] = {}
    for axes in all_axes:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            handles_by_label.setdefault(name, handle)
    names = sorted(handles_by_label, key=lambda name: name == "full precision")
    if len(names) < 2:
        return
    widths = [len(name) + 7 for name in names]
    room = round(13 * figure.get_figwidth())
    columns = len(names) if sum(widths) <= room else max(1, room // max(widths))
    n_rows = -(-len(names) // columns)
    figure.set_figheight(figure.get_figheight() + _LEGEND_ROW * max(0, n_rows - _LEGEND_ROWS))
    # Legends are filled column by column, and read row by row.
    places = [r * columns + c for c in range(columns) for r in range(n_rows)]
    names = [names[i] for i in places if i < len(names)]
    figure.legend(
        [handles_by_label[name] for name in names],
        names,
        loc="outside upper left",
        ncols=columns,
        handlelength=1.6,
        columnspacing=1.2,
    )


def colormap(name: str) -> Colormap:
    """Return one of matplotlib's colour maps with grey for what was not measured."""
    import matplotlib

    return matplotlib.colormaps[name].with_extremes(bad="#9a9da3")


def three_ticks(image: AxesImage) -> list[float]:
    """Return the lowest, middle and highest value of an image's colours."""
    low, high = image.get_clim()
    return [low, (low + high) / 2, high]
