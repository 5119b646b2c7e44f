"""Everything a report says, as one value that the templates lay out and do not interpret.

`answer` says the same in words alone, for those who show it in their own way.

How the numbers were measured is told in the words that a reader needs to judge or repeat them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from faqbench import formatting
from faqbench.records import RunRecord
from faqbench.report import facts
from faqbench.report.analysis import Analysis, analyse, resolve_baseline
from faqbench.report.difference_tables import differences_table, tools_table
from faqbench.report.evidence import EvidenceStore
from faqbench.report.figures import finished_figures
from faqbench.report.figures.drawing import FigureContent
from faqbench.report.glance import best_table, headline
from faqbench.report.layout import PagedTable, Pages, lay_out, paged, slug_of
from faqbench.report.panels import Panel, build_panels
from faqbench.report.published import is_published, measured_beside, published_table
from faqbench.report.result_tables import fidelity_table, further_table, results_table
from faqbench.report.run_section import RunSection, Shared, run_section, shared_facts
from faqbench.report.selection import ReportRequest, Selection, resolve_margin, select_draws
from faqbench.report.verdicts import Statement, draws_note, overview_table, question, verdicts
from faqbench.tables import Table, escape_markdown, to_markdown

AT_THE_TOP = ("glance", "what_to_use")


@dataclass(frozen=True, kw_only=True)
class PanelContent:
    """One model's part of the page."""

    model: str
    slug: str
    question: str
    headline: str
    best: Table | None
    overview: Table | None
    verdicts: tuple[Statement, ...]
    draws_note: str
    results: PagedTable
    comparisons: PagedTable | None
    tools: PagedTable | None
    fidelity: PagedTable | None
    fidelity_comparisons: PagedTable | None
    further: PagedTable | None
    measured: tuple[tuple[str, str], ...]
    has_marks: bool
    figures: tuple[FigureContent, ...] = ()

    @property
    def paged(self) -> list[PagedTable]:
        """The tables that may go on, on pages of their own."""
        tables = (
            self.results,
            self.comparisons,
            self.tools,
            self.fidelity,
            self.fidelity_comparisons,
            self.further,
        )
        return [table for table in tables if table is not None]

    @property
    def tables(self) -> list[Table]:
        """All tables, whole."""
        return [t.whole for t in self.paged] + [t for t in (self.best, self.overview) if t]

    def figure(self, kind: str) -> FigureContent | None:
        """Return the figure of a plot, or None where it had nothing to show."""
        return next((figure for figure in self.figures if figure.kind == kind), None)

    @property
    def further_figures(self) -> list[FigureContent]:
        """The figures that do not stand at the top."""
        return [figure for figure in self.figures if figure.kind not in AT_THE_TOP]

    @property
    def verdict_groups(self) -> list[tuple[str, list[Statement]]]:
        """The answer by setting, in the order of the contests."""
        settings = dict.fromkeys(v.setting for v in self.verdicts)
        return [(s, [v for v in self.verdicts if v.setting == s]) for s in settings]


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """A failed gate or a warning, and the runs it concerns."""

    text: str
    failed: bool
    run_ids: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ReportContent:
    """The whole report."""

    title: str
    name: str
    panels: tuple[PanelContent, ...]
    alarms: tuple[Alarm, ...]
    runs: tuple[RunSection, ...]
    pages: Pages
    shared: Shared
    published: Table
    published_is_close: bool
    reproduced: Table | None
    failed: tuple[tuple[str, str, str], ...]
    missing: tuple[str, ...]
    damaged: tuple[tuple[str, str], ...]
    repeated: tuple[tuple[str, str], ...]

    @property
    def n_failed_gates(self) -> int:
        """How many runs failed a gate, each gate by itself."""
        return sum(len(alarm.run_ids) for alarm in self.alarms if alarm.failed)

    @property
    def headline(self) -> str:
        """The verdict in a sentence for each model."""
        several = len(self.panels) > 1
        return " ".join(f"{p.model}: {p.headline}" if several else p.headline for p in self.panels)


