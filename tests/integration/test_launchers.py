"""The same sweep under every launcher: identical records. Real processes, and a real cluster for Ray."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import psutil
import pytest

from faqbench.records import differences, find_runs, read_run

from .conftest import SOURCE, Forks, Workplace, new_workplace

SWEEP = ("-m", "quant=fp,rtn,awq,gptq", "bits=3")
NEEDS = {"joblib": "parallel", "submitit": "slurm", "ray": "ray"}


def needs(launcher):
    """Skip a test without the extra that brings a launcher."""
    there = find_spec("hydra_plugins") and find_spec(f"hydra_plugins.hydra_{launcher}_launcher")
    reason = f"needs the extra '{NEEDS[launcher]}'"
    return pytest.mark.skipif(not there, reason=reason)


@pytest.fixture(scope="module")
def quiet(tmp_path_factory):
    return new_workplace(tmp_path_factory.mktemp("basic"))


@pytest.fixture(scope="module")
def basic(fork_server, quiet):
    """What the basic launcher gives."""
    done = Forks(fork_server).run(quiet, *SWEEP, *quiet.cell)
    assert done.wait() == 0, done.output
    return {r.run_id: read_run(quiet.runs / r.run_id) for r in find_runs(quiet.runs)[0]}


@pytest.fixture
def workplace(quiet, tmp_path):
    return Workplace(tmp_path, quiet.cell)


def assert_identical(workplace, basic):
    found = {r.run_id: read_run(workplace.runs / r.run_id) for r in find_runs(workplace.runs)[0]}
    assert found.keys() == basic.keys()
    different = {name: differences(found[name], basic[name]) for name in basic}
    assert not any(different.values()), different
    return found


@needs("joblib")
def test_joblib_with_two_processes_gives_the_records_of_the_basic_launcher(forks, workplace, basic):
    done = forks.run(workplace, *SWEEP, *workplace.cell, "hydra/launcher=joblib")
    assert done.wait() == 0, done.output
    assert "Traceback" not in done.output, done.output
    assert "Warning" not in done.output, done.output
    found = assert_identical(workplace, basic)
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    assert {d.record.environment["n_threads"] for d in found.values()} == {share}


@needs("joblib")
def test_a_worker_of_joblib_that_is_killed_costs_its_cell_a_second_start(forks, workplace, basic):
    """Of two cells: each that is left starts a Python of its own."""
    two = ["-m", "quant=rtn,awq", "bits=3"]
    process = forks.start(workplace, *two, *workplace.cell, "hydra/launcher=joblib")
    running = workplace.runs / "_sweeps" / "running"
    process.until(lambda: running.is_dir() and any(running.iterdir()))
    workers = psutil.Process(process.pid).children(recursive=True)
    worker = next(w for w in workers if "LokyProcess" in " ".join(w.cmdline()))
    worker.kill()
    assert process.wait() == 0, process.output
    assert "The launcher's processes broke" in process.output
    assert_identical(workplace, {n: d for n, d in basic.items() if "-rtn-" in n or "-awq-" in n})


@needs("submitit")
@pytest.mark.launchers
def test_submitit_on_this_machine_gives_the_records_of_the_basic_launcher(workplace, basic):
    done = workplace.faqbench(*SWEEP, *workplace.cell, "hydra/launcher=submitit_local")
    assert done.returncode == 0, done.stderr
    assert_identical(workplace, basic)


@needs("ray")
@pytest.mark.launchers
def test_a_ray_cluster_of_two_workers_gives_the_records_of_the_basic_launcher(workplace, basic):
    env = os.environ | {"FAQBENCH_CACHE": str(workplace.root / "cache"), "PYTHONPATH": SOURCE}
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    start = [*ray, "start", "--num-cpus=1", "--disable-usage-stats"]
    head = [*start, "--head", "--port=6391", "--include-dashboard=false"]
    try:
        for command in (head, [*start, "--address=127.0.0.1:6391"]):
            subprocess.run(command, env=env, check=True, capture_output=True, timeout=1800)
        address = "hydra.launcher.ray.init.address=127.0.0.1:6391"
        done = workplace.faqbench(*SWEEP, *workplace.cell, "hydra/launcher=ray", address)
        assert done.returncode == 0, done.stderr + done.stdout
    finally:
        subprocess.run([*ray, "stop", "--force"], env=env, check=False, capture_output=True)
    assert_identical(workplace, basic)
