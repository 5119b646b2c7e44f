"""Live metrics: a follower's process shows a cell, and nothing that happens to it reaches the cell."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import pytest
from offline_runs import history_of, logged, only, summary_of
from toy_runs import write_toy_run

from faqbench.cli.composing import compose_cells, parse_flags
from faqbench.config import run_id
from faqbench.records import read_run
from faqbench.stages import PlainProgress
from faqbench.tracking import Tracker, live, read_progress, tracker, wait_for_followers
from faqbench.tracking.live import WatchedProgress
from faqbench.tracking.samples import ProgressSample, ProgressWriter, progress_path

LIVE = importlib.import_module("faqbench.tracking.live")


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """Wait for a follower however slow the machine is."""
    monkeypatch.setattr(LIVE, "_PATIENCE_SECONDS", 1800.0)


def experiment_in(folder, *overrides):
    arguments = ["model=tiny-llama", "quant=rtn", f"paths.runs={folder}", "tracking.mode=offline"]
    return compose_cells(parse_flags([*arguments, *overrides])).experiments[0]


def record_of(experiment):
    """Write what the cell would have left, under its own name."""
    name = run_id(experiment)
    config = experiment.model_dump(mode="json")
    write_toy_run(experiment.paths.runs, "rtn", run_id=name)
    data = read_run(experiment.paths.runs / name)
    return replace(data, record=replace(data.record, config=config))


def wait_for(condition, seconds=1800.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    return condition()


def has_samples(runs, experiment):
    return len(read_progress(runs, run_id(experiment)).samples) >= 3


def activities_seen(runs, experiment):
    return {sample.activity for sample in read_progress(runs, run_id(experiment)).samples}


@pytest.fixture
def only_followers(monkeypatch):
    """Let nothing be shown from this process."""
    monkeypatch.setattr(Tracker, "show", lambda *_: pytest.fail("shown from the cell's process"))


def test_followed_cells_are_a_run_each_with_its_samples_and_its_record(tmp_path, only_followers):
    cells = [experiment_in(tmp_path, f"bits={bits}") for bits in (3, 4)]
    for experiment in cells:
        with live(experiment, PlainProgress()) as progress:
            with progress.activity("quantize", 4) as advance:
                advance(3)
                assert wait_for(partial(has_samples, tmp_path, experiment))
            tracker(experiment.tracking, tmp_path).log(record_of(experiment))
    assert len(LIVE._followers) == 1
    wait_for_followers()
    for experiment in cells:
        records = logged(tmp_path, run_id(experiment))
        samples = [row for row in history_of(records) if "live/seconds" in row]
        assert len(samples) == len(read_progress(tmp_path, run_id(experiment)).samples) >= 3
        assert ("quantize", 0.75) in {(row["live/activity"], row["live/done_frac"]) for row in samples}
        assert all(row["live/memory_bytes"] > 1e6 for row in samples)
        assert summary_of(records)["status"] == "finished"
        assert [e["exit_code"] for e in only(records, "exit")] == [0]


def test_showing_a_followed_run_again_repeats_it_exactly(tmp_path):
    experiment = experiment_in(tmp_path)
    with live(experiment, PlainProgress()):
        data = record_of(experiment)
        tracker(experiment.tracking, tmp_path).log(data)
    wait_for_followers()
    first = history_of(logged(tmp_path))
    Tracker(experiment.tracking, tmp_path).show(data)
    again = history_of(logged(tmp_path))

    def steps(history):
        return [(row["_step"], row.get("block"), row.get("live/seconds")) for row in history]

    assert steps(first) == steps(again)


def test_an_interrupted_cell_is_a_failed_run_and_the_interrupt_goes_on(tmp_path):
    experiment = experiment_in(tmp_path)
    with pytest.raises(KeyboardInterrupt), live(experiment, PlainProgress()):
        assert wait_for(lambda: list(tmp_path.glob("wandb/offline-run-*/*.wandb")))
        raise KeyboardInterrupt
    assert wait_for(lambda: only(logged(tmp_path), "exit"))
    assert [e["exit_code"] for e in only(logged(tmp_path), "exit")] == [1]
    assert read_progress(tmp_path, run_id(experiment)).end == "stopped"


def test_a_killed_cell_is_a_failed_run_and_known_to_be_dead(tmp_path):
    code = (
        "import glob, os, time\n"
        "from faqbench.cli.composing import compose_cells, parse_flags\n"
        "from faqbench.stages import PlainProgress\n"
        "from faqbench.tracking import live\n"
        f"cell = ['model=tiny-llama', 'quant=rtn', r'paths.runs={tmp_path}']\n"
        "flags = parse_flags([*cell, 'tracking.mode=offline'])\n"
        "with live(compose_cells(flags).experiments[0], PlainProgress()):\n"
        f"    while not glob.glob(os.path.join({str(tmp_path)!r}, 'wandb/offline-run-*/*.wandb')):\n"
        "        time.sleep(0.2)\n"
        "    os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", code], timeout=1800, check=False)
    (path,) = (tmp_path / "_progress").glob("*.jsonl")
    log = read_progress(tmp_path, path.stem)
    assert log.end is None and not log.is_alive
    assert wait_for(lambda: only(logged(tmp_path), "exit"))
    assert [e["exit_code"] for e in only(logged(tmp_path), "exit")] == [1]


def test_a_record_is_shown_from_here_when_the_follower_has_died(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.executable", "/bin/false")
    experiment = experiment_in(tmp_path)
    with live(experiment, PlainProgress()):
        time.sleep(0.5)
        tracker(experiment.tracking, tmp_path).log(record_of(experiment))
    monkeypatch.undo()
    assert summary_of(logged(tmp_path))["status"] == "finished"


def test_a_record_is_shown_from_here_when_the_follower_fails_at_the_end(tmp_path, monkeypatch):
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\ncat > /dev/null\nexit 3\n")
    broken.chmod(0o755)
    experiment = experiment_in(tmp_path / "runs")
    with monkeypatch.context() as patch:
        patch.setattr("sys.executable", str(broken))
        with live(experiment, PlainProgress()):
            tracker(experiment.tracking, tmp_path / "runs").log(record_of(experiment))
        assert not (tmp_path / "runs" / "wandb").exists()
        wait_for_followers()
    assert summary_of(logged(tmp_path / "runs"))["status"] == "finished"


HANGS = """
import sys, threading
import faqbench.tracking.follower as follower
follower.SECONDS_TO_ANSWER = 1
follower.Tracker.open = lambda *_: threading.Event().wait()
sys.exit(follower.main())
"""


def test_a_follower_whose_service_never_answers_ends_by_itself(tmp_path):
    experiment = experiment_in(tmp_path)
    config = experiment.model_dump(mode="json")
    ProgressWriter(tmp_path, run_id(experiment), None, config).end("ended")
    cell = {"run_id": run_id(experiment), "runs": str(tmp_path), "process": os.getpid()}
    with subprocess.Popen([sys.executable, "-c", HANGS], stdin=subprocess.PIPE, text=True) as follower:
        follower.stdin.write(json.dumps(cell) + "\n")
        follower.stdin.flush()  # its cell goes on, and the line stays open
        assert follower.wait(timeout=1800) == -signal.SIGALRM


def test_a_record_whose_follower_hung_is_not_shown_from_here_too(
    tmp_path, only_followers, monkeypatch, caplog
):
    hung = tmp_path / "hung"
    hung.write_text("#!/bin/sh\ncat > /dev/null\nkill -ALRM $$\n")
    hung.chmod(0o755)
    experiment = experiment_in(tmp_path / "runs")
    with monkeypatch.context() as patch:
        patch.setattr("sys.executable", str(hung))
        with live(experiment, PlainProgress()):
            tracker(experiment.tracking, tmp_path / "runs").log(record_of(experiment))
        wait_for_followers()
    assert "wandb did not answer for 120 s" in caplog.text


def test_what_the_first_follower_did_not_show_is_shown_and_the_next_cell_has_a_new_one(
    tmp_path, monkeypatch
):
    dies, go = tmp_path / "dies", tmp_path / "go"
    wait = f"for i in $(seq 1000); do test -e {go} && break; sleep 0.05; done"
    dies.write_text(f"#!/bin/sh\nread cell\nread done\n{wait}\nexit 3\n")
    dies.chmod(0o755)
    first, second = (experiment_in(tmp_path / "runs", f"bits={bits}") for bits in (3, 4))
    with monkeypatch.context() as patch:
        patch.setattr("sys.executable", str(dies))
        with live(first, PlainProgress()):
            tracker(first.tracking, tmp_path / "runs").log(record_of(first))
        go.touch()  # one that dies before it is told of the record hands it back at once
        assert wait_for(lambda: not LIVE._followers[-1].is_listening)
    with live(second, PlainProgress()):
        tracker(second.tracking, tmp_path / "runs").log(record_of(second))
    wait_for_followers()
    for experiment in (first, second):
        assert summary_of(logged(tmp_path / "runs", run_id(experiment)))["status"] == "finished"


def test_a_cell_does_not_wait_for_its_follower(tmp_path, monkeypatch):
    slow, go, done = (tmp_path / name for name in ("slow", "go", "done"))
    wait = f"for i in $(seq 1000); do test -e {go} && break; sleep 0.05; done"
    slow.write_text(f"#!/bin/sh\ncat > /dev/null\n{wait}\ntouch {done}\n")
    slow.chmod(0o755)
    experiment = experiment_in(tmp_path / "runs")
    monkeypatch.setattr("sys.executable", str(slow))
    with live(experiment, PlainProgress()):
        tracker(experiment.tracking, tmp_path / "runs").log(record_of(experiment))
    assert not done.exists()
    go.touch()
    wait_for_followers()
    assert done.exists()


def test_without_tracking_the_samples_are_written_and_no_process_starts(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr("subprocess.Popen", started.append)
    experiment = experiment_in(tmp_path, "tracking=none")
    with live(experiment, PlainProgress()) as progress, progress.activity("load", 1):
        assert wait_for(lambda: "load" in activities_seen(tmp_path, experiment))
    log = read_progress(tmp_path, run_id(experiment))
    assert not started and log.end == "ended" and log.pid == os.getpid()


def test_a_folder_that_cannot_be_written_leaves_the_cell_alone(tmp_path):
    (tmp_path / "runs").write_text("a file, not a folder")
    experiment = experiment_in(tmp_path / "runs", "tracking=none")
    with live(experiment, PlainProgress()) as progress, progress.activity("load", 2) as advance:
        advance()
    assert (tmp_path / "runs").read_text() == "a file, not a folder"


def test_activities_are_passed_on_and_counted_while_they_run():
    seen = []

    class Inner(PlainProgress):
        def note(self, text):
            seen.append(text)

    watched = WatchedProgress(Inner())
    with watched.activity("outer", 2) as outer, watched.activity("inner", 3) as inner:
        outer()
        inner(2)
        assert [(s.title, s.done, s.total) for s in watched.activities] == [
            ("outer", 1, 2),
            ("inner", 2, 3),
        ]
    watched.note("hello")
    assert seen == ["hello"] and not watched.activities


def test_a_file_of_an_earlier_version_is_still_read(tmp_path):
    path = progress_path(tmp_path, "r")
    path.parent.mkdir()
    sample = '{"seconds": 1.0, "stage": "load", "done": 0, "total": 1, "memory_bytes": 5}'
    path.write_text(f'{{"pid": 1}}\n{sample}\n')
    assert [s.activity for s in read_progress(tmp_path, "r").samples] == ["load"]


def test_a_torn_progress_file_says_what_it_can_and_a_foreign_one_why_not(tmp_path):
    writer = ProgressWriter(tmp_path, "r", "g")
    writer.add(ProgressSample(seconds=1.0, activity="load", done=0, total=1, memory_bytes=5))
    path = progress_path(tmp_path, "r")
    with path.open("a") as file:
        file.write('{"seconds": 2.0, "activity": "lo')
    log = read_progress(tmp_path, "r")
    writer.end("ended")
    assert [s.seconds for s in log.samples] == [1.0] and log.end is None and log.is_alive
    for foreign in (b"[1, 2]\n", b"\xff\xfe\n", b'{"pid": true}\n', b'{"pid": 1}\n{"seconds": "x"}\n'):
        path.write_bytes(foreign)
        with pytest.raises(ValueError, match=r"r\.jsonl"):
            read_progress(tmp_path, "r")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match="is no regular file"):
        read_progress(tmp_path, "r")
