"""Run records: the one source of truth that reports, W&B and comparisons are made from.

    runs/<run_id>/config.yaml      the resolved configuration, as it can be given to Hydra again
                  record.json      `RunRecord`; its keys are a contract with other programs
                  items.parquet    one row per task item: task, item, name of the metric, value
                  tokens.npz       per protocol, negative log-likelihoods [n_windows, seq_len - 1]
                  layers.parquet   one row per quantized linear: errors, alpha, seconds, ...
    runs/<study>/_pack             many runs in four files, to be committed
    runs/_settled/<name>.json      `Decision`: a question, its terms, every look, and the answer

This package imports no torch. A record of a newer schema is refused, a damaged one is skipped and
listed, and a run folder appears by one rename.
"""

from faqbench.records.compact import compact_run, write_pack
from faqbench.records.decisions import (
    DECISION_VERSION,
    ArmOfDecision,
    ContestOfDecision,
    Decision,
    LookOfDecision,
    find_decisions,
    read_decision,
    write_decision,
)
from faqbench.records.index import find_heads
from faqbench.records.packed import is_packed
from faqbench.records.run_record import SCHEMA_VERSION, Gate, Metric, RunRecord, StageTiming
from faqbench.records.store import (
    RunData,
    differences,
    find_runs,
    finished_record,
    read_items,
    read_layers,
    read_record,
    read_run,
    read_scores,
    result_of,
    run_folders,
    same_model,
    truncated_requests,
    write_run,
)
from faqbench.records.sweeps import (
    claimed,
    clear_sweep,
    drop_dead_claim,
    find_dead_claims,
    is_stopped,
    note_cell,
    noted_cells,
    read_sweep,
    stop_sweep,
    sweep_names,
    write_sweep,
)

__all__ = [
    "DECISION_VERSION",
    "SCHEMA_VERSION",
    "ArmOfDecision",
    "ContestOfDecision",
    "Decision",
    "Gate",
    "LookOfDecision",
    "Metric",
    "RunData",
    "RunRecord",
    "StageTiming",
    "claimed",
    "clear_sweep",
    "compact_run",
    "differences",
    "drop_dead_claim",
    "find_dead_claims",
    "find_decisions",
    "find_heads",
    "find_runs",
    "finished_record",
    "is_packed",
    "is_stopped",
    "note_cell",
    "noted_cells",
    "read_decision",
    "read_items",
    "read_layers",
    "read_record",
    "read_run",
    "read_scores",
    "read_sweep",
    "result_of",
    "run_folders",
    "same_model",
    "stop_sweep",
    "sweep_names",
    "truncated_requests",
    "write_decision",
    "write_pack",
    "write_run",
    "write_sweep",
]
