"""What a run ran on: versions, code, hardware; and how much memory it took at its peak."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

import faqbench

_PACKAGES = ("torch", "transformers", "tokenizers", "lm_eval", "datasets", "numpy", "hydra-core", "wandb")
_STATUS = Path("/proc/self/status")


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Return versions, git commit and hardware. Nothing here names a user, a host or a path."""
    return {
        "faqbench": faqbench.__version__,
        "python": platform.python_version(),
        "packages": {name: v for name in _PACKAGES if (v := _version(name))},
        "git_commit": _git_commit(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": str(device),
        "device_name": device_name(device),
        "n_cores": os.cpu_count(),
        "n_threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
    }


def device_name(device: torch.device) -> str:
    """Return the name of the hardware behind a device; its type where this machine has none of it."""
    if device.type == "cpu":
        return _cpu_name()
    has_it = device.type == "cuda" and torch.cuda.is_available()
    return torch.cuda.get_device_name(device) if has_it else device.type


def start_peak_memory(device: torch.device) -> None:
    """Forget earlier peaks, so that the next reading is of this run, where the system allows it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # not Linux, or not allowed: the peak is then the process's own


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak of the device's memory on CUDA, else of the process's resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if _STATUS.is_file():
        lines = _STATUS.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@dataclass
class Stretch:
    """A stretch of a run; `bytes` is its peak once it is over."""

    bytes: int = 0


class PeakMemory:
    """Reads the peak of each section without losing that of the run.

    The system keeps one high-water mark, which a section sets back; what it stood at before is kept
    here. Where it cannot be set back, a section's peak is the process's own.

    Attributes:
        device: whose memory is measured; for the CPU, the process's resident set.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._before = 0
        start_peak_memory(device)

    @contextmanager
    def section(self) -> Iterator[Stretch]:
        """Measure what runs inside."""
        section = Stretch()
        self._before = self.bytes
        start_peak_memory(self.device)
        yield section
        section.bytes = peak_memory_bytes(self.device)

    @property
    def bytes(self) -> int:
        """The peak of the run so far, its sections included."""
        return max(self._before, peak_memory_bytes(self.device))


@cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def _git_commit() -> str | None:
    """Return the commit of the source tree that runs, or None for an installed package."""
    root, git = Path(faqbench.__file__).parent.parent, shutil.which("git")
    if git is None or not (root / ".git").exists():
        return None
    result = subprocess.run(  # noqa: S603 - a fixed command
        [git, "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return result.stdout.strip() or None


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()
