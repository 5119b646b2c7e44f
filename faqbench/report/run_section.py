"""What is said of one run: its section in a report, and its comparison and plots for a dashboard.

What all runs of a report share (most of the configuration, the machine) is told once, so that a run's own
section shows what is its own, and a report of hundreds of runs stays small.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from faqbench import formatting
from faqbench.records import RunRecord
from faqbench.report import facts
from faqbench.report.analysis import analyse
from faqbench.report.columns import Row
from faqbench.report.difference_tables import difference, difference_unit
from faqbench.report.evidence import ADDED_UP, ALONE, COSINE, EvidenceStore, traced_blocks
from faqbench.report.figures import draw_figures
from faqbench.report.figures.drawing import to_png
from faqbench.report.panels import build_panels
from faqbench.report.run_pair import Delta, pair_runs
from faqbench.tables import Table, text_table

_HIDDEN = ("paths.", "tracking.", "report.", "evaluation.protocols.", "rerun")
_TOLD_ELSEWHERE = {"blocks", "stage_keys"}
_LONGEST_NOTE = 240
_ROLES = ("qkv", "o", "gate_up", "down")
_TRACES = {ALONE: "alone", ADDED_UP: "added up", COSINE: "cosine"}
Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What every run of a report has alike, as (key, value)."""

    config: Pairs
    environment: Pairs
    details: Pairs


@dataclass(frozen=True, kw_only=True)
class RunSection:
    """What is shown of a run.

    Attributes:
        siblings: (seed, run id) of the other draws of the same method and setting.
        config: (key, value) that not all runs share; folders and tracking decide nothing.
        details: what stages noted down and not all runs share, and the run's fingerprints.
        blocks: per decoder block, the mean relative error of each role and the traced errors.
    """

    run_id: str
    heading: str
    command: str
    siblings: Pairs
    facts: Pairs
    metrics: Table
    stages: Table
    gates: tuple[tuple[bool, str, str], ...]
    warnings: tuple[str, ...]
    skipped_scales: tuple[str, ...]
    config: Pairs
    environment: Pairs
    details: Pairs
    blocks: Table


def shared_facts(runs: Sequence[RunRecord]) -> Shared:
    """Return what all runs have alike."""
    return Shared(
        config=_common([_config(run) for run in runs]),
        environment=_common([facts.flatten(run.environment) for run in runs]),
        details=_common([_details(run) for run in runs]),
    )


def run_section(run: RunRecord, row: Row, store: EvidenceStore, shared: Shared) -> RunSection:
    """Return a run's section."""
    heading = row.heading
    if row.is_calibrated:
        heading += f", seed {facts.seed(run)}"
    prints = {f"fingerprint {k}": v[:16] for k, v in run.fingerprints.items()}
    return RunSection(
        run_id=run.run_id,
        heading=heading,
        command=facts.repeat_command(run),
        siblings=tuple((facts.seed(r), r.run_id) for r in row.runs if r is not run),
        facts=_facts(run),
        metrics=text_table(
            f"Metrics of {run.run_id}",
            ("task", "metric", "value", "stderr", "n"),
            [
                (m.task, m.name, *(formatting.number(x, 4) for x in (m.value, m.stderr)), f"{m.n:,}")
                for m in run.metrics
            ],
            n_names=2,
        ),
        stages=text_table(
            f"Stages of {run.run_id}",
            ("stage", "time", "result"),
            [
                (name, formatting.seconds(t.seconds), "from the cache" if t.cached else "computed")
                for name, t in run.stages.items()
            ],
        ),
        gates=tuple((gate.passed, gate.name.replace("_", " "), gate.detail) for gate in run.gates),
        warnings=run.warnings,
        skipped_scales=run.skipped_scales,
        config=_own(_config(run), shared.config),
        environment=_own(facts.flatten(run.environment), shared.environment),
        details=(*_own(_details(run), shared.details), *prints.items()),
        blocks=_block_errors(run, store),
    )


def _config(run: RunRecord) -> dict[str, str]:
    return {k: v for k, v in facts.flatten(run.config).items() if not k.startswith(_HIDDEN)}


