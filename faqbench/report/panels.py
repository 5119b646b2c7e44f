"""One panel per model: rows, columns, and the estimate where they meet.

A row is a method in a setting, with one run per calibration draw. A column is one metric of one
protocol or task *on one set of tokens or items*: the same protocol name with another fingerprint is
another column, since such numbers must never be read against each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from faqbench.records import Metric, RunRecord
from faqbench.report import facts

Kind = Literal["perplexity", "acc", "mean_acc", "other"]
_STAGES = ("quant.scale", "quant.clip", "quant.correct", "quant.round")
_GRID = {"quant.bits", "quant.group_size", "quant.symmetric", "quant.skip", "quant.overrides"}


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
        name = self.task if self.kind in ("perplexity", "acc") else f"{self.task} {self.metric}"
        return f"{name} [{(self.fingerprint or 'unknown')[:6]}]" if self.ambiguous else name

    def metric_of(self, run: RunRecord) -> Metric | None:
        """Return the run's number for this column, or None when it was not measured on it."""
        metric = run.metric(self.task, self.metric)
        if metric is None or fingerprint_of(run, metric) != self.fingerprint:
            return None
        return metric if self.fingerprint or metric.n == self.n else None

    def estimate(self, row: Row) -> Estimate | None:
        """Return the mean over the row's draws; its error keeps the shared items' part whole.

        With D draws: stderr^2 = mean(stderr^2) + variance between draws / D, since every draw is
        scored on the same items.
        """
        if self.kind == "mean_acc":
            parts = [part.estimate(row) for part in self.parts]
            known = [p for p in parts if p is not None]
            if len(known) < len(self.parts):
                return None
            error = math.sqrt(sum(p.stderr**2 for p in known)) / len(known)
            mean = sum(p.value for p in known) / len(known)
            return Estimate(value=mean, stderr=error, n_draws=min(p.n_draws for p in known))
        found = [m for run in row.runs if (m := self.metric_of(run)) and m.value is not None]
        if not found:
            return None
        values = [m.value for m in found if m.value is not None]
        errors = [math.nan if m.stderr is None else m.stderr for m in found]
        mean, n = sum(values) / len(values), len(values)
        between = sum((v - mean) ** 2 for v in values) / (n - 1) if n > 1 else 0.0
        variance = sum(e**2 for e in errors) / n + between / n
        return Estimate(value=mean, stderr=math.sqrt(variance), n_draws=n)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A method in a setting.

    Attributes:
        method: the preset's name.
        keys: every key that decides the result, apart from the seed.
        runs: one per calibration draw, in the order of their seeds.
        shown: the keys among them that differ within the panel, bits left out.
    """

    method: str
    keys: dict[str, str]
    runs: tuple[RunRecord, ...]
    shown: dict[str, str] = field(default_factory=dict)

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
        text = self.keys.get("quant.bits", "")
        return int(text) if text.isdigit() else None

    @property
    def name(self) -> str:
        """The method as papers write it, with all shown keys, without bits."""
        return self._named(self.shown)

    @property
    def short_name(self) -> str:
        """The method with only the keys that make it a variant, those of the setting left out."""
        return self._named({k: v for k, v in self.shown.items() if is_variant(k)})

    def _named(self, keys: dict[str, str]) -> str:
        words = [f"{facts.key_label(key)}={value}" for key, value in keys.items()]
        return " ".join([facts.display_method(self.method), *words])


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Everything shown for one model."""

    model: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    further: tuple[Column, ...]
    shown_keys: tuple[str, ...]

    def of_kind(self, *kinds: Kind) -> list[Column]:
        """Return the main columns of some kinds."""
        return [c for c in self.columns if c.kind in kinds]


def is_variant(key: str) -> bool:
    """Whether a key makes a variant of a method, rather than another setting to compete in."""
    return key.startswith("quant.") and key not in _GRID


def fingerprint_of(run: RunRecord, metric: Metric) -> str | None:
    """Return the fingerprint of what a metric was measured on."""
    found = (run.fingerprints.get(f"{kind}/{metric.task}") for kind in ("protocol", "task"))
    return next((f for f in found if f), None)


def build_panels(records: Sequence[RunRecord]) -> list[Panel]:
    """Return one panel per model, in the order of their names."""
    models = sorted({facts.model_name(r) for r in records})
    return [_panel(m, [r for r in records if facts.model_name(r) == m]) for m in models]


