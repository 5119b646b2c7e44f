"""Signals that land anywhere: in every kind of code, raised through it, wrapped by it or dropped by it."""

from __future__ import annotations

import os
import signal
import time

import psutil
import pytest

from faqbench.records import find_dead_claims, find_runs
from faqbench.stages import find_damaged, list_entries

SWEEP = ["-m", "quant=rtn,awq"]

# From its n-th call on a function is struck by a signal, once, and does with it what libraries do.
STRIKE = """
import importlib, os, pathlib
def strike():
    if pathlib.Path("struck").exists():
        return
    pathlib.Path("struck").touch()
    try:
        os.kill(os.getpid(), {number})
        for _ in range(1000):
            pass
    except BaseException as error:
        if {how!r} == "wrapped":
            raise RuntimeError("an interrupt in disguise") from error
        if {how!r} == "raised":
            raise
importlib.import_module("faqbench.cli.composing")._kept.clear()  # the cells are composed here
owner = importlib.import_module({module!r})
*path, name = {name!r}.split(".")
for part in path:
    owner = getattr(owner, part)
original = getattr(owner, name)
calls = 0
def struck(*args, **kwargs):
    global calls
    calls += 1
    if calls >= {nth}:
        strike()
    return original(*args, **kwargs)
setattr(owner, name, struck)
"""


def struck_in(where, nth, number, how):
    module, name = where.split(":")
    return STRIKE.format(module=module, name=name, nth=nth, number=int(number), how=how)


def assert_ended_by(process, number, workplace):
    assert process.wait() == 128 + number, process.output
    assert "Traceback" not in process.output
    assert process.output.count("faqbench: stopped") == 1
    records, damaged = find_runs(workplace.runs)
    assert damaged == [] and all(r.status == "finished" for r in records)
    cache = workplace.root / "cache"
    assert [damage for _, damage in find_damaged(list_entries(cache)) if damage is not None] == []
    left = [p for folder in (workplace.runs, cache) for p in folder.rglob(".*")]
    assert [p for p in left if p.name not in (".trash", ".hydra")] == []
    claims = workplace.runs / "_sweeps" / "running"
    assert not claims.exists() or list(claims.iterdir()) == []


CONFIG_LOADER = "hydra._internal.config_loader_impl:ConfigLoaderImpl.load_configuration"


@pytest.mark.parametrize(
    ("where", "nth", "number", "how"),
    [
        (CONFIG_LOADER, 2, signal.SIGTERM, "wrapped"),
        ("omegaconf:OmegaConf.to_container", 5, signal.SIGHUP, "dropped"),
        ("faqbench.models.holder:load_model", 1, signal.SIGTERM, "raised"),
        ("torch.nn:Linear.forward", 40, signal.SIGINT, "wrapped"),
        ("torch.nn:Linear.forward", 60, signal.SIGTERM, "dropped"),
        ("faqbench.stages.cache:write_manifest", 4, signal.SIGTERM, "dropped"),
        ("pandas:DataFrame.to_parquet", 1, signal.SIGHUP, "wrapped"),
        ("faqbench.report.writer:render", 1, signal.SIGTERM, "wrapped"),
    ],
)
def test_a_signal_ends_a_sweep_cleanly_wherever_it_lands(forks, workplace, where, nth, number, how):
    sweep = [*SWEEP, *workplace.cell, "report.name=shown"]
    process = forks.run(workplace, *sweep, prelude=struck_in(where, nth, number, how))
    assert (workplace.root / "struck").exists(), process.output
    assert_ended_by(process, number, workplace)


@pytest.mark.parametrize("verb", ["plan", "ls", "presearch"])
def test_a_signal_ends_a_verb_with_its_own_code(forks, workplace, verb):
    where = {
        "plan": (CONFIG_LOADER, 1, signal.SIGTERM, "wrapped"),
        "ls": ("faqbench.foreign:from_json", 1, signal.SIGHUP, "raised"),
        "presearch": ("torch.nn:Linear.forward", 30, signal.SIGINT, "raised"),
    }[verb]
    if verb == "ls":
        assert forks.run(workplace, "quant=fp", *workplace.cell).wait() == 0
    more = [] if verb == "ls" else workplace.cell
    process = forks.run(workplace, verb, *more, prelude=struck_in(*where))
    assert_ended_by(process, where[2], workplace)


def wait_until(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, process.output
        time.sleep(0.02)
    return found


def worker_of(process, name):
    """Wait for a cell to be under way in a process of its own, and return that process."""

    def claims():
        folder = process.log.parent / "runs" / "_sweeps" / "running"
        return folder.is_dir() and any(folder.iterdir())

    wait_until(claims, process)
    children = psutil.Process(process.pid).children(recursive=True)
    return next(c for c in children if name in " ".join(c.cmdline()))


@pytest.mark.parametrize(
    ("to", "number"), [("group", signal.SIGINT), ("sweep", signal.SIGTERM), ("cell", signal.SIGHUP)]
)
def test_a_signal_to_a_sweep_or_its_isolated_cell_ends_both_and_leaves_nothing(
    forks, workplace, to, number
):
    process = forks.start(workplace, *SWEEP, *workplace.cell, "isolate=process")
    cell = worker_of(process, "faqbench.cli.attempt")
    match to:
        case "group":
            process.kill(number)
        case "sweep":
            os.kill(process.pid, number)
        case "cell":
            cell.send_signal(number)
    assert_ended_by(process, number, workplace)
    assert not cell.is_running() and find_runs(workplace.runs)[0] == []


@pytest.mark.parametrize(
    ("how", "name"), [("isolate=process", "faqbench.cli.attempt"), ("hydra/launcher=joblib", "LokyProcess")]
)
def test_a_sweep_that_is_killed_takes_its_processes_with_it(forks, workplace, how, name):
    process = forks.start(workplace, *SWEEP, *workplace.cell, how)
    cell = worker_of(process, name)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    psutil.wait_procs([cell], timeout=1800)
    assert not cell.is_running(), process.output
    running = workplace.runs / "_sweeps" / "running"
    assert find_dead_claims(workplace.runs) == sorted(p.name for p in running.iterdir())


def test_a_signal_to_a_sweep_of_joblib_ends_its_workers(forks, workplace):
    process = forks.start(workplace, *SWEEP, *workplace.cell, "hydra/launcher=joblib")
    worker = worker_of(process, "LokyProcess")
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait() == 143, process.output
    psutil.wait_procs([worker], timeout=1800)
    assert not worker.is_running() and "Traceback" not in process.output
