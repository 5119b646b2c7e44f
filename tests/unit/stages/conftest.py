"""A toy cache, and processes that use it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from faqbench.stages import StageCache

Make = Callable[..., Path]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def make(root: Path) -> Make:
    """Write an entry of so many bytes and return its folder."""

    def entry(name: str, n_bytes: int = 1000, stage: str = "toy") -> Path:
        def build(folder: Path) -> None:
            (folder / "data.bin").write_bytes(name.encode()[:1] * n_bytes)

        with StageCache(root) as cache:
            return cache.get(stage, {"name": name}, build).path

    return entry


@pytest.fixture
def process() -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Start Python code in a process of its own and wait until it says that it is ready."""
    running: list[subprocess.Popen[str]] = []

    def start(code: str) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        running.append(child)
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        return child

    yield start
    for child in running:
        child.kill()
        child.communicate()
