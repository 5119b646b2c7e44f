"""The model card of an export: what was measured, of what, and how to check it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from faqbench.records import Metric, RunRecord

_NORMAL_95 = 1.96


def model_card(facts: Mapping[str, Any], record: RunRecord) -> str:
    """Return README.md of an exported folder.

    Args:
        facts: as `faqbench/facts.json` has them.
        record: of the run.
    """
    model = facts["config"]["model"]
    base = model["hub_id"] or model["asset"] or model["name"]
    head = {"tags": ["quantized", "faqbench", facts["format"]], "base_model_relation": "quantized"}
    if model["hub_id"]:
        head["base_model"] = model["hub_id"]
    measured = facts["bits_per_weight_measured"]
    stored = facts["bits_per_weight"]
    counted = (
        ""
        if measured is None or abs(measured - stored) < 5e-4
        else f" The run counted {measured:.3f}, with scales of 16 bits; measured and stored they are of 32."
    )
    lines = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {base}, quantized: {record.run_id}",
        "The numbers below were measured with these very weights: codes, scales and zero points are those "
        f"of the run `{record.run_id}` of faqbench {facts['faqbench']}, packed as `{facts['format']}` by "
        f"{facts['writer']}; nothing was quantized anew.",
        f"**Size.** {stored:.3f} bits per weight of the quantized linears, scales and zero points counted; "
        f"{facts['bits_per_parameter']:.3f} bits per parameter with embeddings and all else.{counted}",
        "**Measured.** Intervals are of 95 %, over windows or items.",
        _table([m for m in record.metrics if m.value is not None]),
        "**Verify.** `python -m faqbench verify FOLDER` loads this folder with transformers alone and "
        "compares weights, logits and perplexity with what was measured; `faqbench/` holds what it needs.",
        f"**Licence.** The licence of {base} applies to these weights too; the notices that came with it "
        "are kept in this folder.",
        f"**Configuration.**\n\n```yaml\n{yaml.safe_dump(facts['config'], sort_keys=False, width=100)}```",
    ]
    if record.warnings:
        lines.insert(5, "\n".join(f"* Note: {warning}" for warning in record.warnings))
    return "\n\n".join(lines) + "\n"


def _table(metrics: Sequence[Metric]) -> str:
    rows = ["| task | metric | value | interval | n |", "|---|---|---|---|---|"]
    for m in metrics:
        assert m.value is not None
        reach = "" if m.stderr is None else _interval(m.value, _NORMAL_95 * m.stderr)
        rows.append(f"| {m.task} | {m.name} | {m.value:.5g} | {reach} | {m.n} |")
    return "\n".join(rows)


def _interval(value: float, reach: float) -> str:
    return f"{value - reach:.5g} to {value + reach:.5g}"
