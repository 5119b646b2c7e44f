"""Tracking as a user meets it: a full disk, a signal in a tracker; the record is never touched."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest
from offline_runs import history_of, logged, only, summary_of

import faqbench.tracking.wandb
from faqbench.cli import main
from faqbench.records import find_runs
from faqbench.tracking import find_progress

from .conftest import PATIENCE

LIVE = importlib.import_module("faqbench.tracking.live")
FOLLOWER = "faqbench.tracking.follower"
READER = [sys.executable, "-S", "-c", "import sys; sys.stdin.read()"]  # a follower that shows nothing


class Strikes:
    """What sends this process a signal once, and does with its exception what libraries do."""

    def __init__(self, number, how):
        self.number, self.how, self.n_calls = number, how, 0

    def __call__(self):
        self.n_calls += 1
        if self.n_calls > 1:
            return
        try:
            signal.raise_signal(self.number)
        except BaseException as error:
            if self.how == "raised":
                raise
            if self.how == "wrapped":
                raise RuntimeError("an interrupt in disguise") from error


class Service:
    """Stands in for W&B, and strikes in one of its steps."""

    def __init__(self, place, strike):
        self.place, self.strike, self.n_open = place, strike, 0

    def _step(self, name):
        if name == self.place:
            self.strike()

    def open_run(self, head, section, runs):
        self._step("open")
        self.n_open += 1
        return self

    def sample(self, number, sample):
        self._step("sample")

    def finish(self, view):
        self._step("finish")
        self.n_open -= 1

    def abandon(self):
        self._step("abandon")
        self.n_open -= 1

    def report(self, folder):
        self._step("report")
        self.n_open -= 1


@pytest.fixture
def tracked(workplace, monkeypatch):
    """The arguments of a cell that is tracked, followed by a process that only reads."""
    start, started = subprocess.Popen, []

    def follow(command, **how):
        if FOLLOWER not in command:
            return start(command, **how)
        started.append(start(READER, **how))
        return started[-1]

    monkeypatch.setattr(LIVE.subprocess, "Popen", follow)
    monkeypatch.setattr(LIVE, "_followers", [])  # of this command, whose process would have ended
    yield [a for a in workplace.cell if not a.startswith("tracking")] + ["tracking.mode=offline"]
    for process in started:
        process.stdin.close()
        process.wait()


@pytest.mark.parametrize("isolate", ["none", "process"])
def test_a_sweep_has_one_follower_however_many_cells_it_has(workplace, tracked, monkeypatch, isolate):
    told = []
    say = LIVE._FollowerProcess._say
    monkeypatch.setattr(
        LIVE._FollowerProcess, "_say", lambda f, word: told.append((f, word)) or say(f, word)
    )
    assert main(["-m", "quant=fp,rtn", *tracked, f"isolate={isolate}"]) == 0
    assert len({id(follower) for follower, _ in told}) == 1
    words = ["done" if word == "done" else json.loads(word)["run_id"] for _, word in told]
    assert sorted(words[::2]) == sorted(r.run_id for r in find_runs(workplace.runs)[0])
    assert words[1::2] == ["done", "done"]


def assert_ended(code, number, workplace, capsys):
    err = capsys.readouterr().err
    assert code == 128 + number, err
    assert "Traceback" not in err and err.count("faqbench: stopped") == 1
    records, damaged = find_runs(workplace.runs)
    assert damaged == [] and all(r.status == "finished" for r in records)
    return [r.config["quant"]["name"] for r in records]


@pytest.mark.parametrize(
    ("place", "how", "number", "done"),
    [
        ("__init__", "raised", signal.SIGTERM, []),
        ("__init__", "dropped", signal.SIGINT, []),
        ("finish", "dropped", signal.SIGTERM, ["fp"]),
        ("leave", "raised", signal.SIGINT, ["fp"]),
        ("conclude", "raised", signal.SIGTERM, ["fp", "rtn"]),
        ("conclude", "dropped", signal.SIGHUP, ["fp", "rtn"]),
    ],
)
def test_a_signal_in_what_starts_tells_and_ends_a_follower(
    workplace, tracked, monkeypatch, capsys, place, how, number, done
):
    strike = Strikes(number, how)
    own = getattr(LIVE._FollowerProcess, place)

    def struck(self, *arguments):
        strike()
        return own(self, *arguments)

    monkeypatch.setattr(LIVE._FollowerProcess, place, struck)
    code = main(["-m", "quant=fp,rtn", *tracked])
    assert strike.n_calls > 0
    assert assert_ended(code, number, workplace, capsys) == done


@pytest.fixture
def strike_in(tracked, monkeypatch):
    """Let a stand-in for W&B be struck in a step, from this process: there is no follower."""
    start = subprocess.Popen

    def refuse(command, **how):
        if FOLLOWER in command:
            raise OSError("no more processes")
        return start(command, **how)

    def make(place, how, number):
        service = Service(place, Strikes(number, how))
        monkeypatch.setattr(faqbench.tracking.wandb, "open_run", service.open_run)
        monkeypatch.setattr(LIVE.subprocess, "Popen", refuse)
        return service

    return make


@pytest.mark.parametrize(
    ("place", "how", "number", "done"),
    [
        ("open", "raised", signal.SIGTERM, ["fp"]),
        ("sample", "wrapped", signal.SIGINT, ["fp"]),
        ("finish", "wrapped", signal.SIGTERM, ["fp"]),
        ("finish", "dropped", signal.SIGINT, ["fp"]),
        ("report", "wrapped", signal.SIGTERM, ["fp", "rtn"]),
        ("report", "dropped", signal.SIGTERM, ["fp", "rtn"]),
    ],
)
def test_a_signal_in_a_service_ends_the_sweep(
    workplace, tracked, strike_in, capsys, place, how, number, done
):
    service = strike_in(place, how, number)
    code = main(["-m", "quant=fp,rtn", *tracked, "report.name=shown"])
    assert service.strike.n_calls > 0
    assert assert_ended(code, number, workplace, capsys) == done
    assert service.n_open == 0


@pytest.mark.parametrize("how", ["wrapped", "dropped"])
def test_a_signal_ends_a_sync_at_the_run_it_lands_in(workplace, strike_in, capsys, how):
    assert main(["-m", "quant=fp,rtn", *workplace.cell]) == 0
    capsys.readouterr()
    service = strike_in("finish", how, signal.SIGTERM)
    code = main(["sync", "mode=offline"])
    assert assert_ended(code, signal.SIGTERM, workplace, capsys) == ["fp", "rtn"]
    assert service.strike.n_calls == 1 and service.n_open == 0


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
    stages = {row["live/activity"] for row in history_of(records) if "live/activity" in row}
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
        return any("quantize" in s.activity for log in logs for s in log.samples)

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
