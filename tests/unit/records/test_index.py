"""The index of a folder's records, quick and distrusted; what counts as a run's result; claims to cells."""

import dataclasses
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from faqbench.config import UserError
from faqbench.records import (
    Gate,
    StageTiming,
    claimed,
    clear_sweep,
    differences,
    drop_dead_claim,
    find_dead_claims,
    find_heads,
    find_runs,
    index,
    is_stopped,
    note_cell,
    noted_cells,
    read_record,
    read_sweep,
    result_of,
    stop_sweep,
    write_run,
    write_sweep,
)


@pytest.fixture
def runs(tmp_path, data, monkeypatch):
    """A folder of six runs; every index is worth writing, and no file is too young for it."""
    monkeypatch.setattr(index, "_WORTH_WRITING", 1)
    monkeypatch.setattr(index, "_SETTLED_NANOSECONDS", -(10**12))
    for n in range(6):
        write_run(tmp_path / "runs", data(run_id=f"toy-rtn-{n}", seconds=float(n)), "bits: 3\n")
    return tmp_path / "runs"


@pytest.fixture
def reads(monkeypatch):
    """The names of the records that were read from their own files."""
    names = []
    original = index.read_written

    def read(folder):
        names.append(folder.name)
        return original(folder)

    monkeypatch.setattr(index, "read_written", read)
    return names


def next_process():
    """Forget what a process remembers."""
    index.remembered.cache_clear()


def heads_of(runs):
    """Return what the index should say, without it."""
    records, damaged = find_runs(runs)
    heads = [
        dataclasses.replace(r, stages={}, extra={"evaluation": r.extra["evaluation"]}) for r in records
    ]
    return heads, damaged


def test_a_second_look_reads_no_record_and_finds_the_same(runs, reads):
    first = find_heads(runs)
    assert first == heads_of(runs) and len(reads) == 6
    assert find_heads(runs) == first and len(reads) == 6
    next_process()
    assert find_heads(runs) == first and len(reads) == 6


def test_a_process_checks_a_head_once_and_then_asks_for_its_file_alone(runs, monkeypatch):
    first = find_heads(runs)
    (runs / "_index.json").unlink()
    monkeypatch.setattr(index.RunRecord, "from_json", None)
    assert find_heads(runs) == first
    assert all(a is b for a, b in zip(find_heads(runs)[0], first[0], strict=True))


def test_two_folders_of_one_relative_name_are_not_taken_for_each_other(runs, data, monkeypatch):
    write_run(runs.parent / "b" / "runs", data(run_id="toy-rtn-1", seconds=7.0), "bits: 3\n")
    for folder in (runs.parent, runs.parent / "b"):
        monkeypatch.chdir(folder)
        assert find_heads(Path("runs")) == heads_of(Path("runs"))


def test_one_new_run_among_many_is_the_only_one_that_is_read(runs, reads, data):
    find_heads(runs)
    write_run(runs, data(run_id="toy-awq-1"), "bits: 3\n")
    reads.clear()
    assert find_heads(runs) == heads_of(runs) and reads == ["toy-awq-1"]


def rewrite(path):
    """Change a record in place: the same size, the times it had before."""
    before = path.stat()
    path.write_text(path.read_text().replace("29.19", "92.91"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    "change",
    [
        lambda runs: shutil.rmtree(runs / "toy-rtn-3"),
        lambda runs: (runs / "toy-rtn-3" / "record.json").write_text("{"),
        lambda runs: rewrite(runs / "toy-rtn-3" / "record.json"),
        lambda runs: (runs / "toy-rtn-3").rename(runs / "renamed"),
        lambda runs: shutil.copytree(runs / "toy-rtn-3", runs / "copied"),
        lambda runs: (runs / "toy-rtn-3" / "record.json").replace(runs / "toy-rtn-2" / "record.json"),
    ],
    ids=["removed", "damaged", "rewritten", "renamed", "copied", "moved"],
)
def test_whatever_happens_to_a_run_is_seen(runs, change):
    before = find_heads(runs)
    change(runs)
    assert find_heads(runs) == heads_of(runs) and heads_of(runs) != before


def test_whatever_happens_to_a_run_is_seen_by_the_next_process_too(runs):
    before = find_heads(runs)
    rewrite(runs / "toy-rtn-3" / "record.json")
    next_process()
    assert find_heads(runs) == heads_of(runs) and heads_of(runs) != before


def planted(runs, change):
    path = runs / "_index.json"
    content = json.loads(path.read_text())
    change(content)
    path.unlink()
    path.write_text(json.dumps(content))
    next_process()


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.update(version=99),
        lambda c: c.update(heads=[]),
        lambda c: c.update(shared=[]),
        lambda c: c.update(shared=[None] * len(c["shared"])),
        lambda c: [head.pop("config") for _, head in c["heads"].values()],
        lambda c: [head.update(metrics=7) for _, head in c["heads"].values()],
        lambda c: [head.update(seconds="soon") for _, head in c["heads"].values()],
        lambda c: [head.update(run_id="../toy-rtn-1") for _, head in c["heads"].values()],
        lambda c: [head.update(config=[10**9]) for _, head in c["heads"].values()],
        lambda c: c["heads"].update({"toy-rtn-1": 3}),
    ],
)
def test_an_index_that_somebody_damaged_changes_nothing(runs, change):
    find_heads(runs)
    planted(runs, change)
    assert find_heads(runs) == heads_of(runs)


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 10**5, b"\xff\xfe", b"null", b"[]", b'"x"'])
def test_an_index_that_cannot_be_read_is_made_anew(runs, content, reads):
    find_heads(runs)
    (runs / "_index.json").write_bytes(content)
    next_process()
    reads.clear()
    assert find_heads(runs) == heads_of(runs) and len(reads) == 6
    assert json.loads((runs / "_index.json").read_text())["version"] == 1


