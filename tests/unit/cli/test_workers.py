"""How processes share a machine: threads, places, GPUs, the order of cells, limits of memory."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from hydra.core.plugins import Plugins
from hydra.errors import MissingConfigException
from hydra.plugins.sweeper import Sweeper

from faqbench.cli import attempt, workers
from faqbench.cli.composing import compose_cells, is_search, parse_flags
from faqbench.cli.launching import check_launcher, in_order
from faqbench.cli.refusals import explained
from faqbench.cli.workers import (
    kind_of,
    limit_threads,
    n_workers,
    own_place,
    taken,
    threads_per_cell,
    visible_gpus,
)
from faqbench.config import UserError

PREFIX = "hydra_plugins.x.y"
JOBLIB = {"_target_": f"{PREFIX}.JoblibLauncher", "n_jobs": 2}
LOCAL = {"_target_": f"{PREFIX}.LocalLauncher", "cpus_per_task": 3}
SLURM = {"_target_": f"{PREFIX}.SlurmLauncher", "cpus_per_task": 8}
RAY = {"_target_": f"{PREFIX}.RayLauncher", "ray": {"remote": {"num_cpus": 4}}}
BASIC = {"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"}


@pytest.fixture(autouse=True)
def own_environment(monkeypatch, tmp_path):
    """Places of this test alone, and variables that it may change."""
    monkeypatch.setattr(workers.tempfile, "gettempdir", lambda: str(tmp_path))
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "torch")


@pytest.mark.parametrize(
    ("launcher", "kind", "threads", "at_once"),
    [
        (BASIC, "basic", 1, 1),
        (JOBLIB, "joblib", 6, 2),
        (JOBLIB | {"n_jobs": -1}, "joblib", 1, 12),
        (JOBLIB | {"n_jobs": 100}, "joblib", 1, 100),
        (LOCAL, "submitit_local", 3, 4),
        (LOCAL | {"cpus_per_task": None}, "submitit_local", 1, 12),
        (SLURM, "submitit_slurm", 8, 1),
        (RAY, "ray", 4, 1),
        ({"_target_": "hydra_plugins.other.Launcher"}, "basic", 1, 1),
    ],
)
def test_each_launcher_divides_twelve_cores(monkeypatch, launcher, kind, threads, at_once):
    monkeypatch.setattr(workers, "n_cores", lambda: 12)
    assert kind_of(launcher) == kind
    assert threads_per_cell(kind, launcher, 12) == threads
    assert n_workers(launcher) == at_once


def test_threads_are_limited_and_never_raised(monkeypatch):
    limit_threads(4)
    assert os.environ["OMP_NUM_THREADS"] == os.environ["MKL_NUM_THREADS"] == "4"
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    limit_threads(8)
    assert os.environ["OMP_NUM_THREADS"] == "2"


def test_a_place_is_held_by_one_at_a_time(tmp_path):
    order = []

    def work(name):
        with taken(["only"]):
            order.append(f"{name} in")
            time.sleep(0.3)
            order.append(f"{name} out")

    threads = [threading.Thread(target=work, args=(n,)) for n in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert order in (["a in", "a out", "b in", "b out"], ["b in", "b out", "a in", "a out"])


def test_several_places_are_held_at_once():
    with taken(["one", "two"]) as first, taken(["one", "two"]) as second:
        assert {first, second} == {"one", "two"}


def test_the_place_of_a_killed_process_is_free(tmp_path):
    code = (
        "import sys, time; from faqbench.cli import workers;"
        f"workers.tempfile.gettempdir = lambda: {str(tmp_path)!r}\n"
        "with workers.taken(['only']):\n    print('in', flush=True); time.sleep(3600)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "in\n"
    child.kill()
    child.communicate()
    with taken(["only"]) as place:
        assert place == "only"


@pytest.mark.parametrize("launcher", [JOBLIB, LOCAL])
def test_each_cell_gets_a_gpu_of_its_own(compose, monkeypatch, launcher):
    monkeypatch.setattr(workers, "visible_gpus", lambda: ["GPU-1", "GPU-2"])
    seen = []
    with own_place(compose("device=auto"), launcher):
        seen.append(os.environ["CUDA_VISIBLE_DEVICES"])
        with own_place(compose("device=cuda"), launcher):
            seen.append(os.environ["CUDA_VISIBLE_DEVICES"])
    assert sorted(seen) == ["GPU-1", "GPU-2"]


@pytest.mark.parametrize("launcher", [BASIC, SLURM, RAY])
def test_where_another_has_chosen_the_gpu_it_stays(compose, monkeypatch, launcher):
    monkeypatch.setattr(workers, "visible_gpus", lambda: ["GPU-1"])
    with own_place(compose("device=auto"), launcher):
        assert "CUDA_VISIBLE_DEVICES" not in os.environ


@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
def test_a_device_that_was_named_is_left_alone(compose, monkeypatch, device):
    monkeypatch.setattr(workers, "visible_gpus", lambda: ["GPU-1"])
    with own_place(compose(f"device={device}"), JOBLIB):
        assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_the_basic_launcher_uses_the_whole_machine(compose):
    with own_place(compose("device=cpu"), BASIC):
        assert "OMP_NUM_THREADS" not in os.environ


def test_gpus_are_those_that_may_be_seen(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-abc,")
    assert visible_gpus() == ["3", "GPU-abc"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []


def test_gpus_are_listed_by_the_drivers_tool(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho GPU-one\necho GPU-two\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert visible_gpus() == ["GPU-one", "GPU-two"]
    tool.write_text("#!/bin/sh\necho no driver; exit 9\n")
    assert visible_gpus() == []


def request(*arguments):
    return compose_cells(parse_flags(arguments))


def test_cells_keep_their_order_within_a_model_and_a_calibration_set():
    cells = request("-m", "quant=awq,rtn,faq", "seed=1,0", "model=tiny-qwen2,tiny-llama").cells
    found = [(c.experiment.model.name, c.experiment.quant.name, c.experiment.seed) for c in in_order(cells)]
    assert found == [
        (model, quant, seed)
        for model in ("tiny-qwen2", "tiny-llama")
        for quant, seed in (
            ("awq", 1), ("faq", 1), ("awq", 0), ("faq", 0), ("rtn", 1), ("rtn", 0)
        )
    ]  # fmt: skip


def test_other_calibration_settings_are_other_groups():
    cells = request("-m", "quant=awq,faq", "calibration.seq_len=64,128", "model=tiny-llama").cells
    found = [(c.experiment.calibration.seq_len, c.experiment.quant.name) for c in in_order(cells)]
    assert found == [(64, "awq"), (64, "faq"), (128, "awq"), (128, "faq")]


def test_hydra_finds_our_sweeper_where_it_looks_for_plug_ins():
    sweepers = {f"{c.__module__}.{c.__name__}" for c in Plugins.instance().discover(Sweeper)}
    assert request("-m", "quant=rtn,fp").hydra.sweeper._target_ in sweepers


def test_the_basic_launcher_is_always_there():
    assert check_launcher(request("model=tiny-llama").hydra) is None


def test_a_launcher_without_its_plugin_names_the_extra():
    hydra = request("model=tiny-llama").hydra
    hydra.launcher._target_ = "hydra_plugins.no_such_plugin.Launcher"
    hydra.runtime.choices["hydra/launcher"] = "ray"
    with pytest.raises(UserError, match=r"hydra/launcher=ray .* pip install 'faqbench\[ray\]'"):
        check_launcher(hydra)


@pytest.mark.parametrize(
    ("name", "package"), [("optuna", r"'faqbench\[search\]'"), ("nevergrad", "hydra-nevergrad-sweeper")]
)
def test_a_sweeper_without_its_plugin_names_what_installs_it(name, package):
    sentence = rf"hydra/sweeper={name} is not installed; pip install {package}\.$"
    with pytest.raises(UserError, match=sentence), explained(()):  # as Hydra says it without the plugin
        raise MissingConfigException(
            "not found", missing_cfg_file=f"hydra/sweeper/{name}", options=["basic", "cells"]
        )


def test_a_sweeper_of_the_users_choice_is_a_search():
    assert not is_search(request("-m", "quant=rtn,fp", "model=tiny-llama").hydra)
    other = request("-m", "model=tiny-llama", "hydra.sweeper._target_=hydra_plugins.x.Search")
    assert is_search(other.hydra) and other.kind == "search"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("can't start new thread"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_an_error_for_want_of_memory_names_the_limit_and_its_value(error):
    cell = request("model=tiny-llama", "isolate=process", "memory_limit_gigabytes=0.5").cells[0].experiment
    wrapped = ValueError("unreadable")
    wrapped.__cause__ = error
    for raised in (error, wrapped):
        told = attempt._beyond_limit(cell, raised)
        assert told is not None and "memory_limit_gigabytes=0.5" in told and "\n" not in told
    assert attempt._beyond_limit(cell, ValueError("another")) is None
    assert attempt._beyond_limit(request("model=tiny-llama").cells[0].experiment, error) is None
    assert "memory_limit_gigabytes=0.5" in attempt._cause_of_death(cell, 1)
    assert "memory_limit_gigabytes=0.5" in attempt._cause_of_death(cell, -signal.SIGABRT)


LIMIT = """
import sys
from faqbench.cli.attempt import lift_memory_limit, limit_memory
limit_memory(500_000_000)
try:
    b"x" * 2_000_000_000
except MemoryError:
    lift_memory_limit()
    print(len(b"x" * 600_000_000))
"""


def test_a_limit_of_memory_is_an_error_inside_the_process_and_can_be_lifted():
    done = subprocess.run(
        [sys.executable, "-c", LIMIT], capture_output=True, text=True, check=True, timeout=1800
    )
    assert done.stdout == "600000000\n"


def test_the_claim_of_a_cell_that_had_to_be_killed_is_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr(attempt, "_SECONDS_TO_FINISH", 0.1)
    monkeypatch.setattr(attempt, "run_id", lambda _: "cell")
    claim = tmp_path / "_sweeps" / "running" / "cell"
    claim.parent.mkdir(parents=True)
    claim.touch()
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(3600)"
    child = subprocess.Popen([sys.executable, "-c", deaf], text=True)
    experiment = SimpleNamespace(paths=SimpleNamespace(runs=tmp_path))
    with pytest.raises(KeyboardInterrupt), attempt._ending_with_this(child, experiment):
        raise KeyboardInterrupt
    assert child.poll() is not None and not claim.exists()
