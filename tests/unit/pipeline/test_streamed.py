"""A cell whose model does not fit the budget: read block by block, with the same bytes at the end."""

import errno
import os
from functools import cache, partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors import safe_open

from faqbench import pipeline
from faqbench.config import UserError
from faqbench.evaluation import harness
from faqbench.models import Model, memory
from faqbench.pipeline import keys, quantizing, together
from faqbench.pipeline.cell_model import CellModel
from faqbench.pipeline.planning import make_plan
from faqbench.pipeline.run import check_model
from faqbench.quantization import walk as quantizing_walk
from faqbench.stages import PlainProgress, StageCache

SCORED = ("evaluation.protocols=[wikitext2-32]", "evaluation.n_windows=5")
LARGE = "memory.host_gigabytes=1"
SMALL = "memory.host_gigabytes=0.0008"  # more than a block of a tiny model takes, less than all of it

WITH_ROOM = "memory.host_gigabytes=0.0011"  # beside a block for some hidden states, too


@pytest.fixture
def cell(cell_in, tmp_path):
    """Compose a cell of a model of four blocks."""
    return partial(cell_in, tmp_path)


@pytest.fixture(scope="module")
def finished_in(cell_in):
    """Run a cell in a cache and a runs folder below one; return its data and its quantized tensors."""

    def make(root, *overrides, beside=()):
        cache, others = StageCache(root / "cache"), [cell_in(root, *SCORED, *o) for o in beside]
        experiment = cell_in(root, *SCORED, *overrides)
        data = pipeline.run(experiment, cache=cache, progress=PlainProgress(), beside=others)
        tensors = {}
        used = {use["entry"] for use in data.record.extra["stage_keys"]}
        (entry,) = (name for name in used if name.startswith("quantized/"))
        for path in (cache.root / "stages" / entry).glob("*.safetensors"):
            with safe_open(path, framework="np") as file:
                tensors |= {(path.name, key): file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return data, tensors

    return make


@pytest.fixture
def finished(finished_in, tmp_path):
    """Run a cell in a folder of this test."""
    return lambda name, *overrides, beside=(): finished_in(tmp_path / name, *overrides, beside=beside)


@pytest.fixture(scope="module")
def alone(finished_in, tmp_path_factory):
    """Run a cell alone, once for all tests that compare another with it."""

    @cache
    def make(*overrides):
        return finished_in(tmp_path_factory.mktemp("alone"), *overrides)

    return make


@pytest.mark.parametrize(
    "overrides",
    [
        ("quant=awq",),
        ("quant=faq", "model=tiny-gemma3"),
        ("quant=qep-faq", "model=tiny-qwen3", "dtype=bfloat16"),
        ("quant=loaq-gptq", "calibration.dtype=bfloat16"),
        ("quant=w4a4-quarot", "quant.rotation.places=[R1,R2,R4]"),
        ("quant=smoothquant", "model=tiny-qwen2"),
    ],
)
def test_a_streamed_cell_ends_with_the_same_bytes(alone, overrides):
    (resident, tensors), (streamed, again) = alone(*overrides), alone(*overrides, SMALL)
    assert tensors.keys() == again.keys()
    assert all(np.array_equal(tensors[key], again[key]) for key in tensors)
    assert resident.tokens.keys() == streamed.tokens.keys() and len(resident.tokens) == 3
    assert all(np.array_equal(a, streamed.tokens[name]) for name, a in resident.tokens.items())
    assert resident.record.metrics == streamed.record.metrics
    assert resident.record.run_id == streamed.record.run_id
    assert "statistics" not in streamed.record.stages


def test_a_model_that_is_fetched_by_its_cell_is_streamed_as_one_that_was_here(alone, finished, monkeypatch):
    here, fetch = [], CellModel.fetch
    for module in (import_module("faqbench.pipeline.run"), memory):
        inspect = module.inspect_model
        monkeypatch.setattr(
            module, "inspect_model", lambda m, inspect=inspect: inspect(m) if here else None
        )
    monkeypatch.setattr(CellModel, "fetch", lambda self: (fetch(self), here.append(True)))
    fetched, tensors = finished("fetched", "quant=awq", SMALL)
    there, again = alone("quant=awq", SMALL)
    assert (
        fetched.record.stages.keys() == there.record.stages.keys()
        and "statistics" not in there.record.stages
    )
    assert all(np.array_equal(tensors[key], again[key]) for key in again)


@pytest.mark.parametrize(
    ("overrides", "model"),
    [
        (("quant=faq",), "model=tiny-qwen3"),
        (("quant=qep-gptq",), "model=tiny-llama"),
        (("quant=w8a8",), "model=tiny-llama"),
    ],
)
def test_a_streamed_walk_that_was_stopped_goes_on_at_its_block_and_ends_with_the_same_bytes(
    alone, finished, monkeypatch, overrides, model
):
    whole, tensors = alone(*overrides, model, SMALL)
    quantize_block, started = quantizing_walk.quantize_block, []

    def stop(walk, index, block):
        started.append(index)
        if index == 2 and started.count(2) == 1:
            raise KeyboardInterrupt
        return quantize_block(walk, index, block)

    monkeypatch.setattr(quantizing_walk, "quantize_block", stop)
    with pytest.raises(KeyboardInterrupt):
        finished("stopped", *overrides, model, SMALL)
    data, again = finished("stopped", *overrides, model, SMALL)
    assert started == [0, 1, 2, 2, 3]
    assert tensors.keys() == again.keys()
    assert all(np.array_equal(tensors[key], again[key]) for key in tensors)
    timed = ["seconds"]
    assert data.layers.drop(columns=timed).equals(whole.layers.drop(columns=timed))
    assert data.record.extra["blocks"] == whole.record.extra["blocks"]


def test_cells_of_one_model_are_quantized_in_one_walk_and_end_with_the_same_bytes(
    alone, finished, monkeypatch
):
    cells = [("quant=awq", SMALL), ("quant=faq", "bits=4", SMALL), ("quant=rtn", SMALL)]
    apart = [alone(*cell) for cell in cells]
    quantize_block, quantized = quantizing_walk.quantize_block, []

    def count(walk, index, block):
        quantized.append(walk.quant.name)
        return quantize_block(walk, index, block)

    monkeypatch.setattr(quantizing_walk, "quantize_block", count)
    together = [finished("together", *cells[0], beside=cells)]
    assert quantized == ["awq", "faq", "rtn"] * 4
    together += [finished("together", *cell) for cell in cells[1:]]
    assert len(quantized) == 12
    for (data, tensors), (again, same) in zip(apart, together, strict=True):
        assert tensors.keys() == same.keys()
        assert all(np.array_equal(tensors[key], same[key]) for key in tensors)
        assert data.layers.drop(columns="seconds").equals(again.layers.drop(columns="seconds"))
        assert data.record.metrics == again.record.metrics
        assert data.record.extra["blocks"] == again.record.extra["blocks"]


def test_a_cell_that_fails_in_anothers_walk_stops_no_other(alone, finished, monkeypatch):
    quantize_block = quantizing_walk.quantize_block

    def refuse(walk, index, block):
        if walk.quant.name == "faq" and index == 1:
            raise UserError("it does not work")
        return quantize_block(walk, index, block)

    _, tensors = alone("quant=awq", SMALL)
    monkeypatch.setattr(quantizing_walk, "quantize_block", refuse)
    _, again = finished("together", "quant=awq", SMALL, beside=[("quant=faq", SMALL)])
    assert all(np.array_equal(tensors[key], again[key]) for key in tensors)
    with pytest.raises(UserError, match="it does not work"):
        finished("together", "quant=faq", SMALL)


def test_a_disk_that_fills_in_the_middle_is_one_sentence_and_finished_blocks_stay(
    alone, finished, monkeypatch, tmp_path
):
    _, tensors = alone("quant=rtn", SMALL)
    write, written = quantizing.write_linear, []

    def fill(folder, name, linear):
        if len(written) == 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(name)
        write(folder, name, linear)

    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"the disk is full; free"):
        patch.setattr(quantizing, "write_linear", fill)
        finished("full", "quant=rtn", SMALL)
    kept = (tmp_path / "full" / "cache" / "stages").glob("quantized_blocks/*/manifest.json")
    assert len(list(kept)) == 2
    _, again = finished("full", "quant=rtn", SMALL)
    assert all(np.array_equal(tensors[key], again[key]) for key in tensors)