def test_an_index_that_is_a_pipe_or_cannot_be_written_is_not_waited_for(runs):
    os.mkfifo(runs / "_index.json")
    assert find_heads(runs) == heads_of(runs)
    next_process()
    (runs / "_index.json").unlink()
    (runs / "_index.json").mkdir()
    assert find_heads(runs) == heads_of(runs)


def test_a_file_that_was_written_just_now_is_read_again_next_time(runs, reads, monkeypatch):
    monkeypatch.setattr(index, "_SETTLED_NANOSECONDS", 10**12)
    find_heads(runs)
    find_heads(runs)
    assert len(reads) == 12 and not (runs / "_index.json").exists()


def test_few_records_need_no_index(runs, monkeypatch):
    monkeypatch.setattr(index, "_WORTH_WRITING", 64)
    find_heads(runs)
    assert not (runs / "_index.json").exists()


def test_an_index_says_nothing_of_a_record_that_is_read_whole(runs):
    find_heads(runs)
    planted(runs, lambda c: [head.update(seconds=99.0) for _, head in c["heads"].values()])
    assert read_record(runs / "toy-rtn-3").seconds == 3.0
    assert [r.seconds for r in find_runs(runs)[0]] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


PASSED = Gate(name="finite", passed=True, detail="all metrics are finite")


@pytest.mark.parametrize(
    "course",
    [
        {"environment": {"python": "3.13"}},
        {"stages": {"load": StageTiming(seconds=99.0, cached=True)}},
        {"peak_memory_bytes": 1},
        {"started": "2031-01-01T00:00:00+00:00"},
        {"seconds": 1.0},
        {"gates": (PASSED, Gate(name="not_worse_than_rtn", passed=False, detail="than toy"))},
        {"extra": {"evaluation": {"wikitext2-512": {"n_windows": 2, "seconds": 9.0}}, "plan": {}}},
        {"config": {"model": {"name": "toy"}, "quant": {"skip": []}, "paths": {"runs": "x"}}},
    ],
)
def test_how_a_run_went_is_no_result(record, data, course):
    assert result_of(record(**course)) == result_of(record())
    assert differences(data(**course), data()) == []


@pytest.mark.parametrize(
    ("result", "named"),
    [
        ({"status": "failed"}, "status"),
        ({"fingerprints": {"weights": "cd"}}, "fingerprints.weights"),
        ({"bits_per_weight": 3.0}, "bits_per_weight"),
        ({"gates": (Gate(name="finite", passed=False, detail="no"),)}, "gates"),
        ({"warnings": ()}, "warnings"),
        ({"config": {"model": {"name": "toy"}, "quant": {"skip": ["x"]}}}, "config.quant"),
        ({"extra": {"evaluation": {"wikitext2-512": {"n_windows": 3}}}}, "extra.evaluation"),
    ],
)
def test_what_a_run_found_is(record, data, result, named):
    assert result_of(record(**result)) != result_of(record())
    assert differences(data(**result), data()) == [named]


def test_tables_and_tokens_are_compared_bit_for_bit_and_seconds_are_not(data):
    one, other = data(), data()
    layers = other.layers.assign(alpha=0.5, seconds=1.0)
    tokens = {"wikitext2-512": np.nextafter(other.tokens["wikitext2-512"], np.float32(9999))}
    other = dataclasses.replace(other, layers=layers, tokens=tokens)
    assert differences(one, other) == ["layers.alpha", "tokens.wikitext2-512"]


