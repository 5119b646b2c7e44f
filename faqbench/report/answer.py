"""The question and the answer of a report as text alone, for those who show it in their own way."""

from __future__ import annotations

from dataclasses import dataclass

from faqbench.report.analysis import analyse, resolve_baseline
from faqbench.report.content import report_title
from faqbench.report.evidence import EvidenceStore
from faqbench.report.markup import escape_markdown, to_markdown
from faqbench.report.overview import overview_table
from faqbench.report.panels import build_panels
from faqbench.report.request import ReportRequest
from faqbench.report.result_tables import results_table
from faqbench.report.selection import select_draws
from faqbench.report.verdicts import question, verdicts


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a report says, in Markdown.

    Attributes:
        title: of the whole.
        text: question, sentences and results table of every model.
        metrics: (task, metric, whether higher is better) of the main columns, each once.
        n_runs: finished runs behind it.
    """

    title: str
    text: str
    metrics: tuple[tuple[str, str, bool], ...]
    n_runs: int


def answer(request: ReportRequest) -> Answer:
    """Return what a report says, without drawing or writing anything.

    Raises:
        UserError: as `write_report` does.
    """
    selection = select_draws(request)
    panels = build_panels(selection.finished)
    baseline = resolve_baseline(panels, request.baseline) if panels else None
    store = EvidenceStore(request.runs)
    parts, metrics = [], []
    for panel in panels:
        analysis = analyse(panel, store, baseline)
        parts.append(f"## {escape_markdown(panel.model)}\n\n{escape_markdown(question(analysis))}")
        over = overview_table(analysis, "overview")
        parts += [to_markdown(over)] if over else []
        lines = []
        for v in verdicts(analysis):
            if over and not v.decided:
                continue  # the table says how many those are
            lead = escape_markdown(v.lead)
            claim = f"**{lead}.**" if v.decided else f"{lead}."
            lines.append(f"At {escape_markdown(v.setting)}: {claim} {escape_markdown(v.evidence)}")
        parts += ["\n".join(f"* {line}" for line in lines)] if lines else []
        parts.append(to_markdown(results_table(analysis, "results")))
        columns = (*panel.columns, *panel.fidelity)
        metrics += [(c.task, c.metric, c.higher_is_better) for c in columns if not c.parts]
    return Answer(
        title=request.title or report_title([p.model for p in panels], request.name),
        text="\n\n".join(parts),
        metrics=tuple(dict.fromkeys(metrics)),
        n_runs=len(selection.finished),
    )
