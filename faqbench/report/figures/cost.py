"""Cost by method: the seconds of every stage, stacked, and the peak memory beside them."""

from __future__ import annotations

from faqbench import formatting
from faqbench.report.analysis import Analysis
from faqbench.report.columns import Row
from faqbench.report.evidence import EvidenceStore
from faqbench.report.figures import style
from faqbench.report.figures.drawing import Drawing, how_many, row_label

_MOST_ROWS = 24


def draw_cost(analysis: Analysis, _store: EvidenceStore) -> Drawing | None:
    """Draw one bar per row, its stages stacked; means over calibration draws."""
    there = analysis.panel.rows
    rows = there[:_MOST_ROWS]
    runs = sorted((run for row in there for run in row.runs), key=lambda run: -len(run.stages))
    stages = list(dict.fromkeys(stage for run in runs for stage in run.stages))
    if sum(_seconds(row, stage) for row in rows for stage in stages) <= 0:
        return None
    figure, (time, memory) = style.new_figure(
        style.WIDTH, 1.1 + 0.27 * len(rows), 1, 2, width_ratios=(2.2, 1)
    )
    left = [0.0] * len(rows)
    for i, stage in enumerate(stages):
        widths = [_seconds(row, stage) for row in rows]
        paint = style.STAGE_COLORS[i % len(style.STAGE_COLORS)]
        time.barh(range(len(rows)), widths, left=left, height=0.55, color=paint, label=style.label(stage))
        left = [a + b for a, b in zip(left, widths, strict=True)]
    style.name_rows(time, [row_label(row) for row in rows])
    time.set_xlabel("seconds")
    for y, row in enumerate(rows):
        look = style.look(row.method) | {"linestyle": "none"}
        memory.plot([_memory(row) / 1e9], [y], **look)
    style.name_rows(memory, [""] * len(rows))
    memory.set_xlim(0, 1.12e-9 * max(1, *(_memory(row) for row in rows)))
    memory.set_xlabel("peak memory, GB")
    style.add_legend(figure, [time])
    return Drawing(
        figure=figure,
        caption="Seconds of each stage, mean over calibration draws, and the largest peak memory. A "
        "stage found in the cache costs this run only its check: the first run that needed it paid "
        "for it." + how_many(len(rows), len(there), "rows"),
        alt="Seconds by method: "
        + ", ".join(f"{_name(r)} {formatting.seconds(t)}" for r, t in zip(rows, left, strict=True))
        + ".",
        header=("method", *stages, "peak memory"),
        rows=tuple(
            (_name(row), *(_stage_text(row, stage) for stage in stages), formatting.n_bytes(_memory(row)))
            for row in there
        ),
    )


def _seconds(row: Row, stage: str) -> float:
    seconds = [run.stages[stage].seconds for run in row.runs if stage in run.stages]
    return sum(seconds) / len(row.runs)


def _memory(row: Row) -> int:
    return max(run.peak_memory_bytes for run in row.runs)


def _stage_text(row: Row, stage: str) -> str:
    timings = [run.stages[stage] for run in row.runs if stage in run.stages]
    if not timings:
        return formatting.NONE
    cached = " (cached)" if all(timing.cached for timing in timings) else ""
    return formatting.seconds(_seconds(row, stage)) + cached


def _name(row: Row) -> str:
    return row.name if row.bits is None else f"{row.name}, {row.bits} bits"
