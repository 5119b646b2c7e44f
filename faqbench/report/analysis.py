"""Contests at equal settings: everyone against the baseline, and everyone against the best.

A contest is a set of rows that differ in their method alone: the same bits, grid, calibration and
evaluation. The full precision model takes part in none, it is what they are measured against; a
method that reads no calibration data takes part in the contests of every calibration setting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from faqbench.config import UserError, did_you_mean
from faqbench.config.section import Margin
from faqbench.report import facts
from faqbench.report.columns import Column, Row, beside, in_words, is_variant
from faqbench.report.comparisons import Churn, Comparison, churn_of, compare_rows, with_holm
from faqbench.report.evidence import EvidenceStore
from faqbench.report.panels import Panel, fits

BEST, TIED = "best", "tied"


@dataclass(frozen=True, kw_only=True)
class Contest:
    """Rows that compete at one setting.

    Attributes:
        setting: keys and values that the rows share and that differ between contests.
        widths: of the rows, as in `3` or `W4A8`.
        rows: indices into the panel's rows.
        baseline: index of the row that the others are compared with; None without such a method.
    """

    setting: dict[str, str]
    widths: str
    rows: tuple[int, ...]
    baseline: int | None

    @property
    def label(self) -> str:
        """The setting in words."""
        return ", ".join([in_words(self.widths), *(f"{facts.key_label(k)}={v}" for k, v in self.rest)])

    @property
    def rest(self) -> list[tuple[str, str]]:
        """Keys and values of the setting that the widths do not say."""
        return beside(self.widths, self.setting.items())


@dataclass(frozen=True, kw_only=True)
class Family:
    """The comparisons of one table, whose p-values are corrected together.

    Attributes:
        columns: what is compared.
        comparisons: everyone against the baseline of their contest.
        marks: (row, column) -> BEST, when significantly better than every rival, or TIED, when
            it is the best or cannot be told from the best; nothing where a rival was seen on one
            calibration set alone, or beats on the draws that both have what is best on those that all have.
    """

    columns: tuple[Column, ...]
    comparisons: tuple[tuple[Contest, Comparison], ...]
    marks: dict[tuple[int, int], str]


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """A panel and what may be said about it.

    Attributes:
        margin: within which two methods count as equal.
        main: of perplexities and accuracies.
        fidelity: of divergence from full precision and agreement with it.
    """

    panel: Panel
    baseline: str | None
    margin: Margin | None
    contests: tuple[Contest, ...]
    main: Family
    fidelity: Family


def analyse(
    panel: Panel, store: EvidenceStore, baseline: str | None, margin: Margin | None = None
) -> Analysis:
    """Compare a panel's rows.

    Args:
        panel: the rows and columns of one model.
        store: where the runs' windows and items are read.
        baseline: the method to compare with, as `resolve_baseline` returned it.
        margin: within which two methods count as equal; None calls nothing equal.
    """
    contests = tuple(_contests(panel, baseline))
    return Analysis(
        panel=panel,
        baseline=baseline,
        margin=margin,
        contests=contests,
        main=_family(panel, contests, panel.columns, store, margin),
        fidelity=_family(panel, contests, panel.fidelity, store, margin),
    )


def _family(
    panel: Panel,
    contests: tuple[Contest, ...],
    columns: tuple[Column, ...],
    store: EvidenceStore,
    margin: Margin | None,
) -> Family:
    """Compare the rows of a panel, corrected together for being many."""
    computed: dict[tuple[int, int, int], Comparison] = {}

    def compare(a: int, b: int, c: int) -> Comparison:
        if (a, b, c) not in computed:
            computed[a, b, c] = compare_rows(store, panel.rows[a], panel.rows[b], columns[c], margin)
        return computed[a, b, c]

    pairs = [
        (contest, compare(row, contest.baseline, c))
        for contest in contests
        if contest.baseline is not None
        for c, column in enumerate(columns)
        for row in contest.rows
        if row != contest.baseline and _both(panel, row, contest.baseline, column)
    ]
    corrected = with_holm([comparison for _, comparison in pairs])
    leaders = [
        (contest, c, best)
        for contest in contests
        for c, column in enumerate(columns)
        if (best := best_of(panel, contest, column)) is not None
    ]
    against_best = {
        (row, best, c): compare(row, best, c)
        for contest, c, best in leaders
        for row in contest.rows
        if row != best and columns[c].estimate(panel.rows[row])
    }
    judged = dict(zip(against_best, with_holm(list(against_best.values())), strict=True))
    return Family(
        columns=columns,
        comparisons=tuple((k, v) for (k, _), v in zip(pairs, corrected, strict=True)),
        marks=_marks(leaders, judged),
    )


def churn_from_full(panel: Panel, store: EvidenceStore, row: Row, column: Column) -> Churn | None:
    """Return the items that changed against full precision; None for itself, and where rows do not pair."""
    full = None if row.is_baseline else panel.full_precision(row)
    return None if full is None else churn_of(store, row, full, column)


def resolve_baseline(panels: Sequence[Panel], asked: str | None) -> str | None:
    """Return the method that others are compared with.

    Raises:
        UserError: when the asked one is neither a method nor a run of the report.
    """
    rows = [row for panel in panels for row in panel.rows]
    methods = {row.method for row in rows if not row.is_baseline}
    if asked is None:
        ordered = sorted(methods, key=facts.method_order)
        return next((m for m in ("awq", "rtn", *ordered) if m in methods), None)
    if asked in {row.method for row in rows}:
        return asked
    of_run = {run.run_id: row.method for row in rows for run in row.runs}
    if asked in of_run:
        return of_run[asked]
    raise UserError(
        f"baseline '{asked}' is neither a method nor a run of this report; its methods are "
        f"{', '.join(sorted(methods, key=facts.method_order))}."
        f"{did_you_mean(asked, [*methods, *of_run])}"
    )


def _contests(panel: Panel, baseline: str | None) -> list[Contest]:
    keys = ("quant.bits", *(k for k in panel.shown_keys if not is_variant(k)))
    settings: dict[tuple[str | None, ...], list[int]] = {}
    for i, row in enumerate(panel.rows):
        if not row.is_baseline:
            settings.setdefault(tuple(row.keys.get(k) for k in keys), []).append(i)
    contests = []
    for setting in settings:
        if any(_narrower(other, setting) for other in settings):
            continue
        rows = sorted(i for s, rows_there in settings.items() if fits(s, setting) for i in rows_there)
        named = dict(zip(keys, setting, strict=True))
        contests.append(
            Contest(
                setting={k: v for k, v in named.items() if v is not None},
                widths=panel.rows[rows[0]].widths,
                rows=tuple(rows),
                baseline=_baseline_of(panel, rows, baseline),
            )
        )
    return contests


def _narrower(other: tuple[str | None, ...], setting: tuple[str | None, ...]) -> bool:
    return other != setting and fits(setting, other)


def _baseline_of(panel: Panel, rows: list[int], baseline: str | None) -> int | None:
    baselines = [i for i in rows if panel.rows[i].method == baseline]
    full = panel.full_precision(panel.rows[rows[0]])
    if not baselines and full is not None and full.method == baseline:
        return panel.rows.index(full)
    return next(iter(baselines), None)


def _both(panel: Panel, a: int, b: int, column: Column) -> bool:
    return all(column.estimate(panel.rows[i]) is not None for i in (a, b))


def best_of(panel: Panel, contest: Contest, column: Column) -> int | None:
    """Return the row with the best value of a contest of at least two; significance aside.

    Rows are ranked on the calibration draws that all of them have, where there are such: another set of
    draws has another mean.
    """
    rows = {i: panel.rows[i] for i in contest.rows if column.estimate(panel.rows[i])}
    draws = [{facts.seed(run) for run in row.runs} for row in rows.values() if row.is_calibrated]
    shared = set.intersection(*draws) if draws else set()
    if shared:
        rows = {i: row.on_draws(shared) if row.is_calibrated else row for i, row in rows.items()}
    values = {i: e.value for i, row in rows.items() if (e := column.estimate(row))}
    if len(values) < 2:
        return None
    sign = -1 if column.higher_is_better else 1
    return min(values, key=lambda i: (sign * values[i], i))


def _marks(
    leaders: Sequence[tuple[Contest, int, int]], judged: dict[tuple[int, int, int], Comparison]
) -> dict[tuple[int, int], str]:
    """Mark the best of each contest and column, and who cannot be told from it, as `Family` says."""
    marks: dict[tuple[int, int], str] = {}
    for contest, c, best in leaders:
        rivals = {r: judged[r, best, c] for r in contest.rows if (r, best, c) in judged}
        if any(
            v.refused or v.is_of_one_draw or (v.is_significant and v.a_is_better) for v in rivals.values()
        ):
            continue
        ties = [row for row, v in rivals.items() if not v.is_significant]
        marks[best, c] = BEST if not ties and marks.get((best, c)) != TIED else TIED
        marks |= {(row, c): TIED for row in ties}
    return marks