def test_a_disk_that_fills_while_hidden_states_wait_is_one_sentence_and_finished_blocks_stay(
    alone, finished, monkeypatch, tmp_path
):
    cell = ("quant=signround", "quant.refinement.steps=2", SMALL)
    _, tensors = alone(*cell)
    allocate, blocks = os.posix_fallocate, tmp_path / "full" / "cache" / "stages" / "quantized_blocks"

    def fill(*args):
        if len(list(blocks.glob("*/manifest.json"))) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        allocate(*args)

    with (
        monkeypatch.context() as patch,
        pytest.raises(UserError, match="Could not write hidden states that"),
    ):
        patch.setattr(os, "posix_fallocate", fill)
        finished("full", *cell)
    assert len(list(blocks.glob("*/manifest.json"))) == 2
    _, again = finished("full", *cell)
    assert all(np.array_equal(tensors[key], again[key]) for key in tensors)


def root_of(data):
    """Return the folder that holds a run's cache and its folder of runs."""
    return Path(data.record.config["paths"]["runs"]).parent


@pytest.fixture
def blocks_read(monkeypatch):
    """The blocks that views read while they are evaluated, in their order."""
    read, block, answer, walking = [], Model.block, together.answer, []

    def noted(*args, **more):
        walking.append(1)
        answer(*args, **more)
        walking.pop()

    monkeypatch.setattr(together, "answer", noted)
    monkeypatch.setattr(
        Model, "block", lambda view, i: (read.append(i) if walking else 0) or block(view, i)
    )
    return read


