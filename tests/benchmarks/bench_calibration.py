"""How long drawing a calibration set and measuring its bias take, for every scenario.

    python tests/benchmarks/bench_calibration.py                     # SmolLM2-135M, 32 windows of 512
    pytest -m benchmark tests/benchmarks/bench_calibration.py -s     # a tiny model

"warm" is with the texts in the cache of assets and nothing drawn yet; "cached" is the stage read back. The
distance is timed with the statistics of the set and of the reference already cached, as in a study, and
beside the pass that gathers them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from faqbench import pipeline
from faqbench.cli.composing import compose_cells, conf_dir, parse_flags
from faqbench.config import Experiment
from faqbench.models import ModelHolder, load_tokenizer
from faqbench.pipeline.calibrating import calibration_set
from faqbench.stages import PlainProgress, StageCache

SCENARIOS = sorted(p.stem for p in conf_dir().glob("scenario/*.yaml"))


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def composed(*overrides: str) -> Experiment:
    return compose_cells(parse_flags(["quant=awq", *overrides])).experiments[0]


def bench_drawing(overrides: list[str], folder: Path) -> None:
    progress, cache = PlainProgress(), StageCache(folder)
    tokenizer = load_tokenizer(composed(*overrides).model, progress)
    calibration_set(composed(*overrides), tokenizer, StageCache(folder / "warm"), progress)
    table = Table(title="seconds to draw and fingerprint; wanted: 2")
    for column in ("scenario", "warm", "cached", "texts", "tokens"):
        table.add_column(column)
    for scenario in SCENARIOS:
        experiment = composed(*overrides, f"scenario={scenario}")
        arguments = (experiment, tokenizer, cache, progress)
        warm, (drawn, _) = timed(lambda a=arguments: calibration_set(*a))
        cached, _ = timed(lambda a=arguments: calibration_set(*a))
        n_texts, n_tokens = str(drawn.n_texts_used), str(drawn.tokens.numel())
        table.add_row(scenario, f"{warm:.2f}", f"{cached:.2f}", n_texts, n_tokens)
    Console(width=100).print(table)


def bench_distance(overrides: list[str], folder: Path) -> None:
    cache, holder = StageCache(folder), ModelHolder()

    def seconds(seed: int) -> dict[str, float]:
        # A search of nothing: it gathers statistics, and takes no time after that.
        cell = [*overrides, f"paths.runs={folder / 'runs'}", "quant.clip=none", f"seed={seed}"]
        experiment = composed("evaluation=none", "quant.search.n_grid=0", *cell)
        data = pipeline.run(experiment, cache=cache, progress=PlainProgress(), holder=holder)
        return {name: stage.seconds for name, stage in data.record.stages.items()}

    first, later = seconds(0), seconds(1)
    gather = later["statistics"]
    table = Table(title="seconds for a bias distance; wanted: 1 beyond cached statistics")
    for column in ("what", "seconds", "of a statistics pass"):
        table.add_column(column)
    table.add_row("statistics pass of a calibration set", f"{gather:.2f}", "1.00")
    rows = (
        ("first distance of a study, reference pass included", first["bias_distance"]),
        ("every later one", later["bias_distance"]),
    )
    for what, taken in rows:
        table.add_row(what, f"{taken:.2f}", f"{taken / gather:.3f}")
    Console(width=100).print(table)


@pytest.mark.benchmark
def test_the_benchmark_runs_on_a_tiny_model(tmp_path: Path) -> None:
    overrides = ["model=tiny-llama", "calibration.n_samples=2", "calibration.seq_len=32"]
    bench_drawing([*overrides, "evaluation.protocols=[heldout-wiki-64]"], tmp_path / "a")
    bench_distance(overrides, tmp_path / "b")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", help="of the experiment, e.g. model=gemma3-270m")
    overrides = parser.parse_args().overrides
    with tempfile.TemporaryDirectory() as folder:
        bench_drawing(overrides, Path(folder) / "a")
        bench_distance(overrides, Path(folder) / "b")


if __name__ == "__main__":
    main()
