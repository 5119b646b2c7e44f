"""Cost by method: the seconds of every stage, stacked, with cached ones named in the table."""

from __future__ import annotations

from faqbench.report import formatting
from faqbench.report.analysis import Analysis
from faqbench.report.evidence import EvidenceStore
from faqbench.report.figures import style
from faqbench.report.figures.drawing import Drawing
from faqbench.report.panels import Row

TITLE = "Cost by method"
_MOST_ROWS = 24


def draw(analysis: Analysis, _store: EvidenceStore) -> Drawing | None:
    """Draw one bar per row, its stages stacked; means over calibration draws."""
    rows = analysis.panel.rows[:_MOST_ROWS]
    runs = sorted((run for row in rows for run in row.runs), key=lambda run: -len(run.stages))
    stages = list(dict.fromkeys(stage for run in runs for stage in run.stages))
    total = sum(_seconds(row, stage) for row in rows for stage in stages)
    if not stages or total <= 0:
        return None
    figure, (axes,) = style.new_figure(style.WIDTH, 1.2 + 0.3 * len(rows))
    left = [0.0] * len(rows)
    for i, stage in enumerate(stages):
        widths = [_seconds(row, stage) for row in rows]
        axes.barh(
            range(len(rows)),
            widths,
            left=left,
            height=0.55,
            color=style.STAGE_COLORS[i % len(style.STAGE_COLORS)],
            label=style.label(stage),
        )
        left = [a + b for a, b in zip(left, widths, strict=True)]
    style.name_rows(axes, [style.label(_name(row), 26) for row in rows])
    axes.set_xlabel("seconds")
    style.add_legend(figure, axes)
    return Drawing(
        figure=figure,
        caption="Seconds of each stage, mean over calibration draws. A stage found in the cache "
        "costs this run only its check: the first run that needed it paid for it.",
        alt="Seconds by method: "
        + ", ".join(f"{_name(r)} {formatting.seconds(t)}" for r, t in zip(rows, left, strict=True)),
        header=("method", *stages, "peak memory"),
        rows=tuple(
            (
                _name(row),
                *(_stage_text(row, stage) for stage in stages),
                formatting.bytes_(max(run.peak_memory_bytes for run in row.runs)),
            )
            for row in rows
        ),
    )


def _seconds(row: Row, stage: str) -> float:
    found = [run.stages[stage].seconds for run in row.runs if stage in run.stages]
    return sum(found) / len(row.runs)


def _stage_text(row: Row, stage: str) -> str:
    found = [run.stages[stage] for run in row.runs if stage in run.stages]
    if not found:
        return formatting.NONE
    cached = " (cached)" if all(timing.cached for timing in found) else ""
    return formatting.seconds(_seconds(row, stage)) + cached


def _name(row: Row) -> str:
    return row.name if row.bits is None else f"{row.name}, {row.bits} bits"
