"""How long quantizing takes, each number beside a baseline timed in the same run.

    python tests/benchmarks/bench_quantization.py                          # SmolLM2-135M
    python tests/benchmarks/bench_quantization.py --windows 8 --blocks 3   # about three minutes
    python tests/benchmarks/bench_quantization.py --model tiny-qwen3 model.random.hidden_size=4096 ...
    python tests/benchmarks/bench_quantization.py --learned 200 --blocks 2
    pytest -m benchmark tests/benchmarks/bench_quantization.py -s          # a tiny model, seconds

Times are medians of `--repeats` runs, methods taken in turn so that a busy machine hits all alike. The
module objective is timed once on three blocks, at the largest number of windows, and scaled up.
`--blocks` keeps the first blocks of the model: every cost below is proportional to their number.
`--learned` times the methods that learn a block instead, by so many steps of eight windows: the share of
that time which is forward and backward, and the memory that the process took beside the model.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from rich.console import Console
from rich.table import Table

from faqbench.cli.composing import compose_cells, parse_flags
from faqbench.config import Experiment
from faqbench.hardware import resolve_device
from faqbench.models import LoadedModel, Model, load_model
from faqbench.models.model import skeleton_of
from faqbench.pipeline.calibrating import calibration_set
from faqbench.pipeline.environment import PeakMemory
from faqbench.quantization import (
    ActivationStore,
    Calibration,
    assign_grids,
    observe,
    quantize_model,
    reads_store,
    refine,
)
from faqbench.quantization.method import scale_importance
from faqbench.quantization.module_loss import search_module_scale
from faqbench.quantization.preview import Later
from faqbench.quantization.scale import alpha_grid, search_scale
from faqbench.quantization.streams import Streams
from faqbench.stages import PlainProgress, StageCache

N_MODULE_BLOCKS = 3
LEARNED = ("signround", "lrquant")
N_LEARNED_FROM = 8  # windows, all in every step


@dataclasses.dataclass
class Bench:
    """One model, one number of calibration windows, and the statistics taken over them."""

    loaded: LoadedModel
    model: str
    overrides: tuple[str, ...]
    n_windows: int
    repeats: int
    folder: Path

    def __post_init__(self) -> None:
        self.weights = {
            name: self.loaded.model.get_submodule(name).weight.clone()
            for name in self.loaded.architecture.linear_names()
        }
        experiment = self.experiment("quant=awq")
        cache = StageCache(self.folder / "cache")
        drawn, _ = calibration_set(experiment, self.loaded.tokenizer, cache, PlainProgress())
        self.tokens = drawn.tokens
        self.batch_size = experiment.calibration.batch_size
        times = [self._observe(index) for index in range(self.repeats)]
        self.statistics_seconds = statistics.median(times)
        device = next(self.loaded.model.parameters()).device
        self.store = ActivationStore(self.folder / "0", device)

    def experiment(self, *overrides: str) -> Experiment:
        fixed = (f"model={self.model}", "quant.trace_windows=0", *self.overrides)
        flags = parse_flags((*fixed, f"calibration.n_samples={self.n_windows}", *overrides))
        return compose_cells(flags).experiments[0]

    def _observe(self, index: int) -> float:
        folder = self.folder / str(index)
        folder.mkdir()
        start = time.perf_counter()
        observe(
            self.loaded,
            self.tokens,
            batch_size=self.batch_size,
            select="all",
            folder=folder,
            progress=PlainProgress(),
        )
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def quantize(self, *overrides: str) -> float:
        """Return the seconds that one cell takes after its statistics, and put the weights back."""
        quant = self.experiment(*overrides).quant
        grids = assign_grids(self.loaded.architecture, quant)
        calibration = Calibration(tokens=self.tokens, batch_size=self.batch_size, select="all")
        store = self.store if reads_store(quant) else None
        start = time.perf_counter()
        quantize_model(self.loaded, quant, grids, store, calibration, PlainProgress())
        self._wait()
        seconds = time.perf_counter() - start
        with torch.inference_mode():
            for name, weight in self.weights.items():
                self.loaded.model.get_submodule(name).weight.copy_(weight)
        return seconds

    @torch.inference_mode()
    def search(self, loss: str) -> float:
        """Return the seconds of AWQ's scale search: the median of three blocks, times all blocks."""
        architecture = self.loaded.architecture
        quant = self.experiment("quant=awq", f"quant.search.loss={loss}").quant
        grids = assign_grids(architecture, quant)
        blocks = architecture.block_modules(self.loaded.model)
        alphas = alpha_grid(quant.search.n_grid)
        # Large batches: the module objective rounds weights anew for each, which the reference does not do.
        size = 4 * self.batch_size
        calibration = Calibration(tokens=self.tokens, batch_size=size, select="all")
        streams = Streams(self.loaded, quant, calibration)
        times = []
        for index, block in enumerate(blocks[:N_MODULE_BLOCKS]):
            start = time.perf_counter()
            known = self.store.block(index)
            streams.arrive(block, block)
            for role in architecture.roles:
                mean_abs, gram = known[role.name].mean_abs, known[role.name].gram
                importance = scale_importance(role, mean_abs, Later(), architecture, quant)
                if importance is None:
                    continue
                weights = {n: block.get_submodule(n).weight.float().clone() for n in role.linears}
                on = {n: grids[f"{architecture.blocks}.{index}.{n}"] for n in role.linears}
                objective = streams.objective(role)
                if objective is None:
                    search_scale(list(weights.values()), list(on.values()), importance, gram, alphas)
                else:
                    search_module_scale(objective, weights, on, importance, alphas)
            self._wait()
            times.append(time.perf_counter() - start)
            streams.release()
        return statistics.median(times) * len(blocks)


