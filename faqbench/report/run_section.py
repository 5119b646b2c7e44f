"""The section of one run: how to repeat it, what it cost, what was checked, where it errs.

What all runs of a report share (most of the configuration, the machine) is told once, so that a run's
own section shows what is its own, and a report of hundreds of runs stays small.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from faqbench.records import RunRecord
from faqbench.report import facts, formatting
from faqbench.report.block_errors import ADDED_UP, ALONE, COSINE, traced_blocks
from faqbench.report.evidence import EvidenceStore
from faqbench.report.panels import Row

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
    """What is shown of a run; tables are (heads, rows) of text.

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
    metrics: tuple[tuple[str, ...], ...]
    stages: tuple[tuple[str, str, str], ...]
    gates: tuple[tuple[bool, str, str], ...]
    warnings: tuple[str, ...]
    skipped_scales: tuple[str, ...]
    config: Pairs
    environment: Pairs
    details: Pairs
    block_heads: tuple[str, ...]
    blocks: tuple[tuple[str, ...], ...]


def shared_facts(runs: Sequence[RunRecord]) -> Shared:
    """Return what all runs have alike."""
    return Shared(
        config=_common([_config(run) for run in runs]),
        environment=_common([facts.flatten(run.environment) for run in runs]),
        details=_common([_details(run) for run in runs]),
    )


def run_section(run: RunRecord, row: Row, store: EvidenceStore, shared: Shared) -> RunSection:
    """Return a run's section."""
    heads, blocks = _block_errors(run, store)
    heading = row.name if row.bits is None else f"{row.name}, {row.bits} bits"
    if row.is_calibrated:
        heading += f", seed {facts.seed(run)}"
    prints = {f"fingerprint {k}": v[:16] for k, v in run.fingerprints.items()}
    return RunSection(
        run_id=run.run_id,
        heading=heading,
        command=facts.repeat_command(run, row.shown),
        siblings=tuple((facts.seed(r), r.run_id) for r in row.runs if r is not run),
        facts=_facts(run),
        metrics=tuple(
            (
                m.task,
                m.name,
                formatting.number(m.value, 4),
                formatting.number(m.stderr, 4),
                f"{m.n:,}",
            )
            for m in run.metrics
        ),
        stages=tuple(
            (
                name,
                formatting.seconds(timing.seconds),
                "from the cache" if timing.cached else "computed",
            )
            for name, timing in run.stages.items()
        ),
        gates=tuple((gate.passed, gate.name.replace("_", " "), gate.detail) for gate in run.gates),
        warnings=run.warnings,
        skipped_scales=run.skipped_scales,
        config=_own(_config(run), shared.config),
        environment=_own(facts.flatten(run.environment), shared.environment),
        details=(*_own(_details(run), shared.details), *prints.items()),
        block_heads=heads,
        blocks=blocks,
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
    known = dict(shared)
    return tuple((k, v) for k, v in flat.items() if k not in known)


def _facts(run: RunRecord) -> Pairs:
    return (
        ("bits per weight", formatting.number(run.bits_per_weight, 3)),
        ("checkpoint", formatting.bytes_(run.checkpoint_bytes)),
        ("peak memory", formatting.bytes_(run.peak_memory_bytes)),
        ("time", formatting.seconds(run.seconds)),
        ("started", run.started or formatting.NONE),
    )


def _block_errors(
    run: RunRecord, store: EvidenceStore
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    traces = {_TRACES[kind]: curve for kind, curve in traced_blocks(run).items()}
    columns = _role_means(run, store) | traces
    blocks = sorted({block for column in columns.values() for block in column})
    rows = tuple(
        (str(block), *(formatting.number(column.get(block), 4) for column in columns.values()))
        for block in blocks
    )
    return (("block", *columns), rows) if columns else ((), ())


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
    found: dict[str, dict[int, float]] = {}
    for (role, block), values in sorted(errors.items()):
        found.setdefault(role, {})[block] = math.fsum(values) / len(values)
    order = {role: i for i, role in enumerate(_ROLES)}
    return {r: found[r] for r in sorted(found, key=lambda r: (order.get(r, 9), r))}
