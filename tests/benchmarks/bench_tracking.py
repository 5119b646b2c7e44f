"""What showing cells in W&B costs them: seconds and peak memory, against `tracking=none`.

    python tests/benchmarks/bench_tracking.py             RTN on the packaged model, quick evaluation
    python tests/benchmarks/bench_tracking.py --tiny      a random model, to see that it runs
    python tests/benchmarks/bench_tracking.py -- -m group_size=32,64            a sweep of two

Every command is a process of its own, as a user starts it, offline, and evaluates everything anew; the
two kinds take turns, and medians are compared. A cell's seconds are those of its record, from its first
stage to its record, summed over a sweep's cells; the command's are from start to exit, the follower's
last steps included.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from platformdirs import user_cache_dir
from rich.console import Console
from rich.table import Table

KINDS = ("none", "wandb")
TINY = ("model=tiny-llama", "quant=rtn", "evaluation=none", "limit=2")
PACKAGED = ("quant=rtn", "bits=3", "evaluation=quick")
Measured = dict[str, list[float]]


def run_cells(folder: Path, kind: str, overrides: tuple[str, ...]) -> dict[str, float]:
    """Run the cells and return their seconds, the command's, and the peak memory in MB."""
    cache = folder / "cache"
    cache.mkdir(parents=True)
    assets = Path(os.environ.get("FAQBENCH_CACHE") or user_cache_dir("faqbench")) / "assets"
    (cache / "assets").symlink_to(assets)
    environment = os.environ | {"FAQBENCH_CACHE": str(cache), "WANDB_MODE": "offline"}
    command = [sys.executable, "-m", "faqbench", "-q", *overrides, f"tracking={kind}"]
    start = time.perf_counter()
    process = subprocess.Popen(
        [*command, f"paths.runs={folder / 'runs'}"], env=environment, stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, f"the cell failed under tracking={kind}"
    records = [json.loads(p.read_text()) for p in (folder / "runs").glob("*/record.json")]
    shown = list((folder / "runs" / "wandb").glob("offline-run-*/*.wandb"))
    wanted = len(records) if kind == "wandb" else 0
    assert records and len(shown) == wanted, "each run is shown, and under tracking=wandb alone"
    return {
        "cell": sum(record["seconds"] for record in records),
        "command": seconds,
        "peak": usage.ru_maxrss / 1024,
    }


def measure(folder: Path, overrides: tuple[str, ...], repeats: int) -> dict[str, Measured]:
    """Run both kinds in turn so often."""
    found: dict[str, Measured] = {kind: {} for kind in KINDS}
    for i in range(repeats):
        for kind in KINDS if i % 2 == 0 else reversed(KINDS):
            for name, value in run_cells(folder / f"{kind}{i}", kind, overrides).items():
                found[kind].setdefault(name, []).append(value)
    return found


def run(folder: Path, overrides: tuple[str, ...], repeats: int) -> list[tuple[str, ...]]:
    """Measure, print the table, and return its rows."""
    found = measure(folder, overrides, repeats)
    rows = []
    for name, unit, wanted in (
        ("cell", "s", "≤ 2 %"),
        ("command", "s", "≤ 2 % in a sweep"),
        ("peak", "MB", "≤ 50 MB"),
    ):
        without, with_ = (statistics.median(found[kind][name]) for kind in KINDS)
        added = f"{100 * (with_ / without - 1):+.1f} %" if unit == "s" else f"{with_ - without:+.0f} MB"
        spread = " ".join(f"{value:.1f}" for value in found["none"][name])
        rows.append((name, f"{with_:.1f} {unit}", f"{without:.1f} {unit} ({spread})", added, wanted))
    table = Table(title=f"tracking=wandb against none, medians of {repeats}: {' '.join(overrides)}")
    for header in ("what", "wandb", "none (each)", "added", "wanted"):
        table.add_column(header, justify="left" if header == "what" else "right")
    for row in rows:
        table.add_row(*row)
    Console(width=110).print(table)
    return rows


@pytest.mark.benchmark
def test_both_kinds_of_cells_are_measured(tmp_path):
    assert [row[0] for row in run(tmp_path, TINY, 1)] == ["cell", "command", "peak"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args()
    flags = [word for word in given.overrides if word.startswith("-")]  # Hydra wants them first
    values = [word for word in given.overrides if not word.startswith("-")]
    chosen = (*flags, *(TINY if given.tiny else PACKAGED), *values)
    with tempfile.TemporaryDirectory() as scratch:
        run(Path(scratch), chosen, given.repeats)
