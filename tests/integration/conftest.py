"""A folder to work in, with texts of its own and no asset, hub or account."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

import faqbench

SOURCE = str(Path(faqbench.__file__).parent.parent)  # that which the tests import
PATIENCE = 1800  # seconds until a process counts as stuck: no loaded machine comes near it
Found = TypeVar("Found")
WORDS = ("the", "of", "a", "model", "weight", "block", "scale", "group", "error", "loss", "token")


@dataclass(frozen=True)
class Workplace:
    """A folder with a cache, and the overrides of a cell that runs in a second there."""

    root: Path
    cell: tuple[str, ...]

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def reports(self) -> Path:
        return self.root / "reports"

    def faqbench(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `python -m faqbench` in the folder, in a process of its own, to its end."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=PATIENCE)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start `python -m faqbench` in the folder, in a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "faqbench", *arguments],
            cwd=self.root,
            env=os.environ | {"FAQBENCH_CACHE": str(self.root / "cache"), "PYTHONPATH": SOURCE},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@dataclass
class Forked:
    """A run of `faqbench` in a process of its own."""

    pid: int
    log: Path
    _forks: Forks
    _code: int | None = None

    def wait(self) -> int:
        """Wait for its end and return its exit code, the negative of a signal that killed it."""
        if self._code is None:
            self._code = self._forks.ask({"wait": self.pid})["status"]
        return self._code

    def until(self, condition: Callable[[], Found]) -> Found:
        """Wait until a condition gives something and return it; the process may not end before."""
        while True:
            ended = psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE
            if found := condition():
                return found
            assert not ended, self.output
            time.sleep(0.02)

    def kill(self, number: int) -> None:
        """Send a signal to the process and all that it started."""
        os.killpg(self.pid, number)

    @property
    def output(self) -> str:
        """What it has said so far, on both streams."""
        return self.log.read_text() if self.log.is_file() else ""


@dataclass
class Forks:
    """Runs `faqbench` in forks of a process that has imported everything: quick, and real processes."""

    server: subprocess.Popen[str]
    started: list[Forked] = field(default_factory=list)

    def ask(self, command: dict[str, object]) -> dict[str, int]:
        assert self.server.stdin is not None and self.server.stdout is not None
        self.server.stdin.write(json.dumps(command) + "\n")
        self.server.stdin.flush()
        answer: dict[str, int] = json.loads(self.server.stdout.readline())
        return answer

    def start(
        self, place: Workplace, *arguments: str, prelude: str = "", env: Mapping[str, str] | None = None
    ) -> Forked:
        """Start `faqbench` in a workplace; `prelude` is Python that runs in the process first."""
        log = place.root / f"log-{len(self.started)}.txt"
        command = {
            "arguments": arguments,
            "cwd": str(place.root),
            "env": {"FAQBENCH_CACHE": str(place.root / "cache"), **(env or {})},
            "log": str(log),
            "prelude": prelude,
        }
        forked = Forked(self.ask(command)["pid"], log, self)
        self.started.append(forked)
        return forked

    def run(
        self, place: Workplace, *arguments: str, prelude: str = "", env: Mapping[str, str] | None = None
    ) -> Forked:
        """Run `faqbench` in a workplace to its end."""
        forked = self.start(place, *arguments, prelude=prelude, env=env)
        forked.wait()
        return forked


@pytest.fixture(scope="session")
def fork_server() -> Iterator[subprocess.Popen[str]]:
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("forking.py"))],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None and server.stdout.readline() == "ready\n"
    yield server
    server.kill()
    server.communicate()


@pytest.fixture
def forks(fork_server: subprocess.Popen[str]) -> Forks:
    return Forks(fork_server)


def toy_text(n_texts: int, seed: int) -> str:
    draw = random.Random(seed)
    return "\n\n".join(" ".join(draw.choice(WORDS) for _ in range(30)) + "." for _ in range(n_texts))


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    """A fresh folder for cells of two blocks; this process works there too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FAQBENCH_CACHE", str(tmp_path / "cache"))
    return new_workplace(tmp_path)


def new_workplace(root: Path) -> Workplace:
    (root / "calibration.txt").write_text(toy_text(80, seed=0))
    (root / "wikitext2.txt").write_text(toy_text(10, seed=1))
    cell = (
        "model=tiny-llama",
        "model.random.num_hidden_layers=2",
        f"calibration.domain={root / 'calibration.txt'}",
        "calibration.n_samples=4",
        "calibration.seq_len=64",
        "evaluation.protocols=[wikitext2-64]",
        "evaluation.tasks=[]",
        f"data.wikitext2_path={root / 'wikitext2.txt'}",
        "tracking=none",
        "dtype=float32",
    )
    return Workplace(root, cell)
