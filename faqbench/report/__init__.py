"""Reports rebuilt from run folders alone: one HTML page, Markdown, tables and figures.

Nothing here measures anything. `write_report` reads `runs/`, compares what may be compared, and
writes `reports/<name>/`; the same runs give the same bytes. Reading path:

    selection    which runs: a sweep's list, run ids, patterns and key=value filters
    panels       one panel per model: rows (a method in a setting, its draws), columns (a metric)
    evidence     window means and items of a run, read once, for paired comparisons
    comparisons  paired differences, refused where the measured texts are not the same
    analysis     contests at equal settings, Holm's correction, who is best and who ties
    verdicts     the question, and the answer in words
    tables       every table as one value, from which HTML, Markdown, LaTeX and CSV are made
    figures/     one file per plot
    writer       puts it together

Two runs have a path of their own: `run_pair` (what differs), `pair_tables` (for terminal and page),
`pair_page`.

Torch, transformers and Hydra are never imported; pandas, matplotlib and scipy only when used.
"""

from faqbench.report.answer import Answer, answer
from faqbench.report.facts import truncation_notes
from faqbench.report.pair_page import write_pair
from faqbench.report.pair_tables import pair_tables
from faqbench.report.panels import without_repeats
from faqbench.report.request import ReportPaths, ReportRequest
from faqbench.report.run_evidence import RunEvidence, run_evidence
from faqbench.report.run_pair import RunPair, pair_runs
from faqbench.report.selection import select_runs
from faqbench.report.summary import summary_rows
from faqbench.report.writer import write_report

__all__ = [
    "Answer",
    "ReportPaths",
    "ReportRequest",
    "RunEvidence",
    "RunPair",
    "answer",
    "pair_runs",
    "pair_tables",
    "run_evidence",
    "select_runs",
    "summary_rows",
    "truncation_notes",
    "without_repeats",
    "write_pair",
    "write_report",
]
