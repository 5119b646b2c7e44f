"""Claims to cells: one process at a time, and those of killed processes are known."""

import platform
import subprocess
import sys

import pytest

from faqbench.config import UserError
from faqbench.records import (
    claimed,
    clear_sweep,
    drop_claim,
    find_dead_claims,
    is_stopped,
    note_cell,
    noted_cells,
    read_sweep,
    stop_sweep,
    write_sweep,
)

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


def test_only_the_claim_of_a_killed_process_is_dead(tmp_path, holder):
    assert find_dead_claims(tmp_path) == []
    holder.kill()
    holder.wait()
    assert find_dead_claims(tmp_path) == ["cell"]
    drop_claim(tmp_path, "cell")
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
