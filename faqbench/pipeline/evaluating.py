"""The cached stages of evaluation: each protocol's windows, each protocol and each task by itself.

    windows      windows.npy [n_windows, seq_len] int32; the other fields of `ProtocolTokens` in facts.json
    reference    the full precision model on a protocol: nll.npy, and what `HiddenStates.open` reads
    perplexity   nll.npy, kl.npy, agrees.npy; seconds, tokens per second and peak memory in facts.json
                 (of a walk for many, `together.py`, a share by their tokens)
    tasks        items.parquet; the rest of a `TaskResult` in facts.json

A stage's key holds the weights that are evaluated, not the experiment: the full precision baseline and
cells that differ only in what else they evaluate share their results. The reference is taken once per
weights, tokens and dtype; the baseline has its own perplexity from it. There is none for a streamed model:
the full precision model then walks beside the quantized one (`evaluation.Beside`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import TypeAdapter
from typing_extensions import TypedDict

from faqbench.evaluation import (
    Beside,
    HiddenStates,
    HiddenWriter,
    ProtocolTokens,
    TaskResult,
    TokenScores,
    perplexity_metrics,
    protocol_tokens,
    resolve_protocol,
    run_task,
    score_tokens,
)
from faqbench.foreign import read_as
from faqbench.models import Model
from faqbench.pipeline.cell import CellRun
from faqbench.records import Metric

if TYPE_CHECKING:
    import pandas as pd

_WINDOW_FACTS = ("n_tokens_total", "fingerprint", "stream_fingerprint", "verified", "warnings", "n_special")


def _no_items() -> pd.DataFrame:
    import pandas as pd  # takes a quarter of a second, which a plan can do without

    return pd.DataFrame(columns=["task", "item", "metric", "value"])


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluated:
    """What all protocols and tasks of a cell gave.

    Attributes:
        metrics: of all of them, in the order of the configuration.
        items: per-item results of the tasks.
        tokens: per protocol, negative log-likelihoods per token; with a reference also
            `<protocol>.kl` and `<protocol>.agrees`.
        fingerprints: `protocol/<name>` and `task/<name>` of the tokens and requests scored.
        protocols: how each was measured, for the record.
        warnings: sentences for the reader.
    """

    metrics: tuple[Metric, ...] = ()
    items: pd.DataFrame = field(default_factory=_no_items)
    tokens: Mapping[str, Any] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    protocols: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def evaluate(cell: CellRun) -> Evaluated:
    """Return what the cell's model gave on every protocol and task of its experiment."""
    import pandas as pd

    settings = cell.experiment.evaluation
    parts = [_protocol(name, cell) for name in settings.protocols]
    parts += [cell.get(f"tasks {name}") for name in settings.tasks]
    if not parts:
        return Evaluated()
    tables = [p.items for p in parts if len(p.items)]
    return Evaluated(
        metrics=tuple(m for p in parts for m in p.metrics),
        items=pd.concat(tables, ignore_index=True) if tables else parts[0].items,
        tokens={k: v for p in parts for k, v in p.tokens.items()},
        fingerprints={k: v for p in parts for k, v in p.fingerprints.items()},
        protocols={k: v for p in parts for k, v in p.protocols.items()},
        warnings=tuple(w for p in parts for w in p.warnings),
    )


def build_windows(name: str, cell: CellRun, folder: Path) -> None:
    """Tokenise a protocol's text, and cut it into the windows that are scored.

    Raises:
        UserError: as `protocol_tokens` does.
    """
    protocol = resolve_protocol(name, cell.experiment.data)
    tokens = protocol_tokens(protocol, cell.model.tokenizer(), cell.experiment, cell.progress)
    np.save(folder / "windows.npy", tokens.tokens.numpy().astype("<i4"), allow_pickle=False)
    facts = {key: getattr(tokens, key) for key in _WINDOW_FACTS}
    (folder / "facts.json").write_text(json.dumps(facts))


def load_windows(name: str, cell: CellRun, folder: Path) -> ProtocolTokens:
    """Read a protocol's windows.

    Raises:
        UserError: for tokens that the model does not know.
    """
    facts = read_as(folder / "facts.json", dict[str, Any])
    tokens = np.load(folder / "windows.npy", allow_pickle=False).astype(np.int64)
    cell.model.check_ids(int(tokens.max()), f"Protocol '{name}'")
    return ProtocolTokens(
        protocol=resolve_protocol(name, cell.experiment.data),
        tokens=torch.from_numpy(tokens),
        **{**facts, "warnings": tuple(facts["warnings"])},
    )


def build_reference(name: str, cell: CellRun, folder: Path) -> None:
    """Score a protocol's windows in full precision, and keep the hidden states."""
    with HiddenWriter(folder, resolve_protocol(name, cell.experiment.data).seq_len) as keep:
        _score(name, cell, cell.model.full_precision(), folder, keep)


def build_perplexity(name: str, cell: CellRun, folder: Path) -> None:
    """Score a protocol's windows by the cell's model, and compare it with the reference if wanted."""
    if not (cell.experiment.needs_reference and cell.experiment.quantizes):
        _score(name, cell, cell.model.evaluated(), folder, None)
        return
    rotated, stage = cell.model.rotated(), f"reference {name}"
    rotate = None if rotated is None else rotated.rotate_output
    reference: HiddenStates | Beside
    if stage in cell.stages:
        reference = HiddenStates.open(cell.get(stage), rotate)
    else:
        reference = Beside(view=cell.model.full_precision(), rotate=rotate)
    _score(name, cell, cell.model.evaluated(), folder, reference)


