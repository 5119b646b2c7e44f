"""Sanity gates: what must hold in any finished cell, whatever its numbers.

A gate that fails marks the run loudly, in its record and everywhere the record is shown; it does not
fail the run, since the numbers may be what the user wants to see.
"""

from __future__ import annotations

import dataclasses
import math

from faqbench.models import LoadedModel
from faqbench.quantization import QuantizedModel
from faqbench.records import Gate, RunRecord


def check_gates(
    record: RunRecord, loaded: LoadedModel, quantized: QuantizedModel | None
) -> RunRecord:
    """Return the record with the outcome of every gate."""
    gates = [_finite(record), _tied(loaded)]
    if quantized is not None:
        gates.append(_all_quantized(record, loaded, quantized))
    return dataclasses.replace(record, gates=tuple(gates))


def _finite(record: RunRecord) -> Gate:
    bad = [
        f"{m.task} {m.name}"
        for m in record.metrics
        if m.value is None or not math.isfinite(m.value)
    ]
    return Gate(
        name="finite",
        passed=not bad,
        detail=f"not finite: {', '.join(bad)}" if bad else "all metrics are finite",
    )


def _tied(loaded: LoadedModel) -> Gate:
    model = loaded.model
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    wanted = bool(model.config.get_text_config().tie_word_embeddings)
    tied = head is not None and head.weight.data_ptr() == embedding.weight.data_ptr()
    return Gate(
        name="tied_weights",
        passed=tied == wanted,
        detail=f"embeddings are {'' if tied else 'not '}tied, the config says {wanted}",
    )


def _all_quantized(record: RunRecord, loaded: LoadedModel, quantized: QuantizedModel) -> Gate:
    expected, found = len(loaded.architecture.linear_names()), len(quantized.linears)
    skips = record.config["quant"]["skip"]
    return Gate(
        name="all_linears_quantized",
        passed=found == expected or bool(skips),
        detail=f"{found} of {expected} linears"
        + (f", skip patterns {', '.join(skips)}" if skips else ""),
    )