def test_a_table_that_is_missing_differs(data):
    other = dataclasses.replace(data(), items=data().items.drop(columns="value"), tokens={})
    assert differences(data(), other) == ["items.value", "tokens.wikitext2-512"]


def test_nan_equals_nan(data):
    assert differences(data(), data()) == []
    assert data().layers["alpha"].isna().all()


HOLD = """
import sys, time
from pathlib import Path
from faqbench.records import claimed
with claimed(Path(sys.argv[1]), "cell", print):
    print("in", flush=True)
    input()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the claim to a cell."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout.readline() == "in\n"
    yield child
    child.kill()
    child.communicate()


def test_a_claim_is_gone_when_the_cell_ends(tmp_path):
    with claimed(tmp_path, "cell", pytest.fail) as waited:
        assert not waited
        assert [p.name for p in (tmp_path / "_sweeps" / "running").iterdir()] == ["cell"]
    assert list((tmp_path / "_sweeps" / "running").iterdir()) == []


def test_a_claim_is_gone_after_an_error_too(tmp_path):
    with pytest.raises(RuntimeError), claimed(tmp_path, "cell", pytest.fail):
        raise RuntimeError
    assert list((tmp_path / "_sweeps" / "running").iterdir()) == []


def test_a_second_process_waits_for_the_first(tmp_path, holder):
    notes = []

    def wait(who):
        notes.append(who)
        holder.communicate("\n")

    with claimed(tmp_path, "cell", wait) as waited:
        assert waited and notes == [f"process {holder.pid} on {platform.node()}"]
        assert (tmp_path / "_sweeps" / "running" / "cell").exists()


def test_claims_to_different_cells_do_not_wait(tmp_path, holder):
    with claimed(tmp_path, "other", pytest.fail) as waited:
        assert not waited


def test_an_interrupt_between_a_claim_and_its_lock_leaves_no_claim(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("faqbench.processes._write_holder", interrupted)
    with pytest.raises(KeyboardInterrupt), claimed(tmp_path, "cell", pytest.fail):
        pytest.fail("the claim was never held")
    assert list((tmp_path / "_sweeps" / "running").iterdir()) == []


def test_an_interrupt_while_another_holds_a_claim_leaves_it_the_others(tmp_path):
    def interrupted(_):
        raise KeyboardInterrupt

    with claimed(tmp_path, "cell", pytest.fail):
        with pytest.raises(KeyboardInterrupt), claimed(tmp_path, "cell", interrupted):
            pytest.fail("the claim was never held")
        assert [p.name for p in (tmp_path / "_sweeps" / "running").iterdir()] == ["cell"]


def test_only_the_claim_of_a_killed_process_is_dead(tmp_path, holder):
    assert find_dead_claims(tmp_path) == []
    holder.kill()
    holder.wait()
    assert find_dead_claims(tmp_path) == ["cell"]
    drop_dead_claim(tmp_path, "cell")
    assert find_dead_claims(tmp_path) == []


def test_the_claim_of_a_killed_process_can_be_taken(tmp_path, holder):
    holder.kill()
    holder.wait()
    with claimed(tmp_path, "cell", pytest.fail) as waited:
        assert not waited


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "runs").write_text("a file")
    with (
        pytest.raises(UserError, match="Could not claim the cell"),
        claimed(tmp_path / "runs", "cell", pytest.fail),
    ):
        pytest.fail("the claim was given")


def test_a_sweep_that_stopped_starts_again_when_it_is_asked_for(tmp_path):
    assert not is_stopped(tmp_path, "study")
    stop_sweep(tmp_path, "study")
    assert is_stopped(tmp_path, "study") and not is_stopped(tmp_path, "other")
    clear_sweep(tmp_path, "study")
    assert not is_stopped(tmp_path, "study")


def test_a_search_remembers_its_cells_in_order_and_each_once(tmp_path):
    for run_id in ("b", "a", "b"):
        note_cell(tmp_path, "search", run_id)
    assert noted_cells(tmp_path, "search") == ["b", "a"]
    clear_sweep(tmp_path, "search")
    assert noted_cells(tmp_path, "search") == []


def test_a_list_that_does_not_change_is_not_written_again(tmp_path):
    write_sweep(tmp_path, "study", ["a", "b"])
    path = tmp_path / "_sweeps" / "study.json"
    before = path.stat().st_ino
    write_sweep(tmp_path, "study", ["a", "b"])
    assert path.stat().st_ino == before
    write_sweep(tmp_path, "study", ["b"])
    assert read_sweep(tmp_path, "study") == ["b"]
