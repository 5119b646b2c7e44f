"""Reports rebuilt from run folders alone: one HTML page, Markdown, tables and figures.

Nothing here measures anything. `write_report` reads `runs/`, compares what may be compared, and
writes `reports/<name>/`; the same runs give the same bytes. Reading path:

    selection          what is asked for, and which runs: a sweep's list, run ids, patterns and filters
    panels, columns    one panel per model: rows (a method in a setting, its draws), columns (a metric)
    evidence           window means and items of a run, read once, and the draws of earlier studies
    comparisons        paired differences, refused where the measured texts are not the same
    analysis           contests at equal settings, Holm's correction, who is best and who ties
    verdicts           the question and the answer in words
    published          what papers published, beside ours, with pass or fail
    result_tables, difference_tables, run_section       what is shown, as `faqbench.tables.Table`
    figures/           the plots
    content, layout    everything a report says, how it was measured, and on which page it stands
    glance             the first screen: the verdict in a sentence, the best recipe per bit-width
    writer             puts it together; the page that lists all reports

Two runs have a path of their own: `run_pair` (what differs), `pair_page` (for terminal and page). So has a
decision of `faqbench settle`: `decisions`.

Torch, transformers and Hydra are never imported; pandas, matplotlib and scipy only when used.
"""

from faqbench.report.comparisons import PairedStore
from faqbench.report.content import Answer, answer
from faqbench.report.decisions import answer_of, sample, shown_interval, shown_margin, write_decision_page
from faqbench.report.facts import truncation_notes
from faqbench.report.pair_page import pair_tables, write_pair
from faqbench.report.panels import without_repeats
from faqbench.report.published import reproductions
from faqbench.report.result_tables import summary_table
from faqbench.report.run_pair import RunPair, pair_runs
from faqbench.report.run_section import RunEvidence, run_evidence
from faqbench.report.selection import ReportPaths, ReportRequest, select_runs
from faqbench.report.writer import write_report

__all__ = [
    "Answer",
    "PairedStore",
    "ReportPaths",
    "ReportRequest",
    "RunEvidence",
    "RunPair",
    "answer",
    "answer_of",
    "pair_runs",
    "pair_tables",
    "reproductions",
    "run_evidence",
    "sample",
    "select_runs",
    "shown_interval",
    "shown_margin",
    "summary_table",
    "truncation_notes",
    "without_repeats",
    "write_decision_page",
    "write_pair",
    "write_report",
]