def build_content(request: ReportRequest, selection: Selection) -> ReportContent:
    """Analyse the selected runs and put every part of the report into words, tables and figures.

    Raises:
        UserError: when the baseline asked for is not among the runs.
    """
    store = EvidenceStore(request.runs)
    store.read_all([run.run_id for run in selection.finished])
    panels = build_panels(selection.finished)
    baseline = resolve_baseline(panels, request.baseline) if panels else None
    models = [panel.model for panel in panels]
    ends = [f"-{slug_of(model)}" if len(panels) > 1 else "" for model in models]
    margin = resolve_margin(request, selection.finished)
    analyses = [(analyse(p, store, baseline, margin), e) for p, e in zip(panels, ends, strict=True)]
    with finished_figures(analyses, store) as figures:
        shared = shared_facts(selection.finished)
        rows = [row for panel in panels for row in panel.rows]
        sections = [run_section(run, row, store, shared) for row in rows for run in row.runs]
        contents = [_panel_content(analysis, store, end) for analysis, end in analyses]
        drawn = figures()
    contents = [replace(c, figures=f) for c, f in zip(contents, drawn, strict=True)]
    return ReportContent(
        title=request.title or report_title(models, request.name),
        name=request.name,
        panels=tuple(contents),
        alarms=_alarms(selection.finished),
        runs=tuple(sections),
        pages=lay_out(sections),
        shared=shared,
        published=published_table(panels),
        published_is_close=is_published(panels),
        reproduced=measured_beside(panels),
        failed=tuple(
            (run.run_id, (run.error or "no error was kept").strip(), facts.repeat_command(run))
            for run in selection.failed
        ),
        missing=selection.missing,
        damaged=(*selection.damaged, *store.damaged()),
        repeated=selection.repeated,
    )


def _panel_content(analysis: Analysis, store: EvidenceStore, end: str) -> PanelContent:
    """Return a panel's part, its figures left out.

    Args:
        analysis: of the panel.
        store: where the runs' items are read.
        end: of the names of its files.
    """
    results = paged(results_table(analysis, f"results{end}"))
    assert results is not None, "there are runs, so there are results"
    return PanelContent(
        model=analysis.panel.model,
        slug=slug_of(analysis.panel.model),
        question=question(analysis),
        headline=headline(analysis),
        best=best_table(analysis, store, f"best{end}"),
        overview=overview_table(analysis, f"overview{end}"),
        verdicts=tuple(verdicts(analysis)),
        draws_note=draws_note(analysis),
        results=results,
        comparisons=paged(differences_table(analysis, analysis.main, f"differences{end}")),
        tools=paged(tools_table(analysis, store, f"tools{end}")),
        fidelity=paged(fidelity_table(analysis, store, f"fidelity{end}")),
        fidelity_comparisons=paged(
            differences_table(analysis, analysis.fidelity, f"fidelity-differences{end}")
        ),
        further=paged(further_table(analysis, f"further-metrics{end}")),
        measured=tuple(how_measured(analysis.panel)),
        has_marks=bool(analysis.main.marks),
    )


def report_title(models: Sequence[str], name: str) -> str:
    """Return the title of a report that was given none."""
    if len(models) == 1:
        return f"Post-training quantization of {models[0]}"
    if models:
        return f"Post-training quantization of {formatting.count(len(models), 'model')}"
    return f"Report {name}"


def _alarms(records: Sequence[RunRecord]) -> tuple[Alarm, ...]:
    """Return a method's failures of a gate as one alarm, and each warning, with the runs concerned."""
    gates: dict[str, list[tuple[str, str]]] = {}
    warnings: dict[str, list[str]] = {}
    for run in records:
        for gate in run.gates:
            if not gate.passed:
                who = facts.display_method(facts.method_name(run))
                what = f"{who}: {gate.name.replace('_', ' ')}"
                gates.setdefault(what, []).append((run.run_id, gate.detail))
        for warning in run.warnings:
            warnings.setdefault(warning, []).append(run.run_id)
    failed = [
        Alarm(
            text=f"{what}. {_details([d for _, d in run_ids])}",
            failed=True,
            run_ids=tuple(run_id for run_id, _ in run_ids),
        )
        for what, run_ids in gates.items()
    ]
    return (*failed, *(Alarm(text=t, failed=False, run_ids=tuple(ids)) for t, ids in warnings.items()))