def _panel(model: str, records: list[RunRecord]) -> Panel:
    groups: dict[tuple[str, tuple[tuple[str, str], ...]], list[RunRecord]] = {}
    for record in records:
        key = (facts.method_name(record), tuple(sorted(facts.deciding_keys(record).items())))
        groups.setdefault(key, []).append(record)
    rows = [
        Row(
            method=m,
            keys=dict(keys),
            runs=tuple(sorted(runs, key=lambda r: (len(facts.seed(r)), facts.seed(r)))),
        )
        for (m, keys), runs in groups.items()
    ]
    shown_keys = _shown_keys(rows)
    rows = [
        Row(
            method=r.method,
            keys=r.keys,
            runs=r.runs,
            shown={k: r.keys[k] for k in shown_keys if k in r.keys},
        )
        for r in rows
    ]
    rows.sort(
        key=lambda r: (
            not r.is_baseline,
            -(r.bits or 0),
            [r.shown.get(k, "") for k in shown_keys if not is_variant(k)]
            if r.is_calibrated
            else [],
            facts.method_order(r.method),
            [r.shown.get(k, "") for k in shown_keys],
        )
    )
    main, further = _columns(records)
    return Panel(
        model=model, rows=tuple(rows), columns=main, further=further, shown_keys=shown_keys
    )


def _shown_keys(rows: Sequence[Row]) -> tuple[str, ...]:
    """Return the keys that differ, one for each way of telling the rows apart."""
    keys = list(dict.fromkeys(k for row in rows for k in row.keys if k != "quant.bits"))
    keys.sort(key=lambda k: not k.endswith(".name"))
    chosen: list[str] = []
    patterns: set[tuple[str | None, ...]] = set()
    for key in keys:
        if not any(_differs(group, key) for group in _peers(rows, key)):
            continue
        pattern = tuple(row.keys.get(key) for row in rows)
        labels: dict[str | None, int] = {}
        partition = tuple(str(labels.setdefault(v, len(labels))) for v in pattern)
        if partition not in patterns:
            patterns.add(partition)
            chosen.append(key)
    return tuple(sorted(chosen, key=list(dict.fromkeys(k for r in rows for k in r.keys)).index))


def _peers(rows: Sequence[Row], key: str) -> list[list[Row]]:
    """Return the groups of rows within which a difference in `key` is news to the reader."""
    if key == "quant.clip":
        return [[r for r in rows if r.keys.get("quant.scale", "none") != "none"]]
    if key.startswith("quant.") and key not in _GRID:
        return [[r for r in rows if r.method == m] for m in {r.method for r in rows}]
    if key.startswith("scenario.") and key != "scenario.name":  # the name says what it changes
        names = {r.keys.get("scenario.name") for r in rows}
        return [[r for r in rows if r.keys.get("scenario.name") == name] for name in names]
    return [[r for r in rows if key in r.keys]]


def _differs(rows: Sequence[Row], key: str) -> bool:
    return len({row.keys.get(key) for row in rows}) > 1


def _columns(records: Sequence[RunRecord]) -> tuple[tuple[Column, ...], tuple[Column, ...]]:
    found: dict[tuple[str, str, str | None, int], Metric] = {}
    for run in records:
        for metric in run.metrics:
            print_ = fingerprint_of(run, metric)
            key = (metric.task, metric.name, print_, 0 if print_ else metric.n)
            found.setdefault(key, metric)
    names = [(task, name) for task, name, _, _ in found]
    columns = [
        Column(
            kind="perplexity" if m.unit == "perplexity" else "acc" if m.name == "acc" else "other",
            task=m.task,
            metric=m.name,
            fingerprint=key[2],
            n=m.n,
            higher_is_better=m.higher_is_better,
            ambiguous=names.count((m.task, m.name)) > 1,
        )
        for key, m in found.items()
    ]
    perplexities = sorted((c for c in columns if c.kind == "perplexity"), key=lambda c: c.label)
    tasks = sorted((c for c in columns if c.kind == "acc"), key=lambda c: c.label)
    main = perplexities + tasks
    if len(tasks) > 1 and not any(t.ambiguous for t in tasks):
        main.append(
            Column(
                kind="mean_acc",
                task="mean accuracy",
                metric="acc",
                fingerprint=None,
                n=sum(t.n for t in tasks),
                higher_is_better=True,
                parts=tuple(tasks),
            )
        )
    others = sorted((c for c in columns if c.kind == "other"), key=lambda c: c.label)
    return tuple(main), tuple(others)
