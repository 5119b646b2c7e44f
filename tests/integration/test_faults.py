"""What a sweep survives, with real processes: kills, crowds, damage, full and read-only disks, clocks."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from functools import cache

import pytest
import torch

from faqbench import pipeline
from faqbench.cli.composing import compose_cells, parse_flags
from faqbench.models import ModelHolder
from faqbench.records import differences, find_runs, read_run
from faqbench.stages import PlainProgress, StageCache, find_damaged, list_entries
from faqbench.stages.inventory import damage_of, entry_at

from .conftest import Forks, Workplace, new_workplace

SWEEP = ["-m", "quant=fp,rtn,awq,gptq"]
STAGES = ["weights", "calibration", "statistics", "quantized", "perplexity"]


def results(runs):
    return {r.run_id: read_run(runs / r.run_id) for r in find_runs(runs)[0]}


def assert_same(one, other):
    assert one.keys() == other.keys() and one
    found = {name: differences(one[name], other[name]) for name in one}
    assert not any(found.values()), found


def hidden(folder):
    """Return what a writer that was cut short would leave."""
    return [p for p in folder.rglob(".*") if p.parent.name != "hydra" and p.name != ".trash"]


@pytest.fixture(scope="module")
def quiet(tmp_path_factory):
    """A workplace where nothing goes wrong; the others read its texts, so that their cells are the same."""
    return new_workplace(tmp_path_factory.mktemp("quiet"))


@pytest.fixture
def workplace(quiet, tmp_path):
    return Workplace(tmp_path, quiet.cell)


@pytest.fixture(scope="module")
def timed(fork_server, quiet):
    """The results of the sweep when nothing goes wrong, and the seconds it takes on this machine."""
    start = time.monotonic()
    done = Forks(fork_server).run(quiet, *SWEEP, *quiet.cell)
    assert done.wait() == 0, done.output
    return results(quiet.runs), time.monotonic() - start


@pytest.fixture(scope="module")
def undisturbed(timed):
    """The results of the sweep when nothing goes wrong."""
    return timed[0]


@pytest.fixture
def tmpfs(tmp_path):
    """Mount a small file system of its own, and unmount it afterwards."""
    mounted = []

    def mount(name, size):
        folder = tmp_path / name
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"a file system cannot be mounted here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder):
    """Use up the free space of a file system."""
    with (folder / "filler").open("wb") as file, pytest.raises(OSError, match="No space"):
        while True:
            os.write(file.fileno(), b"x" * 4096)
    return folder / "filler"


def test_a_sweep_killed_at_ten_random_moments_ends_as_an_undisturbed_one(forks, workplace, timed):
    (undisturbed, seconds), draw = timed, random.Random(0)
    n_killed = 0
    # Earlier moments first, since every start leaves less to do for the next.
    for moment in sorted(draw.uniform(0.0, seconds) for _ in range(10)):
        process = forks.start(workplace, *SWEEP, *workplace.cell)
        time.sleep(moment)
        process.kill(signal.SIGKILL)
        n_killed += process.wait() == -signal.SIGKILL
        assert find_runs(workplace.runs)[1] == []
    done = forks.run(workplace, *SWEEP, *workplace.cell)
    assert done.wait() == 0, done.output
    assert n_killed > 0
    assert_same(results(workplace.runs), undisturbed)
    assert hidden(workplace.runs) == []


# Runs in the process that is to die: at the n-th of all blocks read and of all files and entries written.
DYING = """
import os, signal
from faqbench.models import Model
from faqbench.pipeline import quantizing
from faqbench.stages import cache
left = [{moment}]

def may_die(owner, name):
    original = getattr(owner, name)

    def counted(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, name, counted)