@pytest.fixture
def two_tasks(monkeypatch, tmp_path):
    """Packaged tasks with a few documents of our own."""
    questions = [f"Question {i} of the block and the scale?" for i in range(6)]
    choices = [{"text": ["a group", "the block", "it"], "label": ["A", "B", "C"]} for _ in questions]
    table = {"id": questions, "question": questions, "choices": choices, "answerKey": ["B"] * 6}
    pq.write_table(pa.table(table), tmp_path / "arc.parquet")
    monkeypatch.setattr(harness, "packaged_dataset", lambda *_: tmp_path / "arc.parquet")
    monkeypatch.setattr(keys, "packaged_data_key", lambda: "toy")
    tasks = "arc_easy_validation,arc_challenge_validation"
    return (f"evaluation.tasks=[{tasks}]", "evaluation.protocols=[wikitext2-32,wikitext2-16]")


def test_all_that_a_streamed_cell_evaluates_is_one_walk_with_the_same_bits(
    finished, two_tasks, blocks_read
):
    cell = ("quant=rtn", "bits=3", *two_tasks)
    resident, _ = finished("resident", *cell)
    assert not blocks_read
    streamed, _ = finished("streamed", *cell, SMALL)
    assert blocks_read == [0, 0, 1, 1, 2, 2, 3, 3]  # and full precision beside it
    assert resident.record.metrics == streamed.record.metrics and len(resident.record.metrics) == 10
    assert resident.items.equals(streamed.items) and len(resident.items) == 24
    assert all(np.array_equal(a, streamed.tokens[name]) for name, a in resident.tokens.items())
    made = [use for use in streamed.record.extra["stage_keys"] if "tasks" in use["entry"]]
    assert len(made) == 2 and not any(use["cached"] for use in made)
    facts = [f for f in streamed.record.extra["evaluation"].values() if "config" in f]
    assert [f["config"]["scorer"] for f in facts] == ["packed"] * 2


def test_cells_of_one_model_are_evaluated_in_one_walk_with_the_same_bits(finished, two_tasks, blocks_read):
    few = (*two_tasks, "evaluation.n_windows=2", "evaluation.n_documents=1", WITH_ROOM)
    cells = [(quant, *few) for quant in ("quant=awq", "quant=w8a8")]
    alone = [finished(f"alone-{index}", *cell)[0] for index, cell in enumerate(cells)]
    blocks_read.clear()
    together = [finished("together", *cell, beside=cells)[0] for cell in cells]
    assert len(blocks_read) == 3 * 4  # two cells and full precision, once
    for one, other in zip(alone, together, strict=True):
        assert one.record.metrics == other.record.metrics
        assert one.items.equals(other.items)
        assert all(np.array_equal(a, other.tokens[name]) for name, a in one.tokens.items())