def medians(tasks: dict[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """Run the tasks in turn, `repeats` times, and return each one's median seconds."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(repeats):
        for name, task in tasks.items():
            times[name].append(task())
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def load(model: str, n_blocks: int | None, *overrides: str) -> LoadedModel:
    """Load a model in its calibration dtype, or its first blocks."""
    flags = parse_flags((f"model={model}", "quant=awq", *overrides))
    experiment = compose_cells(flags).experiments[0]
    dtype = getattr(torch, experiment.calibration.dtype)
    loaded = load_model(experiment.model, dtype, resolve_device("auto"), PlainProgress())
    if n_blocks is None:
        return loaded

    whole = loaded.view
    skeleton = skeleton_of(whole.module)
    owner = skeleton.get_submodule(whole.architecture.blocks.rpartition(".")[0])
    owner.layers = owner.layers[:n_blocks]
    skeleton.config.num_hidden_layers = n_blocks
    architecture = dataclasses.replace(whole.architecture, n_blocks=n_blocks)
    view = Model(skeleton, architecture, whole.tensors, whole.dtypes, whole.device)
    return dataclasses.replace(loaded, view=view)


Row = tuple[str, float, str, float, str]


def searches(bench: Bench) -> list[Row]:
    """Compare the fast searches with the module objective, whose three blocks are its repeats."""
    module, stats = bench.search("module"), bench.statistics_seconds
    against = f"module objective {module:.1f} s"
    rows: list[Row] = []
    for loss, title in (("gram", "Gram"), ("attention", "shipped")):
        seconds = statistics.median(bench.search(loss) for _ in range(bench.repeats))
        name, with_statistics = f"{title} search, {bench.n_windows} windows", seconds + stats
        rows += [
            (name, seconds, against, module / seconds, "≥ 25x"),
            (f"{name}, with statistics", with_statistics, against, module / with_statistics, "≥ 12x"),
        ]
    return rows


def methods(bench: Bench) -> list[Row]:
    """Compare whole cells with AWQ's."""
    cells = {
        "AWQ": ("quant=awq",),
        "FAQ": ("quant=faq",),
        "second cell": ("quant=faq", "bits=4", "gamma=0.5", "window=2"),
        "GPTQ": ("quant=gptq",),
        "QEP": ("quant=qep",),
        # GPTQ on both streams, role by role: what the two below read, with nothing made of it.
        "GPTQ by role": ("quant=gptaq", "quant.gptaq.alpha=0"),
        "GPTAQ": ("quant=gptaq",),
        "Qronos": ("quant=qronos", "quant.gptq.act_order=false"),
        "GPTQ on the closest range": ("quant=gptq", "quant.clip=mse"),
    }
    tasks = {name: (lambda o=overrides: bench.quantize(*o)) for name, overrides in cells.items()}
    found = medians(tasks, bench.repeats)
    awq, stats = found["AWQ"], bench.statistics_seconds
    windows = f"{bench.n_windows} windows"
    rows = [
        (f"statistics pass, {windows}", stats, "AWQ after statistics", stats / awq, ""),
        (f"FAQ, {windows}", found["FAQ"], "AWQ", found["FAQ"] / awq, "≤ 1.05x"),
        (
            "second cell, statistics shared",
            found["second cell"],
            "AWQ",
            found["second cell"] / awq,
            "≤ 15 s",
        ),
    ]
    for name, target in (("GPTQ", "≤ 2x"), ("QEP", "≤ 3x")):
        # Neither reads the statistics pass: their own passes are in their time.
        against = "AWQ and statistics"
        rows.append((f"{name}, all passes", found[name], against, found[name] / (awq + stats), target))
    for name in ("GPTAQ", "Qronos"):
        ratio = found[name] / found["GPTQ by role"]
        rows.append((f"{name}, all passes", found[name], "GPTQ on its streams", ratio, "≤ 1.25x"))
    clipped = found["GPTQ on the closest range"]
    rows.append(("clip=mse, GPTQ", clipped, "GPTQ", clipped / found["GPTQ"], ""))
    return rows


def learned(model: str, n_blocks: int, n_steps: int, *overrides: str) -> list[Row]:
    """Time methods that learn a block, and say where the time went and what memory it took."""
    loaded = load(model, n_blocks, *overrides)
    rows: list[Row] = []
    for preset in LEARNED:
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(loaded, model, overrides, N_LEARNED_FROM, 1, Path(folder))
            watch = Stopwatch()
            memory, before = PeakMemory(torch.device("cpu")), psutil.Process().memory_info().rss
            with pytest.MonkeyPatch.context() as patch, memory.section() as section:
                patch.setattr(refine._Loss, "parts", watch.timed(refine._Loss.parts))
                patch.setattr(torch.Tensor, "backward", watch.timed(torch.Tensor.backward))
                seconds = bench.quantize(
                    f"quant={preset}",
                    f"quant.refinement.steps={n_steps}",
                    f"quant.refinement.windows={N_LEARNED_FROM}",
                    f"quant.refinement.batch={N_LEARNED_FROM}",
                    "quant.refinement.patience=null",
                )
            gigabytes = (section.bytes - before) / 1e9
        title = f"{preset}, {n_steps} steps of {N_LEARNED_FROM} windows"
        share = watch.seconds / seconds
        rows += [
            (f"{title}, a block", seconds / n_blocks, "its forward and backward", share, "≥ 0.7x"),
            (f"{title}, GB of memory", gigabytes, "2 GB", gigabytes / 2, "≤ 1x"),
        ]
    show(rows, f"{model}, {n_blocks} blocks, {torch.get_num_threads()} threads")
    return rows


class Stopwatch:
    """Adds up the seconds of what it was laid around."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, its time taken."""

        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start

        return call


def show(rows: Sequence[Row], title: str) -> None:
    """Print the table."""
    table = Table(title=title)
    for header in ("what", "seconds", "against", "ratio", "wanted"):
        table.add_column(header, justify="right" if header in ("seconds", "ratio") else "left")
    for what, seconds, against, ratio, wanted in rows:
        table.add_row(what, f"{seconds:.2f}", against, f"{ratio:.2f}x", wanted)
    Console(width=110).print(table)


def run(
    model: str, windows: Sequence[int], n_blocks: int | None, repeats: int, *overrides: str
) -> list[Row]:
    """Time everything, print the table, and return its rows."""
    loaded = load(model, n_blocks, *overrides)
    rows: list[Row] = []
    gram_seconds: dict[int, float] = {}
    for n_windows in windows:
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(loaded, model, overrides, n_windows, repeats, Path(folder))
            bench.search("gram")  # warms up
            gram_seconds[n_windows] = statistics.median(bench.search("gram") for _ in range(repeats))
            if n_windows == windows[-1]:
                rows += searches(bench)
                last = methods(bench)
    rows += [
        (f"Gram search, {n} windows", s, f"{windows[0]} windows", s / gram_seconds[windows[0]], "1x")
        for n, s in gram_seconds.items()
    ]
    rows += last
    n_blocks_timed = len(loaded.architecture.block_modules(loaded.model))
    show(rows, f"{model}, {n_blocks_timed} blocks, {torch.get_num_threads()} threads, medians of {repeats}")
    return rows


@pytest.mark.benchmark
def test_every_row_of_the_table_is_a_positive_time():
    torch.set_num_threads(1)  # toy tensors
    rows = run("tiny-llama", [1, 2], 2, 3, "calibration.seq_len=64", "group_size=32")
    assert len(rows) == 14
    assert all(seconds > 0 and ratio > 0 for _, seconds, _, ratio, _ in rows)


@pytest.mark.benchmark
def test_a_learned_block_states_its_time_and_its_memory():
    torch.set_num_threads(1)
    rows = learned("tiny-llama", 1, 2, "calibration.seq_len=64", "group_size=32")
    assert len(rows) == 2 * len(LEARNED)
    assert all(seconds > 0 for what, seconds, *_ in rows if "GB" not in what)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--windows", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--blocks", type=int, default=None)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--learned", type=int, metavar="STEPS", help="time what learns a block, alone")
    parser.add_argument("overrides", nargs="*", help="of the configuration, as model.random.seed=1")
    given = parser.parse_args()
    if given.learned is not None:
        learned(given.model, given.blocks or 1, given.learned, "bits=3", *given.overrides)
        raise SystemExit
    run(given.model, given.windows, given.blocks, given.repeats, "bits=3", *given.overrides)
