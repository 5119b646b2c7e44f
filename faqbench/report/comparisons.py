"""A paired comparison of two rows on one column, or the reason why there is none.

Two runs may be paired only when the fingerprint of what they were scored on is the same, and both
kept the windows or items. Rows with several calibration draws are compared on the draws they share;
a method without calibration stands in every draw.

One draw of a calibrated method says nothing of the method: the windows or items of this one set are
all that its interval knows. Where earlier runs tell how far draws lie apart (`earlier_draws`), the
interval includes it; a claim about methods needs two draws of one's own all the same.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from faqbench.config import UserError
from faqbench.config.section import Margin
from faqbench.records import RunRecord
from faqbench.report import facts
from faqbench.report.columns import Column, Row, build_columns
from faqbench.report.evidence import Array, EvidenceStore
from faqbench.statistics import (
    AccuracyDifference,
    DrawSummary,
    Error,
    Student,
    WindowDifference,
    aggregate_draws,
    block_length_for,
    holm,
    item_weights,
    mean_accuracy_difference,
    mean_difference,
)

LEVEL = 0.05
EQUAL = "equal within the margin"


@dataclass(frozen=True, kw_only=True)
class Churn:
    """How many items changed from one row to the other, over all shared draws: accuracy hides most.

    Attributes:
        n_lost: right under B and wrong under A.
        n_gained: wrong under B and right under A.
        n: items compared, each once a draw.
    """

    n_lost: int
    n_gained: int
    n: int

    @property
    def lost(self) -> float:
        """The share of items that went from right to wrong."""
        return self.n_lost / self.n

    @property
    def gained(self) -> float:
        """The share of items that went from wrong to right."""
        return self.n_gained / self.n


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Row A against row B on one column.

    Attributes:
        effect: the logarithm of the perplexity ratio A / B, or the difference A - B of accuracies,
            divergences or agreements.
        low: lower end of its 95 % interval, not corrected for the number of comparisons.
        high: its upper end.
        stderr: its standard error.
        p_value: two-sided, before correction.
        p_holm: after Holm's correction over its table; NaN until corrected.
        error: by whose sources equality is judged, and what would be found; None until compared.
        margin: within which the rows count as equal, in the unit of the effect; NaN when none was stated.
        p_equal: of the two one-sided tests against the margin, before correction; NaN without one.
        p_equal_holm: after Holm's correction over its table.
        churn: the items that changed; None for texts.
        n: windows or items compared.
        n_draws: shared calibration draws.
        draw_share: the draws' part of the error's variance; NaN for one draw.
        n_earlier: draws of earlier runs whose spread the interval of a single draw includes.
        earlier: the folder they lie in.
        refused: why the rows cannot be paired; empty when they were.
    """

    a: Row
    b: Row
    column: Column
    effect: float = math.nan
    low: float = math.nan
    high: float = math.nan
    stderr: float = math.nan
    p_value: float = math.nan
    p_holm: float = math.nan
    error: Error | None = None
    margin: float = math.nan
    p_equal: float = math.nan
    p_equal_holm: float = math.nan
    churn: Churn | None = None
    n: int = 0
    n_draws: int = 0
    draw_share: float = math.nan
    n_earlier: int = 0
    earlier: str = ""
    refused: str = ""

    @property
    def is_of_one_draw(self) -> bool:
        """Whether a calibrated method was seen on a single calibration set."""
        return self.n_draws == 1 and (self.a.is_calibrated or self.b.is_calibrated)

    @property
    def stands(self) -> bool:
        """Whether the difference stands after Holm's correction, be it of one calibration set alone."""
        return self.p_holm < LEVEL

    @property
    def is_significant(self) -> bool:
        """Whether the difference stands and is one of the methods."""
        return self.stands and not self.is_of_one_draw

    @property
    def is_equal(self) -> bool:
        """Whether the difference is within the margin after Holm's correction, be it significant or not."""
        return self.p_equal_holm < LEVEL

    @property
    def verdict(self) -> str:
        """What may be said of A in a few words; only "better" and "worse" are claims about methods."""
        if not self.stands and self.is_equal:
            return EQUAL + (" on this one calibration set" if self.is_of_one_draw else "")
        if not self.stands:
            return "not decidable"
        if self.is_of_one_draw:
            return f"{'ahead' if self.a_is_better else 'behind'} on this one calibration set"
        return "better" if self.a_is_better else "worse"

    @property
    def a_is_better(self) -> bool:
        """Whether the estimate, significant or not, favours A."""
        return (self.effect > 0) == self.column.higher_is_better and self.effect != 0

    @property
    def is_ratio(self) -> bool:
        """Whether `effect` is the logarithm of a ratio."""
        return self.column.kind == "perplexity"


class RefusalError(ValueError):
    """Two runs cannot be paired; the text says why."""