def test_cells_whose_hidden_states_do_not_fit_together_are_evaluated_one_by_one(finished, blocks_read):
    cells = [("quant=rtn", "bits=3", SMALL), ("quant=rtn", "bits=4", SMALL)]
    for cell in cells:
        finished("together", *cell, "evaluation.n_windows=30", beside=cells)
    assert len(blocks_read) == 2 * 2 * 4


def test_weights_are_looked_over_while_they_are_evaluated(alone, finished, monkeypatch):
    resident, _ = alone("quant=rtn")
    pieces, read = Model.pieces, []
    monkeypatch.setattr(Model, "pieces", lambda view, name: read.append(name) or pieces(view, name))
    streamed, _ = finished("streamed", "quant=rtn", SMALL)
    assert resident.record.gates == streamed.record.gates
    looked_at = read[len(set(read)) :]  # all are read once for the fingerprint
    assert looked_at and not any(".layers." in name for name in looked_at)


def test_a_streamed_cell_stores_no_hidden_states(alone):
    (streamed, _), (resident, _) = alone("quant=rtn", SMALL), alone("quant=rtn")
    assert not list(root_of(streamed).rglob("hidden.raw"))
    assert list(root_of(resident).rglob("hidden.raw"))


def test_blocks_are_read_ahead_where_there_is_room_with_the_same_bytes(alone, finished, monkeypatch):
    _, tensors = alone("quant=awq", SMALL)
    read, ahead = Model.read_ahead, []

    def counted(self, index, reader):
        read(self, index, reader)
        ahead.append(len(self._ahead))

    monkeypatch.setattr(Model, "read_ahead", counted)
    _, again = finished("ahead", "quant=awq", "memory.host_gigabytes=0.0009")
    assert max(ahead) == 1
    assert all(np.array_equal(tensors[key], again[key]) for key in tensors)


def test_finished_blocks_go_when_the_stage_is_whole(alone):
    data, _ = alone("quant=rtn", SMALL)
    assert list(root_of(data).glob("cache/stages/quantized/*/"))
    assert not list(root_of(data).glob("cache/stages/quantized_blocks/*/"))


def test_a_plan_says_that_a_model_is_streamed_and_expects_less_of_the_memory(cell, tmp_path):
    cells, cache = [cell("quant=awq", budget) for budget in (LARGE, SMALL)], StageCache(tmp_path)
    resident, streamed = (make_plan([experiment], [], cache) for experiment in cells)
    assert not resident.notes and "statistics" in {s.need.kind for s in resident.stages}
    (note,) = streamed.notes
    assert note.startswith("model=tiny-llama is read block by block") and "0.66 MB" in note
    assert "statistics" not in {s.need.kind for s in streamed.stages}
    assert streamed.peak_memory_bytes < resident.peak_memory_bytes


def test_a_plan_counts_hidden_states_that_do_not_fit_as_disk_and_not_as_memory(cell, tmp_path):
    def plan(n_samples):
        one = cell("quant=gptq", SMALL, f"calibration.n_samples={n_samples}")
        return make_plan([one], [], StageCache(tmp_path))

    few, many, more = plan(4), plan(400), plan(4000)
    assert few.scratch_bytes == 0 < 9 * many.scratch_bytes < more.scratch_bytes
    assert few.peak_memory_bytes < many.peak_memory_bytes == more.peak_memory_bytes


def test_a_plan_says_which_cells_are_quantized_in_one_walk(cell, tmp_path):
    methods = ("quant=awq", "quant=gptq", "quant=faq", "quant=rtn", "quant=fp")
    plan = make_plan([cell(method, SMALL) for method in methods], [], StageCache(tmp_path))
    _, together = plan.notes
    assert together.startswith("3 cells of model=tiny-llama are quantized in one walk over its blocks")
    resident = make_plan([cell(method, LARGE) for method in methods], [], StageCache(tmp_path))
    assert not resident.notes


def test_a_budget_that_no_block_fits_is_refused_before_anything_is_computed(cell):
    with pytest.raises(UserError, match=r"^model=tiny-llama: One block .* \(memory\.host_gigabytes\)"):
        check_model(cell("quant=awq", "memory.host_gigabytes=0.0001"))