may_die(Model, "block")
may_die(quantizing, "write_linear")
may_die(quantizing, "_link")
may_die(quantizing, "asdict")
"""


def test_a_streamed_cell_killed_at_ten_moments_ends_with_the_bytes_of_an_undisturbed_one(forks, workplace):
    cell = ["quant=awq", *workplace.cell]
    cell += ["model.random.num_hidden_layers=4", "memory.host_gigabytes=0.0009"]
    quiet = Workplace(workplace.root / "quiet", workplace.cell)
    quiet.root.mkdir()
    assert forks.run(quiet, *cell).wait() == 0
    for moment in (2, 9, 15, 17, 19, 27, 33, 38, 45, 2):
        killed = forks.run(workplace, *cell, prelude=DYING.format(moment=moment))
        assert killed.wait() == -signal.SIGKILL, killed.output
    done = forks.run(workplace, *cell)
    assert done.wait() == 0, done.output
    assert "is read block by block" in done.output
    assert_same(results(workplace.runs), results(quiet.runs))
    codes = [
        {r.record.extra["codes_sha256"] for r in results(place.runs).values()}
        for place in (workplace, quiet)
    ]
    assert codes[0] == codes[1]


def test_two_processes_on_an_empty_cache_compute_every_stage_once(forks, workplace, undisturbed):
    both = [
        forks.start(workplace, *SWEEP, *workplace.cell, f"paths.runs={name}") for name in ("one", "two")
    ]
    assert [p.wait() for p in both] == [0, 0], both[0].output + both[1].output
    for name in ("one", "two"):
        assert_same(results(workplace.root / name), undisturbed)
    used = [
        (use["entry"], use["cached"])
        for name in ("one", "two")
        for data in results(workplace.root / name).values()
        for use in data.record.extra["stage_keys"]
    ]
    built = Counter(entry for entry, cached in used if not cached)
    assert set(built) == {entry for entry, _ in used}
    assert set(built.values()) == {1}


def test_two_processes_with_one_folder_of_runs_run_every_cell_once(forks, workplace, undisturbed):
    both = [forks.start(workplace, *SWEEP, *workplace.cell) for _ in range(2)]
    assert [p.wait() for p in both] == [0, 0], both[0].output + both[1].output
    assert_same(results(workplace.runs), undisturbed)
    said = both[0].output + both[1].output
    assert {said.count(f"{name}: running") for name in undisturbed} == {1}


def truncate(path, _):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path, _):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def swap(path, other):
    one, two = path.read_bytes(), other.read_bytes()
    path.write_bytes(two)
    other.write_bytes(one)


@pytest.fixture
def cell_of(monkeypatch, workplace):
    """Run a cell in this process, quickly, and return what it found."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    holder = ModelHolder()
    monkeypatch.chdir(workplace.root)

    @cache
    def composed(*arguments):
        (experiment,) = compose_cells(parse_flags([*arguments, *workplace.cell])).experiments
        return experiment

    def run(*arguments):
        experiment = composed(*arguments)
        with StageCache(workplace.root / "cache") as stages:
            return pipeline.run(experiment, cache=stages, progress=PlainProgress(), holder=holder)

    yield run
    torch.set_num_threads(n_threads)


@pytest.mark.parametrize("damage", [truncate, flip, swap])
def test_every_cached_file_that_is_damaged_is_found_and_no_result_changes(workplace, cell_of, damage):
    before = cell_of("quant=awq")
    root = workplace.root / "cache"
    files = sorted(p for p in (root / "stages").rglob("*") if p.is_file() and p.suffix != ".lock")
    assert len(files) > 30
    seen = set()
    for path in files:
        others = [p for p in files if p.parent != path.parent]
        other = next((p for p in others if p.suffix == path.suffix), others[0])
        original, others_original = path.read_bytes(), other.read_bytes()
        damage(path, other)
        stage, name = path.relative_to(root / "stages").parts[:2]
        assert damage_of(entry_at(root / "stages" / stage / name)) is not None
        # A run for the first file and the manifest of every stage.
        if (kind := (stage, path.name == "manifest.json")) not in seen:
            seen.add(kind)
            assert differences(before, cell_of("quant=awq")) == []
        for changed, content in ((path, original), (other, others_original)):
            changed.parent.mkdir(exist_ok=True)
            changed.write_bytes(content)
    assert len(seen) > 12


