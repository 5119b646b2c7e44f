"""The cached evaluation stages: each protocol and each task by itself.

A stage's key holds the weights that are evaluated, not the experiment: the full precision baseline and
cells that differ only in what else they evaluate share their results.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from faqbench.config import Experiment
from faqbench.evaluation import (
    HiddenStates,
    ProtocolTokens,
    TaskModel,
    perplexity_metrics,
    resolve_protocol,
    run_task,
)
from faqbench.pipeline.cell_model import CellModel
from faqbench.pipeline.keys import protocol_key, task_key
from faqbench.pipeline.memory import PeakMemory
from faqbench.pipeline.reference import Reference
from faqbench.pipeline.token_scores import read_scores, write_scores
from faqbench.pipeline.windows import protocol_windows
from faqbench.records import Metric
from faqbench.stages import CacheEntry, Progress, StageCache


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
        cached: whether everything came from the cache.
    """

    metrics: tuple[Metric, ...] = ()
    items: pd.DataFrame = field(
        default_factory=lambda: pd.DataFrame(columns=["task", "item", "metric", "value"])
    )
    tokens: Mapping[str, Any] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    protocols: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    cached: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class _Setting:
    """What all protocols and tasks of a cell share."""

    experiment: Experiment
    model: CellModel
    fingerprints: Mapping[str, str]
    references: Mapping[str, Reference]
    memory: PeakMemory
    cache: StageCache
    progress: Progress

    @cached_property
    def task_model(self) -> TaskModel:
        """The model as its tasks see it; asking for it loads the model."""
        view = self.model.evaluated
        return TaskModel(view.fill().module, self.model.tokenizer, view)


def evaluate(
    experiment: Experiment,
    model: CellModel,
    fingerprints: Mapping[str, str],
    references: Mapping[str, Reference],
    memory: PeakMemory,
    cache: StageCache,
    progress: Progress,
) -> Evaluated:
    """Score the model, as it stands in memory, on every protocol and task of the experiment.

    Args:
        experiment: what to evaluate.
        model: the cell's, quantized or not; loaded when a stage is not in the cache.
        fingerprints: of the weights as loaded and, where there was one, of the calibration set.
        references: the full precision model's scores, where divergence from it is wanted.
        memory: of the run.
        cache: where each protocol and each task is a stage.
        progress: told of every stage.
    """
    setting = _Setting(
        experiment=experiment,
        model=model,
        fingerprints=fingerprints,
        references=references,
        memory=memory,
        cache=cache,
        progress=progress,
    )
    parts = [_protocol(name, setting) for name in experiment.evaluation.protocols]
    parts += [_task(name, setting) for name in experiment.evaluation.tasks]
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
        cached=all(p.cached for p in parts),
    )


def _protocol(name: str, setting: _Setting) -> Evaluated:
    experiment = setting.experiment
    protocol, reference = resolve_protocol(name, experiment), setting.references.get(name)
    windows = (
        reference.windows
        if reference is not None
        else protocol_windows(name, experiment, setting.model, setting.cache, setting.progress)
    )
    entry = _token_scores(name, windows, reference, setting)
    scores, facts = read_scores(entry.path)
    arrays = {name: scores.nll, f"{name}.kl": scores.kl, f"{name}.agrees": scores.agrees}
    return Evaluated(
        metrics=perplexity_metrics(protocol, scores),
        tokens={k: v for k, v in arrays.items() if v is not None},
        fingerprints={f"protocol/{name}": windows.fingerprint},
        protocols={
            name: {
                "n_windows": len(scores.nll),
                "seq_len": protocol.seq_len,
                "verified": windows.verified,
                "n_tokens_total": windows.n_tokens_total,
                "stream_sha256": windows.stream_fingerprint,
                "version": protocol.version,
                **facts,
            }
        },
        warnings=windows.warnings,
        cached=entry.cached,
    )


def _token_scores(
    name: str, windows: ProtocolTokens, reference: Reference | None, setting: _Setting
) -> CacheEntry:
    """Return the stage with a protocol's scores; for the baseline with a reference, the reference."""
    if reference is not None and not setting.experiment.quantizes:
        return reference.entry
    budget = setting.experiment.evaluation.batch_tokens
    hidden = None if reference is None else HiddenStates.open(reference.entry.path)

    def build(folder: Path) -> None:
        write_scores(
            folder,
            setting.model.evaluated,
            windows,
            budget,
            setting.memory,
            setting.progress,
            name,
            reference=hidden,
        )

    found = {**setting.fingerprints, f"protocol/{name}": windows.fingerprint}
    key = protocol_key(setting.experiment, found, name, setting.model.device.type)
    return setting.cache.get("perplexity", key, build, name)


def _task(name: str, setting: _Setting) -> Evaluated:
    experiment = setting.experiment

    def build(folder: Path) -> None:
        start = time.perf_counter()
        with setting.memory.section() as section:
            result = run_task(name, setting.task_model, experiment, setting.progress)
        seconds = time.perf_counter() - start
        result.items.to_parquet(folder / "items.parquet", index=False)
        facts = {
            "metrics": [asdict(m) for m in result.metrics],
            "fingerprint": result.fingerprint,
            "version": result.version,
            "n_documents": result.n_documents,
            "config": result.config,
            "chance": result.chance,
            "seconds": round(seconds, 3),
            # Encoded once each; generated tokens are not counted.
            "tokens_per_second": round(result.config["n_tokens"] / seconds, 1),
            "peak_memory_bytes": section.bytes,
        }
        (folder / "facts.json").write_text(json.dumps(facts))

    key = task_key(experiment, setting.fingerprints, name, setting.model.device.type)
    entry = setting.cache.get("tasks", key, build, name)
    facts = json.loads((entry.path / "facts.json").read_text())
    metrics = facts.pop("metrics")
    return Evaluated(
        metrics=tuple(Metric(**m) for m in metrics),
        items=pd.read_parquet(entry.path / "items.parquet"),
        fingerprints={f"task/{name}": facts.pop("fingerprint")},
        protocols={name: facts},
        cached=entry.cached,
    )
