"""A folder to work in, with texts of its own and no asset, hub or account."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

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

    def faqbench(self, *arguments: str, timeout: int = 300) -> subprocess.CompletedProcess[str]:
        """Run `python -m faqbench` in the folder, in a process of its own, to its end."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start `python -m faqbench` in the folder, in a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "faqbench", *arguments],
            cwd=self.root,
            env=os.environ | {"FAQBENCH_CACHE": str(self.root / "cache")},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def toy_text(n_texts: int, seed: int) -> str:
    draw = random.Random(seed)
    return "\n\n".join(
        " ".join(draw.choice(WORDS) for _ in range(30)) + "." for _ in range(n_texts)
    )


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    """A fresh folder; this process works there too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FAQBENCH_CACHE", str(tmp_path / "cache"))
    return new_workplace(tmp_path)


def new_workplace(root: Path) -> Workplace:
    (root / "calibration.txt").write_text(toy_text(80, seed=0))
    (root / "wikitext2.txt").write_text(toy_text(10, seed=1))
    cell = (
        "model=tiny-llama",
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