@pytest.mark.parametrize("stage", STAGES)
def test_a_disk_that_is_full_in_any_stage_is_one_sentence_and_nothing_is_lost(
    forks, workplace, tmpfs, stage
):
    cache = tmpfs("cache", "16m")
    cell = ["quant=awq", *workplace.cell]
    assert forks.run(workplace, *cell, "paths.runs=first").wait() == 0
    before = results(workplace.root / "first")
    for later in STAGES[STAGES.index(stage) :]:
        shutil.rmtree(cache / "stages" / later)
        (cache / "stages" / later).mkdir()
    shutil.rmtree(cache / "stages" / "bias_distance", ignore_errors=True)
    filler = fill(cache)
    full = forks.run(workplace, *cell)
    assert full.wait() == 2, full.output
    (sentence,) = [x for x in full.output.splitlines() if x.startswith("faqbench: ")]
    assert "the disk is full; free some space" in sentence and "Traceback" not in full.output
    assert [r.status for r in find_runs(workplace.runs)[0]] == ["failed"]
    assert [damage for _, damage in find_damaged(list_entries(cache)) if damage is not None] == []
    filler.unlink()
    assert forks.run(workplace, *cell).wait() == 0
    assert_same(before, results(workplace.runs))


def test_a_full_disk_below_runs_is_one_sentence_and_earlier_records_stay(forks, workplace, tmpfs):
    runs = tmpfs("runs", "4m")
    assert forks.run(workplace, "quant=rtn", *workplace.cell).wait() == 0
    before = results(runs)
    filler = fill(runs)
    full = forks.run(workplace, "-m", "quant=rtn,awq", *workplace.cell)
    assert full.wait() == 2, full.output
    assert "the disk is full; free some space, or set paths.runs" in full.output
    assert "Traceback" not in full.output
    assert_same(before, results(runs))
    filler.unlink()
    assert forks.run(workplace, "-m", "quant=rtn,awq", *workplace.cell).wait() == 0
    assert len(results(runs)) == 2 and hidden(runs) == []


def test_a_read_only_folder_of_runs_shows_what_finished_and_refuses_the_rest(forks, workplace, tmpfs):
    runs = tmpfs("runs", "8m")
    sweep = ["-m", "quant=fp,rtn", *workplace.cell]
    assert forks.run(workplace, *sweep).wait() == 0
    subprocess.run(["mount", "-o", "remount,ro", str(runs)], check=True)
    again = forks.run(workplace, *sweep)
    assert again.wait() == 0 and again.output.count("finished before, skipped") == 2
    assert forks.run(workplace, "ls").wait() == 0
    for arguments in (["quant=awq"], ["-m", "quant=rtn,awq"]):
        refused = forks.run(workplace, *arguments, *workplace.cell)
        assert refused.wait() == 2, refused.output
        last = refused.output.strip().splitlines()[-1]
        assert "the file system is read-only; " in last and "paths.runs" in last
        assert "Traceback" not in refused.output
    assert len(results(runs)) == 2


def test_a_read_only_cache_that_is_full_of_what_is_needed_is_used(forks, workplace, tmpfs):
    cache = tmpfs("cache", "16m")
    cell = ["quant=awq", *workplace.cell]
    assert forks.run(workplace, *cell, "paths.runs=first").wait() == 0
    subprocess.run(["mount", "-o", "remount,ro", str(cache)], check=True)
    again = forks.run(workplace, *cell)
    assert again.wait() == 0, again.output
    assert_same(results(workplace.root / "first"), results(workplace.runs))
    refused = forks.run(workplace, "quant=faq", *workplace.cell)
    assert refused.wait() == 2
    assert "the file system is read-only; free some space or set FAQBENCH_CACHE" in refused.output


