"""The section of one run: how to repeat it, what it cost, what was checked, where it errs."""

from __future__ import annotations

from dataclasses import dataclass

from faqbench.records import RunRecord
from faqbench.report import facts, formatting
from faqbench.report.evidence import EvidenceStore
from faqbench.report.panels import Row

_HIDDEN = ("paths.", "tracking.", "report.")


@dataclass(frozen=True, kw_only=True)
class RunSection:
    """What is shown of a run; tables are (heads, rows) of text.

    Attributes:
        config: (key, value), folders and tracking left out, since they decide nothing.
        blocks: mean relative error per decoder block and role.
    """

    run_id: str
    heading: str
    command: str
    facts: tuple[tuple[str, str], ...]
    metrics: tuple[tuple[str, ...], ...]
    stages: tuple[tuple[str, str, str], ...]
    gates: tuple[tuple[bool, str, str], ...]
    warnings: tuple[str, ...]
    skipped_scales: tuple[str, ...]
    config: tuple[tuple[str, str], ...]
    environment: tuple[tuple[str, str], ...]
    fingerprints: tuple[tuple[str, str], ...]
    block_heads: tuple[str, ...]
    blocks: tuple[tuple[str, ...], ...]


def run_section(run: RunRecord, row: Row, store: EvidenceStore) -> RunSection:
    """Return a run's section."""
    heads, blocks = _block_errors(run, store)
    config = facts.flatten(run.config)
    heading = row.name if row.bits is None else f"{row.name}, {row.bits} bits"
    if row.is_calibrated:
        heading += f", seed {facts.seed(run)}"
    return RunSection(
        run_id=run.run_id,
        heading=heading,
        command=facts.repeat_command(run, row.shown),
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
        config=tuple((k, v) for k, v in config.items() if not k.startswith(_HIDDEN)),
        environment=tuple(facts.flatten(run.environment).items()),
        fingerprints=tuple((k, v[:16]) for k, v in run.fingerprints.items()),
        block_heads=heads,
        blocks=blocks,
    )


def _facts(run: RunRecord) -> tuple[tuple[str, str], ...]:
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
    layers = store.of(run.run_id).layers
    if layers is None or not len(layers) or not {"block", "role", "relative_error"} <= set(layers):
        return (), ()
    table = layers.pivot_table(index="block", columns="role", values="relative_error", sort=True)
    order = ("qkv", "o", "gate_up", "down")
    roles = sorted(table.columns, key=lambda r: (order.index(r) if r in order else 9, str(r)))
    rows = tuple(
        (str(block), *(formatting.number(float(table.loc[block, role]), 4) for role in roles))
        for block in table.index
    )
    return ("block", *map(str, roles)), rows
