"""Rows and columns: a method in a setting, and what was measured of it.

A column is one metric of one protocol or task *on one set of tokens or items*. The same protocol name with
another fingerprint is another column, since such numbers must never be read against each other.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Literal

from faqbench import formatting
from faqbench.records import Metric, RunRecord
from faqbench.report import facts
from faqbench.tables import Heading, TableCell

Kind = Literal["perplexity", "kl", "agreement", "acc", "mean_acc", "other"]
_KINDS: dict[str, Kind] = {"kl_divergence": "kl", "top1_agreement": "agreement", "acc": "acc"}
# What a protocol's per-token arrays are called after its name.
_ARRAYS: dict[Kind, str] = {"perplexity": "", "kl": ".kl", "agreement": ".agrees"}
_ENDINGS: dict[Kind, str] = {"kl": " KL", "agreement": " top-1"}


PRINT = "fingerprint."  # before the keys of what a run was made of
_ACTIVATION_GRID = ("symmetric", "granularity", "dynamic", "targets", "kv_bits", "bmm")
_GRID = {
    f"quant.{option}"
    for option in (
        *("bits", "group_size", "symmetric", "symmetric_grid", "skip", "overrides"),
        *(f"activations.{leaf}" for leaf in _ACTIVATION_GRID),
    )
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A method in a setting.

    Attributes:
        method: the preset's name.
        keys: every key that decides the result, apart from the seed, and the fingerprints of what the
            run was made of.
        runs: one per calibration draw, in the order of their seeds.
        shown: the keys among them that differ within the panel, bits left out.
        usual: what most rows of its method have of those keys; names leave it out.
    """

    method: str
    keys: dict[str, str]
    runs: tuple[RunRecord, ...]
    shown: dict[str, str] = field(default_factory=dict)
    usual: dict[str, str] = field(default_factory=dict)

    def on_draws(self, seeds: Collection[str]) -> Row:
        """Return the row with only the runs of some calibration draws."""
        return replace(self, runs=tuple(run for run in self.runs if facts.seed(run) in seeds))

    @property
    def is_baseline(self) -> bool:
        """Whether this is the full precision model."""
        return facts.is_baseline(self.runs[0])

    @property
    def is_calibrated(self) -> bool:
        """Whether its draws can differ."""
        return facts.is_calibrated(self.runs[0])

    @property
    def bits(self) -> int | None:
        """Bits per code; None for the baseline."""
        return facts.weight_bits(self.keys)

    @property
    def widths(self) -> str:
        """Bits of weights, or of weights and activations as `W4A8`; nothing for the baseline."""
        return facts.widths(self.runs[0], self.keys)

    @property
    def widths_in_words(self) -> str:
        """The same in words, as in "3 bits" or "W4A8"; nothing for the baseline."""
        return in_words(self.widths) if self.widths else ""

    @property
    def named(self) -> dict[str, str]:
        """What names say of the shown keys; it tells rows of one method apart as well as all of them."""
        return {k: v for k, v in self.shown.items() if self.usual.get(k) != v}

    @property
    def heading(self) -> str:
        """The name, with the widths in words."""
        name = self._named(dict(beside(self.widths, self.named.items())))
        return ", ".join(filter(None, (name, self.widths_in_words)))

    @property
    def name(self) -> str:
        """The method as papers write it, with what makes it another than most, without bits."""
        return self._named(self.named)

    @property
    def short_name(self) -> str:
        """The method with only the keys that make it a variant, those of the setting left out."""
        return self._named({k: v for k, v in self.named.items() if is_variant(k)})

    def _named(self, keys: dict[str, str]) -> str:
        words = [f"{facts.key_label(key)}={value}" for key, value in keys.items()]
        return " ".join([facts.display_method(self.method), *words])


def in_words(widths: str) -> str:
    """Return widths as a sentence names them: "3 bits", or "W4A8" as it is."""
    return widths if widths.startswith("W") else f"{widths} bits"