@pytest.mark.parametrize("days", [-10_000, 10_000])
def test_time_stamps_of_another_time_change_nothing(forks, workplace, days):
    cell = ["quant=awq", *workplace.cell]
    assert forks.run(workplace, *cell, "paths.runs=first").wait() == 0
    stamp = time.time() + 86400 * days
    for path in (workplace.root / "cache").rglob("*"):
        os.utime(path, (stamp, stamp))
    again = forks.run(workplace, *cell, "cache.max_gigabytes=10")
    assert again.wait() == 0, again.output
    assert_same(results(workplace.root / "first"), results(workplace.runs))
    (data,) = results(workplace.runs).values()
    assert all(use["cached"] for use in data.record.extra["stage_keys"])


# From now on every look at the clock is an hour later or earlier than the one before.
JUMPS = """
import time, datetime, itertools
real, jumps = time.time, itertools.cycle([3600.0, -7200.0, 0.0])
time.time = lambda: real() + next(jumps)
"""


def test_a_clock_that_jumps_changes_no_duration_and_no_result(forks, workplace):
    cell = ["quant=awq", *workplace.cell]
    assert forks.run(workplace, *cell, "paths.runs=first").wait() == 0
    shutil.rmtree(workplace.root / "cache")
    jumping = forks.run(workplace, *cell, prelude=JUMPS)
    assert jumping.wait() == 0, jumping.output
    assert_same(results(workplace.root / "first"), results(workplace.runs))
    (data,) = results(workplace.runs).values()
    jump = 3600
    assert 0 <= data.record.seconds < jump
    assert all(0 <= stage.seconds < jump for stage in data.record.stages.values())


@pytest.mark.parametrize("arguments", [["quant=rtn"], ["-m", "quant=fp,rtn"], ["quant=rtn", "rerun=true"]])
def test_a_record_of_a_newer_schema_is_never_replaced(forks, workplace, arguments):
    assert forks.run(workplace, "quant=rtn", *workplace.cell).wait() == 0
    (path,) = workplace.runs.glob("*/record.json")
    newer = json.dumps(json.loads(path.read_text()) | {"schema_version": 2})
    path.write_text(newer)
    refused = forks.run(workplace, *arguments, *workplace.cell)
    assert refused.wait() == 2, refused.output
    last = refused.output.strip().splitlines()[-1]
    assert "was written by a newer faqbench (schema_version 2 is not 1" in last
    assert "Traceback" not in refused.output and path.read_text() == newer
    assert [p.name for p in workplace.runs.glob("[!_]*")] == [path.parent.name]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_cleanly_and_the_rest_is_taken_up(forks, workplace, undisturbed, number):
    process = forks.start(workplace, *SWEEP, *workplace.cell)
    process.until(lambda: find_runs(workplace.runs)[0])
    process.kill(number)
    assert process.wait() == {signal.SIGINT: 130, signal.SIGTERM: 143}[number], process.output
    assert "Traceback" not in process.output
    assert hidden(workplace.runs) == [] and hidden(workplace.root / "cache") == []
    assert all(r.status == "finished" for r in find_runs(workplace.runs)[0])
    assert list((workplace.runs / "_sweeps" / "running").iterdir()) == []
    done = forks.run(workplace, *SWEEP, *workplace.cell)
    assert done.wait() == 0, done.output
    assert_same(results(workplace.runs), undisturbed)


def test_a_budget_keeps_the_cache_small_and_changes_no_result(forks, workplace, undisturbed):
    done = forks.run(workplace, *SWEEP, *workplace.cell, "cache.max_gigabytes=0.0003")
    assert done.wait() == 0, done.output
    assert_same(results(workplace.runs), undisturbed)
    forks.run(workplace, "cache", "prune", "max_gigabytes=0.0003")
    stored = [e for e in list_entries(workplace.root / "cache") if e.stage != "assets"]
    assert 0 < sum(e.n_bytes for e in stored) <= 300_000
