"""How the processes of one machine share it: a GPU for each cell, or an equal part of the cores.

Hydra's launchers start processes and no more: left alone, every cell would run on the first GPU, and
every process would use all cores. So a cell takes a place before it loads anything:

    joblib            one place per GPU; without GPUs the cores are divided by n_jobs
    submitit_local    one place per GPU; without GPUs as many as cpus_per_task goes into the cores, since
                      this launcher starts all jobs at once
    submitit_slurm    Slurm has chosen the GPU; cpus_per_task cores
    ray               Ray has chosen the GPU; num_cpus cores

A place is a locked file, so cells of several sweeps share a machine too, and a killed one frees its place.
No result depends on the number of threads.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from faqbench.config import Experiment

_POLL_SECONDS = 0.2
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@contextmanager
def own_place(experiment: Experiment, launcher: Mapping[str, Any]) -> Iterator[None]:
    """Give this process its share of the machine while it runs a cell.

    Args:
        experiment: the cell; `device` may say that it needs no GPU, or which one.
        launcher: Hydra's configuration of the launcher that started this process.
    """
    kind = kind_of(launcher)
    if kind == "basic":
        yield
        return
    limit_threads(threads_per_cell(kind, launcher, n_cores()))
    gpus = visible_gpus() if experiment.device in ("auto", "cuda") else []
    if kind in ("joblib", "submitit_local") and gpus:
        with taken(gpus) as gpu:
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # for good: CUDA cannot change it later
            yield
    elif kind == "submitit_local":
        n_places = max(1, n_cores() // (launcher.get("cpus_per_task") or 1))
        with taken([f"cpu-{n_places}-{index}" for index in range(n_places)]):
            yield
    else:
        yield


def kind_of(launcher: Mapping[str, Any]) -> str:
    """Return basic, joblib, submitit_local, submitit_slurm or ray; basic for any other."""
    target = str(launcher.get("_target_", ""))
    names = {
        "JoblibLauncher": "joblib",
        "LocalLauncher": "submitit_local",
        "SlurmLauncher": "submitit_slurm",
        "RayLauncher": "ray",
    }
    return names.get(target.rpartition(".")[2], "basic")


def n_workers(launcher: Mapping[str, Any]) -> int:
    """Return how many cells run at once on this machine, as far as that is known beforehand."""
    kind = kind_of(launcher)
    if kind == "joblib":
        n_jobs = int(launcher.get("n_jobs", -1))
        return n_jobs if n_jobs > 0 else n_cores()
    if kind == "submitit_local":
        return max(1, n_cores() // int(launcher.get("cpus_per_task") or 1))
    return 1


def threads_per_cell(kind: str, launcher: Mapping[str, Any], cores: int) -> int:
    """Return how many threads a cell may use, so that all cells of the machine use its cores once."""
    if kind == "joblib":
        n_jobs = int(launcher.get("n_jobs", -1))
        return max(1, cores // (n_jobs if n_jobs > 0 else cores))
    if kind == "ray":
        remote = dict(launcher.get("ray", {})).get("remote") or {}
        return max(1, int(remote.get("num_cpus") or 1))
    return max(1, int(launcher.get("cpus_per_task") or 1))


def limit_threads(n_threads: int) -> None:
    """Use so many threads at most, in this process and those that it starts."""
    for name in _THREAD_VARIABLES:
        before = os.environ.get(name, "")
        n_threads = min(n_threads, int(before)) if before.isdigit() else n_threads
        os.environ[name] = str(n_threads)
    if "torch" in sys.modules:  # else it reads the variables when it is imported
        sys.modules["torch"].set_num_threads(n_threads)


def n_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """Return the GPUs of this machine that may be used, by the names that CUDA_VISIBLE_DEVICES takes."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    tool = shutil.which("nvidia-smi")
    if chosen is not None:
        return [name.strip() for name in chosen.split(",") if name.strip()]
    if tool is None:
        return []
    listed = subprocess.run(  # noqa: S603 - a fixed command
        [tool, "--query-gpu=uuid", "--format=csv,noheader"], capture_output=True, text=True, check=False
    )
    return listed.stdout.split() if listed.returncode == 0 else []


@contextmanager
def taken(places: Sequence[str]) -> Iterator[str]:
    """Wait for the first of the places that is free, and hold it."""
    folder = Path(tempfile.gettempdir()) / f"faqbench-places-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    while True:
        for place in places:
            handle = os.open(folder / place.replace("/", "_"), os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(handle)
                continue
            try:
                yield place
            finally:
                os.close(handle)
            return
        time.sleep(_POLL_SECONDS)