def beside(widths: str, pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the keys and values that do not stand in widths."""
    said = ("quant.bits", "activations") if widths.startswith("W") else ("quant.bits",)
    return [(key, value) for key, value in pairs if key not in said]


def is_variant(key: str) -> bool:
    """Whether a key makes a variant of a method, rather than another setting to compete in."""
    return (key.startswith("quant.") and key not in _GRID) or key.startswith(PRINT)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number, its standard error (NaN when unknown), and over how many draws it is the mean."""

    value: float
    stderr: float
    n_draws: int


@dataclass(frozen=True, kw_only=True)
class Column:
    """One metric on one set of tokens or items; `parts` are the columns of a mean over tasks."""

    kind: Kind
    task: str
    metric: str
    fingerprint: str | None
    n: int
    higher_is_better: bool
    ambiguous: bool = False
    parts: tuple[Column, ...] = ()

    @property
    def label(self) -> str:
        """A name that tells it from every other column of its panel."""
        if self.kind == "mean_acc":
            return f"mean of {len(self.parts)} tasks"
        # lm-eval's perplexities of words and of bytes are two columns of one task.
        is_plain = self.kind != "other" and (self.kind != "perplexity" or self.metric == "perplexity")
        ending = _ENDINGS.get(self.kind, "") if is_plain else f" {self.metric}"
        mark = f" [{(self.fingerprint or 'unknown')[:6]}]" if self.ambiguous else ""
        return f"{self.task}{ending}{mark}"

    @property
    def array(self) -> str | None:
        """The name of the per-token array behind a protocol's measure; None for tasks."""
        ending = _ARRAYS.get(self.kind)
        return None if ending is None else f"{self.task}{ending}"

    @property
    def is_percent(self) -> bool:
        """Whether readers see its fractions in percent, and its differences in points."""
        return self.kind in ("acc", "mean_acc", "agreement") or self.metric.startswith("acc")

    def metric_of(self, run: RunRecord) -> Metric | None:
        """Return the run's number for this column, or None when it was not measured on it."""
        metric = run.metric(self.task, self.metric)
        if metric is None or fingerprint_of(run, metric) != self.fingerprint:
            return None
        return metric if self.fingerprint or metric.n == self.n else None

    def estimate(self, row: Row) -> Estimate | None:
        """Return the mean over the row's draws; its error keeps the shared items' part whole.

        With D draws: stderr^2 = mean(stderr^2) + variance between draws / D, since every draw is
        scored on the same items. A mean over tasks is one within each draw, which moves all its tasks.
        """
        parts = self.parts or (self,)
        per_run = [[part.metric_of(run) for part in parts] for run in row.runs]
        whole = [found for run in per_run if len(found := _with_values(run)) == len(parts)]
        if not whole:
            return None
        values = [fmean(value for value, _ in run) for run in whole]
        errors = [math.hypot(*(stderr for _, stderr in run)) / len(run) for run in whole]
        n = len(values)
        mean = sum(values) / n
        if not math.isfinite(mean):
            return Estimate(value=mean, stderr=math.nan, n_draws=n)
        # Lengths of vectors, since the squares of large perplexities are more than a float holds.
        between = math.hypot(*(v - mean for v in values)) / math.sqrt(max(n - 1, 1))
        error = math.hypot(*errors, between) / math.sqrt(n)
        return Estimate(value=mean, stderr=error, n_draws=n)


def _with_values(metrics: Iterable[Metric | None]) -> list[tuple[float, float]]:
    """Return the value and the standard error, NaN where it has none, of the metrics that have a value."""
    return [
        (m.value, math.nan if m.stderr is None else m.stderr)
        for m in metrics
        if m is not None and m.value is not None
    ]


def fingerprint_of(run: RunRecord, metric: Metric) -> str | None:
    """Return the fingerprint of what a metric was measured on."""
    prints = run.fingerprints
    return prints.get(f"protocol/{metric.task}") or prints.get(f"task/{metric.task}") or None


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns of a panel.

    Attributes:
        main: perplexities, accuracies, and the accuracies' mean.
        fidelity: divergence from full precision and agreement with it, per protocol.
        further: everything else that was measured.
    """

    main: tuple[Column, ...]
    fidelity: tuple[Column, ...]
    further: tuple[Column, ...]


def build_columns(records: Sequence[RunRecord]) -> Columns:
    """Return what some records measured, equal names on other tokens or items apart."""
    first_metrics: dict[tuple[str, str, str | None, int], Metric] = {}
    for run in records:
        for metric in run.metrics:
            print_ = fingerprint_of(run, metric)
            key = (metric.task, metric.name, print_, 0 if print_ else metric.n)
            first_metrics.setdefault(key, metric)
    names = [(task, name) for task, name, _, _ in first_metrics]
    columns = [
        Column(
            kind="perplexity" if m.unit == "perplexity" else _KINDS.get(m.name, "other"),
            task=m.task,
            metric=m.name,
            fingerprint=key[2],
            n=m.n,
            higher_is_better=m.higher_is_better,
            ambiguous=names.count((m.task, m.name)) > 1,
        )
        for key, m in first_metrics.items()
    ]
    columns.sort(key=lambda c: c.label)
    tasks = [c for c in columns if c.kind == "acc"]
    main = [c for c in columns if c.kind == "perplexity"] + tasks
    if len(tasks) > 1 and not any(t.ambiguous for t in tasks):
        main.append(_mean_of(tasks))
    return Columns(
        main=tuple(main),
        fidelity=tuple(c for c in columns if c.kind in ("kl", "agreement")),
        further=tuple(c for c in columns if c.kind == "other"),
    )


def _mean_of(tasks: Sequence[Column]) -> Column:
    return Column(
        kind="mean_acc",
        task="mean accuracy",
        metric="acc",
        fingerprint=None,
        n=sum(t.n for t in tasks),
        higher_is_better=True,
        parts=tuple(tasks),
    )


def estimate_cell(column: Column, estimate: Estimate | None, mark: str = "", href: str = "") -> TableCell:
    """Return a metric's cell: fractions in percent, perplexities and divergences as they are."""
    if estimate is None:
        return TableCell(text=formatting.NONE)
    scale, decimals = metric_scale(column)
    value, stderr = estimate.value * scale, estimate.stderr * scale
    error = "" if math.isnan(stderr) else formatting.number(stderr, decimals)
    return TableCell(
        text=formatting.number(value, decimals),
        error=error,
        raw=estimate.value,
        raw_error=None if math.isnan(estimate.stderr) else estimate.stderr,
        mark=mark,
        href=href,
    )


def metric_scale(column: Column) -> tuple[float, int]:
    """Return the factor and the decimals that a column's numbers are shown with."""
    if column.kind == "perplexity":
        return 1.0, 2
    return (100.0, 1) if column.is_percent else (1.0, 4)


def metric_unit(column: Column) -> str:
    """Return what a column's numbers are called on an axis or in a head."""
    names = {"perplexity": "perplexity", "kl": "KL, nats", "agreement": "agreement, %"}
    return names.get(column.kind, "acc, %" if column.is_percent else column.metric)


def metric_heading(column: Column) -> Heading:
    """Return a metric's head: where it was measured, in what unit, and which way is good."""
    arrow = "↑" if column.higher_is_better else "↓"
    task = column.label if column.kind in ("perplexity", "acc", "mean_acc") else column.task
    if column.kind == "other":
        return Heading(
            text=task, sub=f"{column.metric} {arrow}", has_error=True, csv=f"{task} {column.metric}"
        )
    name = task if task.endswith(column.metric) else f"{task} {column.metric}"
    return Heading(text=task, sub=f"{metric_unit(column)} {arrow}", has_error=True, csv=name)
