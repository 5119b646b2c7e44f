"""Tracking as a user meets it: real commands, a full disk, an interrupt; the record is never touched."""

import os
import signal
import subprocess
import time
from contextlib import suppress

import psutil
import pytest
from offline_runs import history_of, logged, only, summary_of

from faqbench.records import find_runs
from faqbench.tracking import find_progress

from .conftest import PATIENCE

CELL = ("quant=awq", "tracking=wandb", "tracking.mode=offline")


def arguments(workplace, *more):
    return [*(a for a in workplace.cell if not a.startswith("tracking")), *CELL, *more]


def followers(workplace):
    """Return the followers that were started from this folder and are still there."""
    cache, found = str(workplace.root / "cache"), []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            ours = process.environ().get("FAQBENCH_CACHE") == cache
            found += [process] if ours and any("follower" in w for w in process.cmdline()) else []
    return found


def test_a_cell_is_one_offline_run_with_live_samples_and_nothing_is_said_of_it(forks, workplace):
    done = forks.run(workplace, *arguments(workplace))
    assert done.wait() == 0 and "wandb" not in done.output.lower(), done.output
    records = logged(workplace.runs)
    (record,), _ = find_runs(workplace.runs)
    assert only(records, "run")[0]["run_id"] == record.run_id
    stages = {row["live/stage"] for row in history_of(records) if "live/stage" in row}
    assert any("quantize" in stage for stage in stages)
    summary = summary_of(records)
    assert summary["eval/wikitext2-64/perplexity"] == record.metrics[0].value
    assert [log.end for log in find_progress(workplace.runs)[0]] == ["ended"]


def test_a_failed_cell_is_a_failed_run(forks, workplace):
    done = forks.run(workplace, *arguments(workplace, "calibration.n_samples=100000"))
    assert done.wait() == 2, done.output
    records = logged(workplace.runs)
    assert [e["exit_code"] for e in only(records, "exit")] == [1]
    assert summary_of(records)["status"] == "failed" and "100000" in summary_of(records)["error"]


def test_a_full_disk_in_the_folder_of_wandb_costs_the_view_and_nothing_else(forks, workplace):
    place = workplace.runs / "wandb"
    place.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(place)], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small file system needs root")
    try:
        done = forks.run(workplace, *arguments(workplace))
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
    assert done.wait() == 0 and "Traceback" not in done.output, done.output
    (record,), _ = find_runs(workplace.runs)
    assert record.status == "finished" and record.metrics[0].value > 1


def test_ctrl_c_ends_the_cell_and_its_follower_cleanly(forks, workplace):
    slow = ("quant.search.loss=module", "quant.search.n_grid=200", "calibration.n_samples=16")
    process = forks.start(workplace, *arguments(workplace, *slow))

    def quantizes():
        logs, _ = find_progress(workplace.runs)
        return any("quantize" in s.stage for log in logs for s in log.samples)

    process.until(quantizes)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait() == 130, process.output
    assert "Traceback" not in process.output
    assert "stopped; finished cells and stages are kept" in process.output
    assert [log.end for log in find_progress(workplace.runs)[0]] == ["stopped"]
    assert find_runs(workplace.runs) == ([], [])
    end = time.monotonic() + PATIENCE
    while followers(workplace) and time.monotonic() < end:
        time.sleep(0.2)
    assert not followers(workplace)


def test_a_sweep_agent_gets_the_numbers_of_a_cell_that_finished_before(forks, workplace):
    quiet = [a for a in arguments(workplace) if a != "tracking=wandb"]
    assert forks.run(workplace, *quiet, "tracking=none").wait() == 0
    assert not (workplace.runs / "wandb").exists()
    agent = {"WANDB_SWEEP_ID": "s1", "WANDB_RUN_ID": "given-by-the-agent"}
    done = forks.run(workplace, *arguments(workplace), env=agent)
    assert done.wait() == 0 and "finished before, skipped" in done.output, done.output
    records = logged(workplace.runs)
    assert only(records, "run")[0]["run_id"] == "given-by-the-agent"
    assert summary_of(records)["eval/wikitext2-64/perplexity"] > 1