def compare_rows(
    store: EvidenceStore, a: Row, b: Row, column: Column, margin: Margin | None = None
) -> Comparison:
    """Compare two rows on a column; a refusal is part of the answer, not an exception."""
    empty = Comparison(a=a, b=b, column=column, margin=margin_on(column, margin))
    try:
        return _compare(store, empty, _shared_draws(a, b))
    except RefusalError as reason:
        return replace(empty, refused=str(reason))


def compare_runs(
    store: EvidenceStore, a: Row, b: Row, column: Column, margin: Margin | None = None
) -> Comparison:
    """Compare the first runs of two rows, whatever their calibration draws."""
    empty = Comparison(a=a, b=b, column=column, margin=margin_on(column, margin))
    try:
        return _compare(store, empty, [(a.runs[0], b.runs[0])])
    except RefusalError as reason:
        return replace(empty, refused=str(reason))


def _compare(
    store: EvidenceStore, empty: Comparison, pairs: list[tuple[RunRecord, RunRecord]]
) -> Comparison:
    compare = _compare_accuracy if empty.column.array is None else _compare_windows
    comparison = compare(store, empty, pairs)
    comparison = _with_earlier_draws(store, comparison) if comparison.is_of_one_draw else comparison
    return replace(comparison, p_equal=_equality(comparison))


def margin_on(column: Column, margin: Margin | None) -> float:
    """Return the margin of a column in the unit of its effects; NaN when none was stated."""
    if margin is None:
        return math.nan
    if column.kind == "perplexity":
        stated = margin.log_ratio
    elif column.is_percent:
        stated = None if margin.points is None else margin.points / 100
    else:
        stated = margin.nats if column.kind == "kl" else None
    return math.nan if stated is None else stated


def _equality(comparison: Comparison) -> float:
    """Return the p-value of "within the margin"."""
    if comparison.error is None or math.isnan(comparison.margin) or math.isnan(comparison.stderr):
        return math.nan
    return comparison.error.equivalence_p(comparison.effect, comparison.margin)


def churn_of(store: EvidenceStore, a: Row, b: Row, column: Column) -> Churn | None:
    """Return the items of a task, or of the tasks of a mean, that changed from B to A.

    None where the rows cannot be paired.
    """
    try:
        return _churn([_tasks_of(store, *pair, column) for pair in _shared_draws(a, b)])
    except RefusalError:
        return None


def _churn(per_draw: Sequence[Sequence[tuple[Array, Array]]]) -> Churn:
    pairs = [pair for draw in per_draw for pair in draw]
    return Churn(
        n_lost=sum(int((x < y).sum()) for x, y in pairs),
        n_gained=sum(int((x > y).sum()) for x, y in pairs),
        n=sum(len(x) for x, _ in pairs),
    )


def _with_earlier_draws(store: EvidenceStore, comparison: Comparison) -> Comparison:
    """Widen a single draw's interval by what earlier runs know of the spread between draws."""
    earlier = store.earlier.spread(comparison.a, comparison.b, comparison.column)
    if earlier is None or comparison.error is None or not math.isfinite(comparison.stderr):
        return comparison
    draw = Student(stderr=math.sqrt(earlier.variance), degrees=earlier.degrees)
    error = comparison.error.beside(draw)
    low, high = error.interval(comparison.effect)
    return replace(
        comparison,
        low=low,
        high=high,
        stderr=math.hypot(comparison.stderr, draw.stderr),
        p_value=error.p_value(comparison.effect),
        error=error,
        n_earlier=earlier.n_draws,
        earlier=earlier.folder,
    )