def _details(details: Sequence[str]) -> str:
    """Return what one gate said of several runs: each run's page has its own words."""
    if len(set(details)) == 1:
        return details[0]
    return f"In {formatting.count(len(details), 'run')}, in the first: {details[0]}"


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
        analysis = analyse(panel, store, baseline, resolve_margin(request, selection.finished))
        said = (question(analysis), headline(analysis))
        parts.append("\n\n".join([f"## {escape_markdown(panel.model)}", *map(escape_markdown, said)]))
        best = best_table(analysis, store, "best")
        parts += [to_markdown(best)] if best else []
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


STATISTICS = (
    "Each value stands with its standard error over windows (perplexity, delta method) or items "
    "(accuracy). Differences are paired: per window of the same tokens for perplexity, with a "
    "circular block bootstrap over windows; per item for accuracy, with an exact McNemar test and "
    "a paired bootstrap. With several calibration draws the error is split into the draws', the "
    "items' and a residual part. p-values are corrected by Holm's method over each table; "
    "intervals are 95 % for each comparison by itself. What is not significant is called not "
    "decidable, unless two one-sided tests show it to be within the margin that was stated beforehand. "
    "Flips are the items that one run gets right and the other wrong."
)


def how_measured(panel: Panel) -> Iterator[tuple[str, str]]:
    """Yield (term, description) of what a reader needs to judge or repeat the numbers."""
    runs = [run for row in panel.rows for run in row.runs]
    notes = _values(runs, "model.notes")
    yield "Model", " ".join([panel.model, *(f"({n})" for n in _values(runs, "model.source"))])
    if notes:
        yield "About the model", " ".join(notes)
    for column in panel.of_kind("perplexity"):
        windows = _values(runs, "evaluation.n_windows")
        first = f", at most {windows[0]} windows" if len(windows) == 1 else ""
        yield column.label, f"perplexity over {column.n:,} scored tokens{first}"
    tasks = [f"{column.label} ({column.n:,} items)" for column in panel.of_kind("acc")]
    if tasks:
        shots = "/".join(_values(runs, "evaluation.num_fewshot")) or "unknown"
        bos = "/".join(_values(runs, "evaluation.add_bos")) or "unknown"
        yield "Tasks", f"{', '.join(tasks)}; few-shot examples: {shots}; BOS added: {bos}"
    for note in facts.truncation_notes(runs):
        yield "Truncated", note
    yield from _grid([run for run in runs if not facts.is_baseline(run)])
    yield from _calibration([run for run in runs if facts.is_calibrated(run)])
    yield "Arithmetic", ", ".join(_values(runs, "dtype") + _values(runs, "device")) or "unknown"
    yield from _environment(runs)
    yield "Statistics", STATISTICS


def _grid(runs: list[RunRecord]) -> Iterator[tuple[str, str]]:
    if runs:
        groups = [("per row" if g == "-1" else g) for g in _values(runs, "quant.group_size")]
        kinds = dict.fromkeys(facts.grid_kind(run) for run in runs)
        yield "Grid", f"{', '.join(kinds)}, group size {', '.join(groups)}"


def _calibration(runs: list[RunRecord]) -> Iterator[tuple[str, str]]:
    if not runs:
        return
    windows = _values(runs, "calibration.n_samples"), _values(runs, "calibration.seq_len")
    domains = formatting.listing(_values(runs, "calibration.domain")) or "unknown text"
    scenarios = [s for s in _values(runs, "scenario") if s != "matched"]
    seeds = list(dict.fromkeys(facts.seed(run) for run in runs))
    text = f"{' or '.join(windows[0])} windows of {' or '.join(windows[1])} tokens of {domains}"
    text += f", scenarios {formatting.listing(scenarios)}" if scenarios else ""
    yield "Calibration", f"{text}; seeds {', '.join(seeds)}. RTN and full precision read none."


def _environment(runs: list[RunRecord]) -> Iterator[tuple[str, str]]:
    flat = facts.flatten(runs[0].environment) if runs else {}
    if flat:
        same = all(facts.flatten(run.environment) == flat for run in runs)
        text = ", ".join(f"{key} {value}" for key, value in flat.items())
        yield "Environment", text if same else f"{text}; it differs between runs, see each run"


def _values(runs: Iterable[RunRecord], key: str) -> list[str]:
    values = (facts.config_value(run.config, key) for run in runs)
    return [value for value in dict.fromkeys(values) if value is not None]