class _CostFacts(TypedDict):
    seconds: float
    tokens_per_second: float
    peak_memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class EvaluationCost:
    """What an evaluation took."""

    seconds: float
    peak_memory_bytes: int

    def facts(self, n_tokens: int) -> _CostFacts:
        """Return what is kept of it."""
        return {
            "seconds": round(self.seconds, 3),
            "tokens_per_second": round(n_tokens / self.seconds, 1),
            "peak_memory_bytes": self.peak_memory_bytes,
        }


def load_scores(_: CellRun, folder: Path) -> Path:
    """Return the folder of scores that `read_scores` reads, once it was seen to hold some."""
    read_scores(folder)
    if (folder / "hidden.json").is_file():
        HiddenStates.open(folder)
    return folder


def read_scores(folder: Path) -> tuple[TokenScores, dict[str, Any]]:
    """Return a protocol's scores, and the seconds, tokens per second and peak memory that they took."""

    def array(name: str) -> Any:
        path = folder / f"{name}.npy"
        return np.load(path, allow_pickle=False) if path.is_file() else None

    scores = TokenScores(nll=array("nll"), kl=array("kl"), agrees=array("agrees"))
    return scores, dict(read_as(folder / "facts.json", _CostFacts))


def build_task(name: str, cell: CellRun, folder: Path) -> None:
    """Let the cell's model answer a task.

    Raises:
        UserError: as `run_task` does.
    """
    start = time.perf_counter()
    with cell.memory.section() as section:
        result = run_task(name, cell.task_model(), cell.experiment, cell.progress)
    seconds = time.perf_counter() - start
    write_task(result, EvaluationCost(seconds=seconds, peak_memory_bytes=section.bytes), folder)


def write_task(result: TaskResult, cost: EvaluationCost, folder: Path) -> None:
    """Write what a task gave, and what it cost."""
    result.items.to_parquet(folder / "items.parquet", index=False)
    facts = {
        "metrics": [asdict(m) for m in result.metrics],
        "fingerprint": result.fingerprint,
        "version": result.version,
        "n_documents": result.n_documents,
        "config": result.config,
        "chance": result.chance,
        # Encoded once each; generated tokens are not counted.
        **cost.facts(result.config["n_tokens"]),
    }
    (folder / "facts.json").write_text(json.dumps(facts))


def load_task(name: str, _: CellRun, folder: Path) -> Evaluated:
    """Read what a task gave."""
    import pandas as pd

    facts = read_as(folder / "facts.json", dict[str, Any])
    metrics = TypeAdapter(tuple[Metric, ...]).validate_python(facts.pop("metrics"))
    return Evaluated(
        metrics=metrics,
        items=pd.read_parquet(folder / "items.parquet"),
        fingerprints={f"task/{name}": facts.pop("fingerprint")},
        protocols={name: facts},
    )


def _protocol(name: str, cell: CellRun) -> Evaluated:
    """Return what a protocol's cached scores give."""
    windows: ProtocolTokens = cell.get(f"windows {name}")
    # The baseline's scores are the reference's, where there is one.
    kind = "perplexity" if f"perplexity {name}" in cell.stages else "reference"
    scores, facts = read_scores(cell.get(f"{kind} {name}"))
    arrays = {name: scores.nll, f"{name}.kl": scores.kl, f"{name}.agrees": scores.agrees}
    return Evaluated(
        metrics=perplexity_metrics(windows.protocol, scores),
        tokens={k: v for k, v in arrays.items() if v is not None},
        fingerprints={f"protocol/{name}": windows.fingerprint},
        protocols={
            name: {
                "n_windows": len(scores.nll),
                "seq_len": windows.protocol.seq_len,
                "verified": windows.verified,
                "n_tokens_total": windows.n_tokens_total,
                "stream_sha256": windows.stream_fingerprint,
                "version": windows.protocol.version,
                **facts,
            }
        },
        warnings=windows.warnings,
    )


def _score(
    name: str, cell: CellRun, view: Model, folder: Path, hidden: HiddenStates | Beside | HiddenWriter | None
) -> None:
    """Score a protocol's windows and write the scores, and what they cost, into a stage's folder."""
    windows: ProtocolTokens = cell.get(f"windows {name}")
    is_kept = isinstance(hidden, HiddenWriter)
    start = time.perf_counter()
    with cell.memory.section() as section:
        scores = score_tokens(
            view.fill().module,
            windows.tokens,
            cell.experiment.evaluation.batch_tokens,
            cell.progress,
            f"{name}: full precision" if is_kept else name,
            reference=None if isinstance(hidden, HiddenWriter) else hidden,
            keep=hidden if isinstance(hidden, HiddenWriter) else None,
            view=view,
        )
    seconds = time.perf_counter() - start
    cost = EvaluationCost(seconds=seconds, peak_memory_bytes=section.bytes)
    write_scores(scores, windows.tokens, cost, folder)


def write_scores(scores: TokenScores, tokens: torch.Tensor, cost: EvaluationCost, folder: Path) -> None:
    """Write the scores of windows [n_windows, seq_len], and what they cost."""
    for kind, array in (("nll", scores.nll), ("kl", scores.kl), ("agrees", scores.agrees)):
        if array is not None:
            np.save(folder / f"{kind}.npy", array, allow_pickle=False)
    (folder / "facts.json").write_text(json.dumps(cost.facts(tokens.numel())))