def with_holm(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Return the comparisons of one table with their corrected p-values."""
    differs, equal = (holm([getattr(c, p) for c in comparisons]) for p in ("p_value", "p_equal"))
    return [
        replace(c, p_holm=p, p_equal_holm=q) for c, p, q in zip(comparisons, differs, equal, strict=True)
    ]


def _shared_draws(a: Row, b: Row) -> list[tuple[RunRecord, RunRecord]]:
    draws_a = {facts.seed(run): run for run in a.runs}
    draws_b = {facts.seed(run): run for run in b.runs}
    if not a.is_calibrated and not b.is_calibrated:
        return [(a.runs[0], b.runs[0])]
    if not a.is_calibrated:
        return [(a.runs[0], run) for run in draws_b.values()]
    if not b.is_calibrated:
        return [(run, b.runs[0]) for run in draws_a.values()]
    shared = [(run, draws_b[s]) for s, run in draws_a.items() if s in draws_b]
    if not shared:
        raise RefusalError(
            f"no calibration draw in common (seeds {', '.join(draws_a)} and {', '.join(draws_b)})"
        )
    other = [facts.seed(x) for x, y in shared if not _same_draw(x, y)]
    if other:
        raise RefusalError(f"seed {', '.join(other)} drew other calibration text in each of them")
    return shared


def _same_draw(a: RunRecord, b: RunRecord) -> bool:
    prints = [run.fingerprints.get("calibration") for run in (a, b)]
    return None in prints or prints[0] == prints[1]


def _generator(comparison: Comparison) -> np.random.Generator:
    """Return a generator that depends on what is compared, not on the order of comparisons."""
    ids = [comparison.a.runs[0].run_id, comparison.b.runs[0].run_id, comparison.column.label]
    return np.random.default_rng(zlib.crc32("\n".join(ids).encode()))


def _check_fingerprints(a: RunRecord, b: RunRecord, column: Column) -> None:
    kind = "task" if column.array is None else "protocol"
    key = f"{kind}/{column.task}"
    print_a, print_b = a.fingerprints.get(key), b.fingerprints.get(key)
    if not print_a or not print_b:
        without = a if not print_a else b
        raise RefusalError(f"{without.run_id} has no fingerprint of {column.task}")
    if print_a != print_b:
        raise RefusalError(f"different {'texts' if kind == 'protocol' else 'items'} under one name")


def _windows(store: EvidenceStore, run: RunRecord, column: Column) -> Array:
    windows = store.of(run.run_id).windows.get(column.array or "")
    what = "token losses" if column.kind == "perplexity" else "per-token values"
    if windows is None:
        raise RefusalError(f"{run.run_id} kept no {what} of {column.label}")
    if not np.isfinite(windows).all():
        raise RefusalError(f"{run.run_id} has a value of {column.label} that is not finite")
    _check_against_record(run, column, float(windows.mean()), what)
    return windows


def _check_against_record(run: RunRecord, column: Column, mean: float, what: str) -> None:
    """Refuse windows or items that are not those of the record's number, as after a copied file."""
    metric = column.metric_of(run)
    if metric is None or metric.value is None or not math.isfinite(metric.value):
        return
    stated = math.log(metric.value) if column.kind == "perplexity" else metric.value
    if not math.isclose(mean, stated, rel_tol=1e-3, abs_tol=1e-3):
        raise RefusalError(f"the {what} of {run.run_id} are not those of its record's {column.label}")


def _items(store: EvidenceStore, run: RunRecord, column: Column) -> tuple[Array, Array]:
    items = store.of(run.run_id).items.get((column.task, column.metric))
    if items is None:
        raise RefusalError(f"{run.run_id} kept no items of {column.task}")
    if len(items[1]):
        _check_against_record(run, column, float(items[1].mean()), "items")
    return items


@dataclass(frozen=True, kw_only=True, eq=False)
class Paired:
    """A - B on every draw that two rows share and every item.

    Windows are taken in blocks, since neighbours may depend on each other; items of several tasks are
    weighted so that their plain mean is the unweighted mean over tasks.

    Attributes:
        differences: [n_draws, n_items].
        weights: [n_items] what an item that is right or wrong counts; None for blocks of windows.
        n: windows, not their blocks, or documents that every run scored.
    """

    differences: Array
    weights: Array | None
    n: int


def paired_differences(store: EvidenceStore, a: Row, b: Row, column: Column) -> Paired:
    """Return what two rows' draws and items tell of their difference.

    Raises:
        RefusalError: when the rows cannot be paired.
    """
    pairs = _shared_draws(a, b)
    if column.array is None:
        return _item_differences([_tasks_of(store, *pair, column) for pair in pairs])
    return _in_blocks(_window_differences([_losses_of(store, *pair, column) for pair in pairs]))


class PairedStore:
    """Pairs runs of a folder, each of which is read once."""

    def __init__(self, runs: Path) -> None:
        self._store = EvidenceStore(runs)

    def differences(
        self, a: Sequence[RunRecord], b: Sequence[RunRecord], *, kind: str, task: str
    ) -> Paired:
        """Return A - B on one metric and the draws that both have.

        Args:
            a: draws of one method.
            b: of the other.
            kind: of the column.
            task: of the column; empty for a mean over tasks.

        Raises:
            UserError: when a run lacks the metric, or they cannot be paired.
        """
        row_a, row_b = (
            Row(method=facts.method_name(runs[0]), keys={}, runs=tuple(runs)) for runs in (a, b)
        )
        columns = build_columns([a[0], b[0]])
        column = next(
            (
                c
                for c in (*columns.main, *columns.fidelity)
                if c.kind == kind and (c.task == task or kind == "mean_acc")
            ),
            None,
        )
        pair = f"{a[0].run_id} and {b[0].run_id}"
        if column is None:
            raise UserError(f"{pair} have no {kind.replace('_', ' ')} {task}".rstrip() + ".")
        try:
            return paired_differences(self._store, row_a, row_b, column)
        except RefusalError as reason:
            raise UserError(f"{pair} cannot be paired: {reason}.") from reason


def _compare_windows(
    store: EvidenceStore, empty: Comparison, pairs: list[tuple[RunRecord, RunRecord]]
) -> Comparison:
    """Compare two rows by the losses of their windows, in one draw or over several."""
    arrays = [_losses_of(store, a, b, empty.column) for a, b in pairs]
    differences = _window_differences(arrays)
    if len(arrays) == 1:
        # The logarithm of the ratio is the mean difference of the windows, in any unit.
        found = mean_difference(*arrays[0], rng=_generator(empty))
        return _estimated(empty, found.difference, found, n=found.n_windows, n_draws=1)
    return _over_draws(empty, _in_blocks(differences))


def _losses_of(store: EvidenceStore, a: RunRecord, b: RunRecord, column: Column) -> tuple[Array, Array]:
    _check_fingerprints(a, b, column)
    losses = _windows(store, a, column), _windows(store, b, column)
    if losses[0].shape != losses[1].shape:
        raise RefusalError("different numbers of windows")
    return losses


def _window_differences(arrays: Sequence[tuple[Array, Array]]) -> Array:
    if len(arrays[0][0]) < 2:
        raise RefusalError("a single window has no error")
    if len({len(a) for a, _ in arrays}) > 1:
        raise RefusalError("different numbers of windows between draws")
    return np.stack([a[:, 0] - b[:, 0] for a, b in arrays])


def _in_blocks(differences: Array) -> Paired:
    """Return means of neighbouring windows whose plain mean is that of all windows.

    Blocks differ in length by a window; the longer ones' distances from the mean count so much more.
    """
    n_windows = differences.shape[1]
    n_blocks = max(2, n_windows // block_length_for(n_windows))
    blocks = np.array_split(differences, n_blocks, axis=1)
    means, whole = np.stack([b.mean(axis=1) for b in blocks], axis=1), differences.mean(axis=1)[:, None]
    length = np.array([b.shape[1] for b in blocks]) * n_blocks / n_windows
    return Paired(differences=whole + (means - whole) * length, weights=None, n=n_windows)


def _compare_accuracy(
    store: EvidenceStore, empty: Comparison, pairs: list[tuple[RunRecord, RunRecord]]
) -> Comparison:
    """Compare two rows by their items, in one draw or over several."""
    per_draw = [_tasks_of(store, *pair, empty.column) for pair in pairs]
    if len(pairs) == 1:
        found = mean_accuracy_difference(per_draw[0], rng=_generator(empty))
        compared = _estimated(empty, found.difference, found, n=found.n, n_draws=1)
    else:
        compared = _over_draws(empty, _item_differences(per_draw))
    return replace(compared, churn=_churn(per_draw))


def _tasks_of(
    store: EvidenceStore, a: RunRecord, b: RunRecord, column: Column
) -> list[tuple[Array, Array]]:
    return [_paired_items(store, a, b, task) for task in column.parts or (column,)]


def _item_differences(per_draw: Sequence[Sequence[tuple[Array, Array]]]) -> Paired:
    if len({tuple(len(x) for x, _ in draw) for draw in per_draw}) > 1:
        raise RefusalError("different numbers of items between draws")
    weights = item_weights([len(x) for x, _ in per_draw[0]])
    rows = [np.concatenate([x - y for x, y in draw]) for draw in per_draw]
    return Paired(differences=np.stack(rows) * weights, weights=weights, n=len(weights))


def _paired_items(store: EvidenceStore, a: RunRecord, b: RunRecord, task: Column) -> tuple[Array, Array]:
    _check_fingerprints(a, b, task)
    (numbers_a, values_a), (numbers_b, values_b) = _items(store, a, task), _items(store, b, task)
    if not np.array_equal(numbers_a, numbers_b):
        raise RefusalError(f"different items of {task.task} were kept")
    return values_a, values_b


def _over_draws(empty: Comparison, paired: Paired) -> Comparison:
    try:
        summary = aggregate_draws(paired.differences, weights=paired.weights)
    except ValueError as error:
        raise RefusalError(str(error)) from error
    share = summary.draw_variance / summary.n_draws / summary.stderr**2 if summary.stderr else 0.0
    compared = _estimated(empty, summary.mean, summary, n=paired.n, n_draws=summary.n_draws)
    return replace(compared, draw_share=min(share, 1.0))


def _estimated(
    empty: Comparison,
    effect: float,
    found: WindowDifference | AccuracyDifference | DrawSummary,
    *,
    n: int,
    n_draws: int,
) -> Comparison:
    return replace(
        empty,
        effect=effect,
        low=found.low,
        high=found.high,
        stderr=found.stderr,
        p_value=found.p_value,
        error=found.error,
        n=n,
        n_draws=n_draws,
    )
