"""Scales that the search chose: histograms of the exponent alpha and of the scales' range."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from faqbench.report.analysis import Analysis
from faqbench.report.columns import Row
from faqbench.report.evidence import EvidenceStore
from faqbench.report.figures import style
from faqbench.report.figures.drawing import Drawing
from faqbench.report.figures.facets import facets, how_many, representatives

if TYPE_CHECKING:
    import pandas as pd

TITLE = "Exponents and scales that the search chose"
_MOST_ROWS = 6
_ROLES = ("qkv", "o", "gate_up", "down")


def draw(analysis: Analysis, store: EvidenceStore) -> Drawing | None:
    """Draw two histograms per scaling method at the fewest bits of the first setting."""
    facet = next(iter(facets(analysis.panel)), None)
    if facet is None:
        return None
    found = [(row, _scales(row, store)) for row in facet.at(facet.fewest_bits)]
    there = [(row, table) for row, table in found if table is not None]
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
    where = ", ".join(w for w in (f"{facet.fewest_bits} bits", facet.title) if w)
    return Drawing(
        figure=figure,
        caption=f"At {where}, one count per decoder block, role and calibration draw. Alpha 0 leaves "
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

    wanted = ["block", "role", "alpha", "scale_range"]
    tables = [store.of(run.run_id).layers for run in row.runs]
    known = [t[wanted] for t in tables if t is not None and set(wanted) <= set(t)]
    if not known:
        return None
    each = [t.dropna(subset=["alpha"]).drop_duplicates(["block", "role"]) for t in known]
    table = pd.concat(each, ignore_index=True)
    return table if len(table) else None


def _data_rows(shown: list[tuple[Row, pd.DataFrame]]) -> list[tuple[str, ...]]:
    rows = []
    for row, table in shown:
        for role in _ROLES:
            own = table[table["role"] == role]
            if len(own):
                alpha = own["alpha"].astype(float)
                numbers = (alpha.median(), alpha.min(), alpha.max(), own["scale_range"].median())
                rows.append((row.short_name, role, str(len(own)), *(f"{x:.3g}" for x in numbers)))
    return rows
