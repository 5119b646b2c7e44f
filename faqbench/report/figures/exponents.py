"""What FAQ and AWQ chose: histograms of the scales that they found, quality over the preview's knobs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from faqbench.report import facts
from faqbench.report.analysis import Analysis
from faqbench.report.columns import Column, Row, metric_scale, metric_unit
from faqbench.report.evidence import EvidenceStore
from faqbench.report.figures import style
from faqbench.report.figures.drawing import Drawing, facets, how_many, representatives
from faqbench.report.figures.estimates import MOST_DRAWN

if TYPE_CHECKING:
    import pandas as pd


_MOST_ROWS = 6
_ROLES = ("qkv", "o", "gate_up", "down")


def draw_exponents(analysis: Analysis, store: EvidenceStore) -> Drawing | None:
    """Draw two histograms per scaling method at the fewest bits of the first setting."""
    facet = next(iter(facets(analysis.panel)), None)
    if facet is None:
        return None
    scales = [(row, _scales(row, store)) for row in facet.at(facet.fewest_bits)]
    there = [(row, table) for row, table in scales if table is not None]
    kept = representatives([row for row, _ in there], _MOST_ROWS)
    shown = [(row, table) for row, table in there if row in kept]
    if not shown:
        return None
    figure, all_axes = style.new_figure(
        style.WIDTH, 0.55 + 1.15 * len(shown), len(shown), 2, sharex="col", sharey="col"
    )
    widest = max(float(table["scale_range"].max()) for _, table in shown)
    alphas = np.arange(-0.025, 1.05, 0.05).tolist()
    ranges = np.geomspace(1, max(widest, 1.01) * 1.01, 21).tolist()
    for i, (row, table) in enumerate(shown):
        left, right = all_axes[2 * i : 2 * i + 2]
        roles = [r for r in _ROLES if (table["role"] == r).any()]
        paint = [style.ROLE_COLORS[r] for r in roles]
        for axes, column, bins in ((left, "alpha", alphas), (right, "scale_range", ranges)):
            values = [table.loc[table["role"] == r, column].to_numpy(float) for r in roles]
            axes.hist(values, bins=bins, stacked=True, color=paint, label=roles, rwidth=0.9)
            axes.grid(visible=False, axis="x")
        left.set_title(style.label(row.short_name, 40))
        left.set_ylabel("roles")
        right.set_xscale("log")
    style.plain_log_ticks(all_axes[-1], "x")
    all_axes[-2].set_xlabel("alpha")
    all_axes[-1].set_xlabel("largest over smallest scale")
    style.add_legend(figure, all_axes)
    return Drawing(
        figure=figure,
        caption=f"At {facet.where}, one count per decoder block, role and calibration draw. Alpha 0 leaves "
        "a role unscaled; a wide range of scales favours few channels."
        + how_many(len(shown), len(there), "methods"),
        alt="Median alpha: "
        + ", ".join(f"{row.short_name} {table['alpha'].median():.2f}" for row, table in shown)
        + ".",
        header=(
            "method",
            "role",
            "roles counted",
            "median alpha",
            "lowest",
            "highest",
            "median scale range",
        ),
        rows=tuple(_data_rows(there)),
    )


def _scales(row: Row, store: EvidenceStore) -> pd.DataFrame | None:
    """Return one line per draw, block and role that was scaled, or None when none was."""
    import pandas as pd

    needed = ["block", "role", "alpha", "scale_range"]
    tables = [store.of(run.run_id).layers for run in row.runs]
    columns = [t[needed] for t in tables if t is not None and set(needed) <= set(t)]
    if not columns:
        return None
    each = [t.dropna(subset=["alpha"]).drop_duplicates(["block", "role"]) for t in columns]
    table = pd.concat(each, ignore_index=True)
    return table if len(table) else None


def _data_rows(shown: list[tuple[Row, pd.DataFrame]]) -> list[tuple[str, ...]]:
    rows = []
    for row, table in shown:
        for role in _ROLES:
            of_role = table[table["role"] == role]
            if len(of_role):
                alpha = of_role["alpha"].astype(float)
                numbers = (alpha.median(), alpha.min(), alpha.max(), of_role["scale_range"].median())
                rows.append((row.short_name, role, str(len(of_role)), *(f"{x:.3g}" for x in numbers)))
    return rows


_KEYS = ("quant.preview.window", "quant.preview.gamma")
_MOST_MAPS = 6
_Group = dict[tuple[float, float], Row]


def draw_surface(analysis: Analysis, _store: EvidenceStore) -> Drawing | None:
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
        axes.imshow(grid, aspect="auto", interpolation="none", origin="lower", cmap=style.colormap(colors))
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
        others = {k: v for k, v in row.named.items() if k not in _KEYS}
        key = (row.method, row.widths, *others.values())
        words = [f"{facts.key_label(k)}={v}" for k, v in others.items()]
        names[key] = ", ".join([facts.display_method(row.method), row.widths_in_words, *words])
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
    exponents = [
        f"{row.name} at {row.widths_in_words} has {_value(column, row) * scale:,.{decimals}f}. "
        for row in analysis.panel.rows
        if row.method == "awq" and math.isfinite(_value(column, row))
    ]
    return "".join(exponents[:2])


def _best(name: str, group: _Group, column: Column) -> str:
    sign = -1 if column.higher_is_better else 1
    window, gamma = min(group, key=lambda place: sign * _value(column, group[place]))
    return f"{name}: best by value at window {window:g} and gamma {gamma:g}"
