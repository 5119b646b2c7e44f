"""One panel per model: rows, columns, and the estimate where they meet.

A row is a method in a setting, with one run per calibration draw; `columns` says what a column is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from faqbench.records import RunRecord
from faqbench.report import facts
from faqbench.report.columns import Column, Kind, build_columns

_STAGES = ("quant.scale", "quant.clip", "quant.correct", "quant.round")
_GRID = {"quant.bits", "quant.group_size", "quant.symmetric", "quant.skip", "quant.overrides"}


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
    fidelity: tuple[Column, ...]
    further: tuple[Column, ...]
    shown_keys: tuple[str, ...]

    def of_kind(self, *kinds: Kind) -> list[Column]:
        """Return the main columns of some kinds."""
        return [c for c in self.columns if c.kind in kinds]


def is_variant(key: str) -> bool:
    """Whether a key makes a variant of a method, rather than another setting to compete in."""
    return key.startswith("quant.") and key not in _GRID


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
    columns = build_columns(records)
    return Panel(
        model=model,
        rows=tuple(rows),
        columns=columns.main,
        fidelity=columns.fidelity,
        further=columns.further,
        shown_keys=shown_keys,
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
