"""One panel per model: rows, columns, and the estimate where they meet.

A row is a method in a setting, with one run per calibration draw; `columns` says what a column is.
Models and settings are told apart by fingerprints, not by what they were called: two checkpoints under
one name are two panels, and runs on another text are another row. Two runs of one draw in one row
contradict each other or say the same twice; `without_repeats` names both and takes neither.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from faqbench import formatting
from faqbench.records import RunRecord
from faqbench.report import facts
from faqbench.report.columns import PRINT, Column, Kind, Row, build_columns, in_words, is_variant


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

    def full_precision(self, row: Row) -> Row | None:
        """Return the full precision that a row is measured against; None without such a run.

        It has the row's dtype, and the row's evaluation where there is one of it.
        """
        keys = [k for k in self.shown_keys if not is_variant(k)]
        for told in (keys, [k for k in keys if not k.startswith("evaluation.")]):
            wanted = tuple(row.keys.get(k) for k in told)
            for full in self.rows:
                if full.is_baseline and fits(tuple(full.keys.get(k) for k in told), wanted):
                    return full
        return None


def full_rows(panel: Panel, rows: Iterable[Row]) -> list[Row]:
    """Return the full precision rows that some rows are measured against, each once."""
    found = (panel.full_precision(row) for row in rows)
    return list({full.name: full for full in found if full is not None}.values())


def build_panels(records: Sequence[RunRecord]) -> list[Panel]:
    """Return one panel per model, in the order of their names."""
    models: dict[str, dict[str, list[tuple[RunRecord, dict[str, str]]]]] = {}
    for record, prints in zip(records, facts.made_of(records), strict=True):
        records_of_model = models.setdefault(facts.model_name(record), {})
        model = prints.get("model") or prints.get("weights") or ""
        records_of_model.setdefault(model, []).append((record, prints))
    return [
        _panel(
            name if len(records_of_model) == 1 else f"{name} [{model[:6] or 'unknown'}]",
            records_of_model[model],
        )
        for name, records_of_model in sorted(models.items())
        for model in sorted(records_of_model)
    ]


def without_repeats(records: Sequence[RunRecord]) -> tuple[list[RunRecord], list[tuple[str, str]]]:
    """Return the runs that stand for a draw of their own, and (run ids, sentence) of those that share one.

    Such runs have one method, setting and seed, on one model and the same texts: a copy of a run's
    folder, or the same weights under two names.
    """
    groups: dict[tuple[str, str, str], list[RunRecord]] = {}
    for record, prints in zip(records, facts.made_of(records), strict=True):
        draw = facts.seed(record) if facts.is_calibrated(record) else ""
        key = (facts.model_name(record), facts.setting_identity(record, prints), draw)
        groups.setdefault(key, []).append(record)
    alone = {id(runs[0]) for runs in groups.values() if len(runs) == 1}
    repeated = [_repeated(runs) for runs in groups.values() if len(runs) > 1]
    return [r for r in records if id(r) in alone], repeated


def _repeated(runs: Sequence[RunRecord]) -> tuple[str, str]:
    first = runs[0]
    names = [facts.display_method(facts.method_name(first))]
    widths = facts.widths(first, facts.deciding_keys(first))
    names += [in_words(widths)] if widths else []
    names += [f"seed {facts.seed(first)}"] if facts.is_calibrated(first) else []
    return (
        formatting.listing([r.run_id for r in runs]),
        f"are one and the same draw of {facts.model_name(first)} ({', '.join(names)}), so none of them is "
        "in the tables; keep one of them, as `faqbench rm RUN` does.",
    )


def _panel(model: str, records: Sequence[tuple[RunRecord, dict[str, str]]]) -> Panel:
    """Return the panel of one model: its runs as rows, and the keys in which rows differ."""
    groups: dict[str, list[tuple[RunRecord, dict[str, str]]]] = {}
    for record, prints in records:
        groups.setdefault(facts.setting_identity(record, prints), []).append((record, prints))
    rows = [
        Row(
            method=facts.method_name(first),
            keys=_keys(first, prints),
            runs=tuple(
                sorted((r for r, _ in runs_of_row), key=lambda r: (len(facts.seed(r)), facts.seed(r)))
            ),
        )
        for runs_of_row in groups.values()
        for first, prints in runs_of_row[:1]
    ]
    shown_keys = _shown_keys(rows)
    usual = _usual(rows, shown_keys)
    rows = [
        replace(r, shown={k: r.keys[k] for k in shown_keys if k in r.keys}, usual=usual[r.method])
        for r in rows
    ]
    rows.sort(
        key=lambda r: (
            not r.is_baseline,
            -(r.bits or 0),
            [r.shown.get(k, "") for k in shown_keys if not is_variant(k)] if r.is_calibrated else [],
            facts.method_order(r.method),
            [r.shown.get(k, "") for k in shown_keys],
        )
    )
    columns = build_columns([record for record, _ in records])
    return Panel(
        model=model,
        rows=tuple(rows),
        columns=columns.main,
        fidelity=columns.fidelity,
        further=columns.further,
        shown_keys=shown_keys,
    )


def _keys(record: RunRecord, prints: Mapping[str, str]) -> dict[str, str]:
    keys = facts.deciding_keys(record)
    keys.pop("quant.activations.bits", None)
    keys |= facts.activation_keys(record) | {f"{PRINT}{k}": v[:8] for k, v in prints.items()}
    return dict(sorted(keys.items()))


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


def _usual(rows: Sequence[Row], shown_keys: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return, by method, the values that more of its rows have than any other value of a variant's key."""
    usual: dict[str, dict[str, str]] = {row.method: {} for row in rows}
    for method, key in itertools.product(usual, filter(is_variant, shown_keys)):
        counts = Counter(row.keys[key] for row in rows if row.method == method and key in row.keys)
        ranks = counts.most_common(2)
        if len(ranks) == 2 and ranks[0][1] > ranks[1][1]:
            usual[method][key] = ranks[0][0]
    return usual


def _peers(rows: Sequence[Row], key: str) -> list[list[Row]]:
    """Return the groups of rows within which a difference in `key` is news to the reader."""
    if key == "quant.clip":
        return [[r for r in rows if r.keys.get("quant.scale", "none") != "none"]]
    if is_variant(key):
        return [[r for r in rows if r.method == m] for m in {r.method for r in rows}]
    if key.startswith("scenario.") and key != "scenario.name":  # the name says what it changes
        names = {r.keys.get("scenario.name") for r in rows}
        return [[r for r in rows if r.keys.get("scenario.name") == name] for name in names]
    return [[r for r in rows if key in r.keys]]


def _differs(rows: Sequence[Row], key: str) -> bool:
    return len({row.keys.get(key) for row in rows}) > 1


def fits(loose: tuple[str | None, ...], tight: tuple[str | None, ...]) -> bool:
    """Whether a row with these values takes part in a setting; None is a key that does not touch it."""
    return all(a is None or a == b for a, b in zip(loose, tight, strict=True))