def _details(run: RunRecord) -> dict[str, str]:
    """Return what the stages noted down in `extra`: not the blocks' traces, nor the cache's keys."""
    kept = {k: v for k, v in run.extra.items() if k not in _TOLD_ELSEWHERE and v not in ({}, [])}
    return {k: _shortened(v) for k, v in facts.flatten(kept).items()}


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_NOTE else f"{text[: _LONGEST_NOTE - 1]}…"


def _common(flat: Sequence[Mapping[str, str]]) -> Pairs:
    first = flat[0] if flat else {}
    return tuple((k, v) for k, v in first.items() if all(f.get(k) == v for f in flat))


def _own(flat: Mapping[str, str], shared: Pairs) -> Pairs:
    shown = dict(shared)
    return tuple((k, v) for k, v in flat.items() if k not in shown)


def _facts(run: RunRecord) -> Pairs:
    return (
        ("bits per weight", formatting.number(run.bits_per_weight, 3)),
        ("checkpoint", formatting.n_bytes(run.checkpoint_bytes)),
        ("peak memory", formatting.n_bytes(run.peak_memory_bytes)),
        ("time", formatting.seconds(run.seconds)),
        ("started", run.started or formatting.NONE),
    )


def _block_errors(run: RunRecord, store: EvidenceStore) -> Table:
    traces = {_TRACES[kind]: curve for kind, curve in traced_blocks(run).items()}
    columns = _role_means(run, store) | traces
    blocks = sorted({block for column in columns.values() for block in column})
    rows = (
        (str(block), *(formatting.number(column.get(block), 4) for column in columns.values()))
        for block in blocks
    )
    return text_table(f"Relative error per block of {run.run_id}", ("block", *columns), rows)


def _role_means(run: RunRecord, store: EvidenceStore) -> dict[str, dict[int, float]]:
    """Return role -> block -> mean relative error of its linears."""
    layers = store.of(run.run_id).layers
    if layers is None or not {"block", "role", "relative_error"} <= set(layers):
        return {}
    errors: dict[tuple[str, int], list[float]] = {}
    columns = (layers[name].tolist() for name in ("role", "block", "relative_error"))
    for role, block, error in zip(*columns, strict=True):
        if error is not None and not math.isnan(error) and role is not None:
            errors.setdefault((str(role), int(block)), []).append(float(error))
    per_role: dict[str, dict[int, float]] = {}
    for (role, block), values in sorted(errors.items()):
        per_role.setdefault(role, {})[block] = math.fsum(values) / len(values)
    order = {role: i for i, role in enumerate(_ROLES)}
    return {r: per_role[r] for r in sorted(per_role, key=lambda r: (order.get(r, 9), r))}


_DPI = 120  # every cell of a sweep draws these
_FIGURES = ("differences", "depth", "linears", "exponents")


@dataclass(frozen=True, kw_only=True)
class RunEvidence:
    """A run's comparison with its baseline as rows, and its plots as (name, caption, PNG)."""

    comparison: tuple[dict[str, float | str | bool | None], ...]
    images: tuple[tuple[str, str, bytes], ...]


def run_evidence(runs: Path, run: RunRecord, baseline: RunRecord | None) -> RunEvidence:
    """Return what there is to say about a run; of a failed one, nothing."""
    if run.status != "finished":
        return RunEvidence(comparison=(), images=())
    store = EvidenceStore(runs)
    rows = () if baseline is None else pair_runs(runs, run, baseline).metrics
    (panel,) = build_panels([run, *([baseline] if baseline else [])])
    named = facts.method_name(baseline) if baseline else None
    analysis = analyse(panel, store, named)
    figures = draw_figures(analysis, store, _FIGURES)
    return RunEvidence(
        comparison=tuple(_comparison_row(delta) for delta in rows if delta.a and delta.b),
        images=tuple((name, f"{title}. {d.caption}", to_png(d, _DPI)) for name, title, d in figures),
    )


def _comparison_row(delta: Delta) -> dict[str, float | str | bool | None]:
    c = delta.comparison
    assert delta.a is not None and delta.b is not None, "only metrics of both are compared"
    value, low, high = difference(c)
    return {
        "metric": f"{delta.column.task}/{delta.column.metric}",
        "value": delta.a.value,
        "baseline": delta.b.value,
        "difference": value,
        "unit": difference_unit(delta.column),
        "low": low,
        "high": high,
        "p_holm": c.p_holm,
        "is_significant": c.is_significant,
        "verdict": c.verdict,
        "not_paired": c.refused,
    }
