"""What of a run is its result, and what only says how the run went.

Equal configurations, seeds and machines give equal results, bit for bit, whatever was cached, whichever
launcher ran them and however often they were interrupted. Times, memory, cache hits, the environment
and where things were written may differ; and so may gates that compare a run with others of its folder,
which see those that have finished before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from faqbench.config.identity import deciding_config
from faqbench.records.run_record import RunRecord
from faqbench.records.store import RunData

# Keys of the record and of its `extra` that are no result; the last, at any depth.
_COURSE = ("environment", "stages", "peak_memory_bytes", "started", "seconds")
_BOOKKEEPING = ("plan", "stage_keys", "sources")
_GATES_OF_THE_FOLDER = ("same_tokens", "not_worse_than_rtn", "not_worse_than_fewer_bits")
_MEASURED = frozenset({"seconds", "cached", "peak_memory_bytes", "tokens_per_second"})


def result_of(record: RunRecord) -> dict[str, Any]:
    """Return the part of a record that its configuration and seed decide, as a JSON mapping."""
    full = record.to_json()
    result = {key: value for key, value in full.items() if key not in _COURSE}
    result["config"] = deciding_config(full["config"])
    result["gates"] = [g for g in full["gates"] if g["name"] not in _GATES_OF_THE_FOLDER]
    extra = {k: v for k, v in full["extra"].items() if k not in _BOOKKEEPING}
    result["extra"] = _without_measures(extra)
    return result


def truncated_requests(record: RunRecord) -> dict[str, tuple[int, int]]:
    """Return (cut, all) requests of each task with some that are longer than the model's context.

    They lost their beginning, so their answers are to other questions than the task's.
    """
    found = {}
    for task, facts in record.extra.get("evaluation", {}).items():
        config = facts.get("config") if isinstance(facts, Mapping) else None
        keys = ("n_truncated", "n_requests")
        n, total = (config.get(k) if isinstance(config, Mapping) else None for k in keys)
        if isinstance(n, int) and isinstance(total, int) and 0 < n <= total:
            found[task] = (n, total)
    return found


def same_model(a: RunRecord, b: RunRecord) -> bool:
    """Say whether two runs began with the same model, whatever it was called.

    That is weights, configuration and attention; a record from before the last two were recorded is
    known by its weights alone.
    """
    key = "model" if "model" in a.fingerprints and "model" in b.fingerprints else "weights"
    return key in a.fingerprints and a.fingerprints[key] == b.fingerprints.get(key)


def differences(first: RunData, second: RunData) -> list[str]:
    """Name what differs in the results of two runs, tables included; nothing when they are equal.

    Returns:
        Names such as `metrics`, `config.bits`, `layers.alpha` or `tokens.wikitext2-512`.
    """
    import numpy as np
    import pandas as pd

    one, other = result_of(first.record), result_of(second.record)
    found = []
    for key in one:
        if isinstance(one[key], Mapping) and isinstance(other[key], Mapping):
            parts = dict.fromkeys([*one[key], *other[key]])
            found += [f"{key}.{k}" for k in parts if _differ(one[key].get(k), other[key].get(k))]
        elif _differ(one[key], other[key]):
            found.append(key)
    for name in ("items", "layers"):
        a: pd.DataFrame = getattr(first, name).drop(columns="seconds", errors="ignore")
        b: pd.DataFrame = getattr(second, name).drop(columns="seconds", errors="ignore")
        columns = dict.fromkeys([*a.columns, *b.columns])
        found += [f"{name}.{c}" for c in columns if c not in a or c not in b or not a[c].equals(b[c])]
    for name in dict.fromkeys([*first.tokens, *second.tokens]):
        x, y = first.tokens.get(name), second.tokens.get(name)
        if x is None or y is None or not np.array_equal(x, y, equal_nan=True):
            found.append(f"tokens.{name}")
    return found


def _without_measures(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_measures(v) for k, v in value.items() if k not in _MEASURED}
    if isinstance(value, list | tuple):
        return [_without_measures(v) for v in value]
    return value


def _differ(one: Any, other: Any) -> bool:
    """Compare JSON values; a list and a tuple of the same are equal, and so are two NaN."""
    return repr(_without_measures(one)) != repr(_without_measures(other))
