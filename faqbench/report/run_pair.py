"""Two runs against each other: what differs in how they were made, in what they give, and where.

keys       the keys that differ and decide a result, and nothing else
metrics    every metric of both with the paired difference A - B and its interval
items      the items that one gets right and the other does not, by task
windows    the windows of text whose loss differs most
linears    the linears and blocks whose error differs most
verdict    all of it in one sentence
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from faqbench import formatting
from faqbench.records import RunRecord
from faqbench.report import facts
from faqbench.report.columns import Column, Estimate, Row, build_columns
from faqbench.report.comparisons import Comparison, compare_runs, with_holm
from faqbench.report.evidence import ALONE, EvidenceStore, block_curves, linear_errors
from faqbench.report.verdicts import describe, measure

_MOST_KEYS_IN_A_NAME = 2
MISSING = formatting.NONE


@dataclass(frozen=True, kw_only=True)
class Delta:
    """One metric of both runs; `comparison` is None where their errors are not asked for."""

    column: Column
    a: Estimate | None
    b: Estimate | None
    comparison: Comparison


@dataclass(frozen=True, kw_only=True)
class Flips:
    """The items of a task on which the runs disagree, by their index in the task."""

    task: str
    n: int
    only_a: tuple[int, ...]
    only_b: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class WindowMove:
    """A window of a protocol and its mean loss under both runs, nats per token."""

    protocol: str
    window: int
    a: float
    b: float


@dataclass(frozen=True, kw_only=True)
class ErrorMove:
    """A linear or block and its relative squared output error under both runs."""

    place: str
    a: float
    b: float

    @property
    def growth(self) -> float:
        """How much larger A's error is than B's, in the unit of the errors."""
        return self.a - self.b


@dataclass(frozen=True, kw_only=True)
class RunPair:
    """Two runs and how they differ; rows hold one run each.

    Attributes:
        keys: (key, value of A, value of B) of the configuration; a dash where a run lacks a key.
        environment: the same of versions and machine.
        costs: (what, A, B).
        linears: where A errs more than B first; a linear that one run did not measure is left out.
        blocks: the same of blocks, each on full precision inputs.
        verdict: the answer in a sentence.
        damaged: (run id, reason) of runs whose tables cannot be read.
    """

    a: Row
    b: Row
    name_a: str
    name_b: str
    keys: tuple[tuple[str, str, str], ...]
    environment: tuple[tuple[str, str, str], ...]
    metrics: tuple[Delta, ...]
    flips: tuple[Flips, ...]
    windows: tuple[WindowMove, ...]
    linears: tuple[ErrorMove, ...]
    blocks: tuple[ErrorMove, ...]
    costs: tuple[tuple[str, str, str], ...]
    verdict: str
    damaged: tuple[tuple[str, str], ...]


def pair_runs(runs: Path, a: RunRecord, b: RunRecord) -> RunPair:
    """Compare two runs of a folder."""
    store = EvidenceStore(runs)
    keys = _differing(_deciding(a), _deciding(b))
    rows = [_row(run, keys, i) for i, run in enumerate((a, b))]
    names = _names(rows, keys)
    metrics = _deltas(store, rows[0], rows[1])
    linears = _linear_moves(store, a, b)
    return RunPair(
        a=rows[0],
        b=rows[1],
        name_a=names[0],
        name_b=names[1],
        keys=keys,
        environment=_differing(facts.flatten(a.environment), facts.flatten(b.environment)),
        metrics=metrics,
        flips=tuple(_flips(store, a, b, metrics)),
        windows=tuple(_window_moves(store, a, b, metrics)),
        linears=linears,
        blocks=_block_moves(store, a, b),
        costs=_costs(a, b),
        verdict=_verdict(names, keys, metrics, linears),
        damaged=tuple(store.damaged()),
    )


def _deciding(run: RunRecord) -> dict[str, str]:
    deciding = facts.deciding_keys(run)
    name = facts.config_value(run.config, "quant.name")
    deciding = ({"quant.name": name} if name else {}) | deciding
    deciding |= {"calibration.seed": facts.seed(run)} if facts.is_calibrated(run) else {}
    return deciding | {f"fingerprint.{k}": v[:8] for k, v in sorted(run.fingerprints.items())}


def _differing(a: dict[str, str], b: dict[str, str]) -> tuple[tuple[str, str, str], ...]:
    return tuple(
        (key, a.get(key, MISSING), b.get(key, MISSING))
        for key in dict.fromkeys((*a, *b))
        if a.get(key) != b.get(key)
    )


def _row(run: RunRecord, keys: Sequence[tuple[str, str, str]], index: int) -> Row:
    shown = {key: values[index] for key, *values in keys if values[index] != MISSING}
    return Row(method=facts.method_name(run), keys=facts.deciding_keys(run), runs=(run,), shown=shown)


def _names(rows: Sequence[Row], keys: Sequence[tuple[str, str, str]]) -> tuple[str, str]:
    """Return the runs' names: the methods, with the keys that differ where the methods do not."""
    names = []
    for row in rows:
        method = facts.display_method(row.method)
        names.append(", ".join(filter(None, (method, row.widths_in_words))))
    if names[0] != names[1]:
        return names[0], names[1]
    told = [k for k, *_ in keys if k != "quant.name"][:_MOST_KEYS_IN_A_NAME]
    words = [", ".join(f"{facts.key_label(k)}={row.shown.get(k, MISSING)}" for k in told) for row in rows]
    if words[0] == words[1]:
        return rows[0].runs[0].run_id, rows[1].runs[0].run_id
    return f"{names[0]}, {words[0]}", f"{names[1]}, {words[1]}"


