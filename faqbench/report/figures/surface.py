"""FAQ's two knobs: quality over the preview's window and gamma, one map per bit-width."""

from __future__ import annotations

import math

import numpy as np

from faqbench.report import facts
from faqbench.report.analysis import Analysis
from faqbench.report.columns import Column, Row, metric_scale, metric_unit
from faqbench.report.evidence import EvidenceStore
from faqbench.report.figures import style
from faqbench.report.figures.drawing import Drawing
from faqbench.report.figures.estimates import MOST_DRAWN

TITLE = "Window and gamma of the preview"
_KEYS = ("quant.preview.window", "quant.preview.gamma")
_MOST_MAPS = 6
_Group = dict[tuple[float, float], Row]


def draw(analysis: Analysis, _store: EvidenceStore) -> Drawing | None:
    """Draw a map of the first column for each setting with two windows and two gammas at least."""
    panel = analysis.panel
    column = next(iter(panel.columns), None)
    groups = {} if column is None else _groups(panel.rows, column)
    if column is None or not groups:
        return None
    shown = dict(list(groups.items())[:_MOST_MAPS])
    n_across = min(2, len(shown))
    n_down = -(-len(shown) // n_across)
    figure, all_axes = style.new_figure(style.WIDTH, 2.7 * n_down, n_down, n_across)
    for axes in all_axes[len(shown) :]:
        axes.set_visible(False)
    scale, decimals = metric_scale(column)
    for axes, (name, group) in zip(all_axes, shown.items(), strict=False):
        windows, gammas = (sorted({k[i] for k in group}) for i in (0, 1))
        values = {k: _value(column, row) * scale for k, row in group.items()}
        grid = np.array([[values.get((w, g), math.nan) for w in windows] for g in gammas])
        colors = "cividis" if column.higher_is_better else "cividis_r"
        axes.imshow(
            grid, aspect="auto", interpolation="none", origin="lower", cmap=style.colormap(colors)
        )
        best = (max if column.higher_is_better else min)(values, key=lambda k: values[k])
        low, high = np.nanmin(grid), np.nanmax(grid)
        for (w, g), value in values.items():
            light = (value - low) / (high - low or 1.0)
            dark_ink = (light > 0.55) == column.higher_is_better
            axes.text(
                windows.index(w),
                gammas.index(g),
                f"{value:,.{decimals}f}",
                ha="center",
                va="center",
                fontsize=8,
                color="#101114" if dark_ink else "#fefefe",
                fontweight="bold" if (w, g) == best else "normal",
            )
        axes.set_xticks(range(len(windows)), [f"{w:g}" for w in windows])
        axes.set_yticks(range(len(gammas)), [f"{g:g}" for g in gammas])
        axes.set_xlabel("window")
        axes.set_ylabel("gamma")
        axes.grid(visible=False)
        axes.set_title(style.label(name, 66 // n_across))
    reference = _reference(analysis, column)
    return Drawing(
        figure=figure,
        caption=f"{metric_unit(column).capitalize()} on {column.label}; bold is the best value of "
        f"its map, significance aside. {reference}Window 0 or gamma 1 would be AWQ.",
        alt="; ".join(_best(name, group, column) for name, group in groups.items()) + ".",
        header=("setting", "window", "gamma", metric_unit(column)),
        rows=tuple(
            (name, f"{w:g}", f"{g:g}", f"{_value(column, row) * scale:,.{decimals}f}")
            for name, group in groups.items()
            for (w, g), row in sorted(group.items())
        ),
    )


def _groups(rows: tuple[Row, ...], column: Column) -> dict[str, _Group]:
    """Return name of the setting -> (window, gamma) -> row."""
    groups: dict[tuple[str, ...], _Group] = {}
    names: dict[tuple[str, ...], str] = {}
    for row in rows:
        place = [row.keys.get(key) for key in _KEYS]
        if None in place or not _value(column, row) < MOST_DRAWN:
            continue
        others = {k: v for k, v in row.shown.items() if k not in _KEYS}
        key = (row.method, str(row.bits), *others.values())
        words = [f"{facts.key_label(k)}={v}" for k, v in others.items()]
        names[key] = ", ".join([facts.display_method(row.method), f"{row.bits} bits", *words])
        groups.setdefault(key, {})[float(place[0] or 0), float(place[1] or 0)] = row
    return {
        names[key]: group
        for key, group in groups.items()
        if all(len({place[i] for place in group}) > 1 for i in (0, 1))
    }


def _value(column: Column, row: Row) -> float:
    estimate = column.estimate(row)
    return math.nan if estimate is None else estimate.value


def _reference(analysis: Analysis, column: Column) -> str:
    scale, decimals = metric_scale(column)
    found = [
        f"{row.name} at {row.bits} bits has {_value(column, row) * scale:,.{decimals}f}. "
        for row in analysis.panel.rows
        if row.method == "awq" and math.isfinite(_value(column, row))
    ]
    return "".join(found[:2])


def _best(name: str, group: _Group, column: Column) -> str:
    sign = -1 if column.higher_is_better else 1
    window, gamma = min(group, key=lambda place: sign * _value(column, group[place]))
    return f"{name}: best by value at window {window:g} and gamma {gamma:g}"
