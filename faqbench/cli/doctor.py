"""The verb `doctor`: what this machine has, and what that means for runs."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

import faqbench
from faqbench.cli.arguments import KeysOfRuns, read_arguments
from faqbench.cli.console import print_table
from faqbench.cli.workers import n_cores, visible_gpus
from faqbench.formatting import count, n_bytes
from faqbench.stages import list_entries
from faqbench.stages.cache import cache_root
from faqbench.tables import Table

_PACKAGES = ("torch", "transformers", "lm_eval", "datasets", "hydra-core", "wandb")
_LAUNCHERS = {
    "joblib": ("hydra_plugins.hydra_joblib_launcher", "parallel"),
    "submitit": ("hydra_plugins.hydra_submitit_launcher", "slurm"),
    "ray": ("hydra_plugins.hydra_ray_launcher", "ray"),
}
_TIMEOUT_SECONDS = 3.0
_QUICKSTART_BYTES = 3e9
_LITTLE_DISK_BYTES = 2e9


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: its name.
        found: what it is like here.
        means: what that means for runs.
        is_fatal: whether it would stop a run.
    """

    what: str
    found: str
    means: str
    is_fatal: bool = False


def doctor(arguments: list[str]) -> int:
    """Check the machine: versions, cores, memory, disk, GPU, cache, launchers, W&B, hub; what each means.

    The exit code is 1 when something would stop a run. runs=… names another folder of runs.
    """
    _, keys = read_arguments("doctor", arguments, KeysOfRuns)
    checks: list[Callable[[], Iterator[Finding]]] = [
        _versions,
        _machine,
        _gpu,
        _dtype,
        lambda: _folder("runs", keys.runs),
        lambda: _folder("cache", cache_root()),
        _cache,
        _launchers,
        _wandb,
        _hub,
    ]
    findings = [finding for check in checks for finding in check()]
    print_table(Table.of([{"": f.what, "found": f.found, "means": f.means} for f in findings]))
    fatal = [f for f in findings if f.is_fatal]
    print(
        f"{count(len(fatal), 'thing')} would stop a run: {', '.join(f.what for f in fatal)}."
        if fatal
        else "Nothing would stop a run."
    )
    return int(bool(fatal))


def _versions() -> Iterator[Finding]:
    is_old = sys.version_info < (3, 11)
    yield Finding(
        what="faqbench",
        found=f"{faqbench.__version__}, Python {platform.python_version()}",
        means="Python 3.11 or newer is needed" if is_old else "",
        is_fatal=is_old,
    )
    missing = [name for name in _PACKAGES if _version(name) is None]
    yield Finding(
        what="packages",
        found=", ".join(f"{name} {_version(name)}" for name in _PACKAGES if _version(name)),
        means=f"missing: {', '.join(missing)}; pip install faqbench" if missing else "",
        is_fatal=bool(missing),
    )


def _machine() -> Iterator[Finding]:
    cores, threads = n_cores(), os.environ.get("OMP_NUM_THREADS")
    yield Finding(
        what="cores",
        found=f"{cores}" + (f", OMP_NUM_THREADS={threads}" if threads else ""),
        means="one cell uses them all; hydra/launcher=joblib divides them among several",
    )
    memory = psutil.virtual_memory()
    fits = memory.available >= _QUICKSTART_BYTES
    yield Finding(
        what="memory",
        found=f"{n_bytes(memory.available)} free of {n_bytes(memory.total)}",
        means="the quickstart fits" if fits else "the quickstart needs about 3 GB",
    )


def _gpu() -> Iterator[Finding]:
    names = visible_gpus()
    if not names:
        yield Finding(what="GPU", found="none", means="device=auto runs on the CPU")
        return
    import torch

    usable = torch.cuda.is_available()
    words = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    yield Finding(
        what="GPU",
        found=words if usable else f"{count(len(names), 'GPU')} that this torch cannot use",
        means="device=auto uses the first; with launchers each cell gets one"
        if usable
        else "device=auto runs on the CPU; install a torch that is built for CUDA",
    )


def _dtype() -> Iterator[Finding]:
    from faqbench.hardware import fast_dtype, named_device

    device = named_device("auto")
    fast = fast_dtype(device)
    yield Finding(
        what="dtype", found=f"{fast.dtype} on {device}", means=f"what dtype=auto means: {fast.reason}"
    )


def _folder(what: str, folder: Path) -> Iterator[Finding]:
    free = _free_bytes(folder)
    remedy = "paths.runs" if what == "runs" else "FAQBENCH_CACHE"
    if free is None:
        means = f"it cannot be written: set {remedy} to another folder"
        yield Finding(what=what, found=str(folder), means=means, is_fatal=True)
        return
    means = "" if free > _LITTLE_DISK_BYTES else "little: a sweep of SmolLM2-135M takes gigabytes"
    yield Finding(what=what, found=f"{folder}, {n_bytes(free)} free on its disk", means=means)


def _free_bytes(folder: Path) -> int | None:
    """Return the room where a folder is, or would be made; None where nothing can be written."""
    place = next(p for p in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(p))
    try:
        with suppress(FileNotFoundError):  # it can be made, unless its name is too long, say
            folder.stat()
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"-")
            file.flush()
        return shutil.disk_usage(place).free
    except OSError:
        return None


def _cache() -> Iterator[Finding]:
    try:
        entries = list_entries(cache_root())
    except OSError:  # which is told of where the folder itself is looked at
        return
    assets = [e.name for e in entries if e.stage == "assets"]
    yield Finding(
        what="cached",
        found=f"{count(len(entries), 'entry')}, {n_bytes(sum(e.n_bytes for e in entries))}",
        means="`faqbench cache ls` says what; cache.max_gigabytes limits it",
    )
    yield Finding(
        what="packaged",
        found=", ".join(assets) or "nothing yet",
        means="" if assets else "the first run fetches 180 MB, or `faqbench fetch` does",
    )


def _launchers() -> Iterator[Finding]:
    there = [name for name, (module, _) in _LAUNCHERS.items() if _is_installed(module)]
    extras = [extra for name, (_, extra) in _LAUNCHERS.items() if name not in there]
    tools = [tool for tool in ("sbatch", "ray") if shutil.which(tool)]
    yield Finding(
        what="launchers",
        found=", ".join(["basic", *there]) + (f"; {' and '.join(tools)} found" if tools else ""),
        means=f"for the others: pip install 'faqbench[{','.join(extras)}]'" if extras else "",
    )


def _wandb() -> Iterator[Finding]:
    from faqbench.tracking.wandb import has_credentials

    account = has_credentials()
    answers = _answers(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai")
    yield Finding(
        what="W&B",
        found=f"{'an' if account else 'no'} account, {_reach(answers)}",
        means="runs appear there"
        if account and answers
        else "runs are logged offline; `faqbench sync` uploads them later",
    )


def _hub() -> Iterator[Finding]:
    from faqbench.hub import hub_answers

    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        reached, answers = "HF_HUB_OFFLINE is set", False
    else:
        answers = hub_answers(_TIMEOUT_SECONDS)
        reached = _reach(answers)
    yield Finding(
        what="hub",
        found=reached,
        means="models and data sets of the Hugging Face hub can be fetched"
        if answers
        else "packaged models and data work; hub models only where they were fetched before",
    )


def _answers(url: str) -> bool:
    import httpx

    try:
        httpx.head(url, timeout=_TIMEOUT_SECONDS)
    except (httpx.HTTPError, httpx.InvalidURL):
        return False
    return True


def _reach(answers: bool) -> str:
    return "it answers" if answers else f"no answer in {_TIMEOUT_SECONDS:.0f} s"


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