def _deltas(store: EvidenceStore, a: Row, b: Row) -> tuple[Delta, ...]:
    columns = build_columns([*a.runs, *b.runs])
    margin = facts.stated_margin([*a.runs, *b.runs])
    deltas: list[Delta] = []
    for family in (columns.main, columns.fidelity, columns.further):
        measured = [c for c in family if c.estimate(a) or c.estimate(b)]
        compared = with_holm([compare_runs(store, a, b, column, margin) for column in measured])
        deltas += [
            Delta(column=c, a=c.estimate(a), b=c.estimate(b), comparison=comparison)
            for c, comparison in zip(measured, compared, strict=True)
        ]
    return tuple(deltas)


def _flips(store: EvidenceStore, a: RunRecord, b: RunRecord, metrics: Sequence[Delta]) -> list[Flips]:
    flips = []
    for delta in metrics:
        column = delta.column
        if column.kind != "acc" or delta.comparison.refused:
            continue
        numbers, values_a = store.of(a.run_id).items[column.task, column.metric]
        _, values_b = store.of(b.run_id).items[column.task, column.metric]
        only_a = numbers[values_a > values_b].tolist()
        only_b = numbers[values_a < values_b].tolist()
        flips.append(Flips(task=column.task, n=len(numbers), only_a=tuple(only_a), only_b=tuple(only_b)))
    return flips


def _window_moves(
    store: EvidenceStore, a: RunRecord, b: RunRecord, metrics: Sequence[Delta]
) -> list[WindowMove]:
    """Return the windows of each protocol, largest difference first."""
    moves = []
    for delta in metrics:
        protocol = delta.column.task
        if delta.column.kind != "perplexity" or delta.comparison.refused:
            continue
        losses = [store.of(run.run_id).windows[protocol][:, 0] for run in (a, b)]
        order = np.argsort(-np.abs(losses[0] - losses[1]), kind="stable").tolist()
        moves += [
            WindowMove(protocol=protocol, window=i, a=float(losses[0][i]), b=float(losses[1][i]))
            for i in order
        ]
    return moves


def _linear_moves(store: EvidenceStore, a: RunRecord, b: RunRecord) -> tuple[ErrorMove, ...]:
    errors_a, errors_b = linear_errors([a], store), linear_errors([b], store)
    moves = [
        ErrorMove(place=f"block {block}, {linear}", a=errors_a[key], b=errors_b[key])
        for key in errors_a
        if key in errors_b
        for linear, block in (key,)
    ]
    return tuple(sorted(moves, key=lambda move: -move.growth))


def _block_moves(store: EvidenceStore, a: RunRecord, b: RunRecord) -> tuple[ErrorMove, ...]:
    """Return the blocks by their own error: what has added up would blame all that follow too."""
    first, second = (block_curves([run], store).get(ALONE, {}) for run in (a, b))
    moves = [
        ErrorMove(place=f"block {block}", a=first[block], b=second[block])
        for block in first
        if block in second
    ]
    return tuple(sorted(moves, key=lambda move: -move.growth))


def _costs(a: RunRecord, b: RunRecord) -> tuple[tuple[str, str, str], ...]:
    stages = dict.fromkeys((*a.stages, *b.stages))

    def stage(run: RunRecord, name: str) -> str:
        timing = run.stages.get(name)
        if timing is None:
            return MISSING
        return formatting.seconds(timing.seconds) + (" (cached)" if timing.cached else "")

    def both(what: str, show: Callable[[RunRecord], str]) -> tuple[str, str, str]:
        return what, show(a), show(b)

    return (
        both("bits per weight", lambda run: formatting.number(run.bits_per_weight, 3)),
        both("time", lambda run: formatting.seconds(run.seconds)),
        *((f"stage {name}", stage(a, name), stage(b, name)) for name in stages),
        both("peak memory", lambda run: formatting.n_bytes(run.peak_memory_bytes)),
    )


def _verdict(
    names: tuple[str, str],
    keys: Sequence[tuple[str, str, str]],
    metrics: Sequence[Delta],
    linears: Sequence[ErrorMove],
) -> str:
    """Say who is better in what, by how much, and where the difference lies."""
    kinds = {d.column.kind for d in metrics}
    told = ("perplexity", "mean_acc" if "mean_acc" in kinds else "acc")
    words = []
    for c in [d.comparison for d in metrics if d.column.kind in told and d.a and d.b]:
        numbers = f"not paired: {c.refused}" if c.refused else describe(c)
        words.append(f"{c.verdict} in {measure(c.column)} ({numbers})")
    words = words or ["no metric in common"]
    sentence = f"{names[0]}, against {names[1]}: {formatting.listing(words)}"
    if not keys:
        sentence += "; no key that decides a result differs"
    moved = [m for m in linears if m.a != m.b]
    if moved:
        most = max(moved, key=lambda m: abs(m.growth))
        sentence += f"; errors differ most in {most.place}, {most.a:.3g} against {most.b:.3g}"
    return sentence + "."
