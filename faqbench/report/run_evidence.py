"""What a report would say about one run alone: its comparison with a baseline, and its plots."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from faqbench.records import RunRecord
from faqbench.report import facts
from faqbench.report.analysis import analyse
from faqbench.report.difference_tables import difference, difference_unit
from faqbench.report.evidence import EvidenceStore
from faqbench.report.figures import draw_figures
from faqbench.report.figures.drawing import to_png
from faqbench.report.panels import build_panels
from faqbench.report.run_pair import Delta, pair_runs

_DPI = 120  # every cell of a sweep draws these
_FIGURES = ("differences", "depth", "linears", "exponents")


@dataclass(frozen=True, kw_only=True)
class RunEvidence:
    """A run's comparison with its baseline as rows, and its plots as (name, caption, PNG)."""

    comparison: tuple[dict[str, float | str | bool | None], ...]
    images: tuple[tuple[str, str, bytes], ...]


def run_evidence(runs: Path, run: RunRecord, baseline: RunRecord | None) -> RunEvidence:
    """Return what there is to say about a run; of a failed one, nothing."""
    if run.status != "finished":
        return RunEvidence(comparison=(), images=())
    store = EvidenceStore(runs)
    rows = () if baseline is None else pair_runs(runs, run, baseline).metrics
    (panel,) = build_panels([run, *([baseline] if baseline else [])])
    named = facts.method_name(baseline) if baseline else None
    analysis = analyse(panel, store, named)
    figures = draw_figures(analysis, store, _FIGURES)
    return RunEvidence(
        comparison=tuple(_comparison_row(delta) for delta in rows if delta.a and delta.b),
        images=tuple(
            (name, f"{title}. {d.caption}", to_png(d, _DPI)) for name, title, d in figures
        ),
    )


def _comparison_row(delta: Delta) -> dict[str, float | str | bool | None]:
    c = delta.comparison
    assert delta.a is not None and delta.b is not None, "only metrics of both are compared"
    value, low, high = difference(c)
    return {
        "metric": f"{delta.column.task}/{delta.column.metric}",
        "value": delta.a.value,
        "baseline": delta.b.value,
        "difference": value,
        "unit": difference_unit(delta.column),
        "low": low,
        "high": high,
        "p_holm": c.p_holm,
        "is_significant": c.is_significant,
        "verdict": c.verdict,
        "not_paired": c.refused,
    }
