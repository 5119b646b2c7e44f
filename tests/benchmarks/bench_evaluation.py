"""How fast evaluation is, each number beside a baseline timed in the same run.

    python tests/benchmarks/bench_evaluation.py                      # all parts on SmolLM2-135M
    python tests/benchmarks/bench_evaluation.py --parts tasks boolq  # about ten minutes on two cores
    pytest -m benchmark tests/benchmarks/bench_evaluation.py -s      # a tiny model, seconds

    rate         the share of the machine's own matrix rate that evaluation reaches on the model's shapes
    tasks        ARC-easy, PIQA and HellaSwag against lm-eval's HFLM at its best batch size
    boolq        the same for BoolQ
    perplexity   against a plain loop over windows at its best batch size; the cost of divergence
    activations  windows with the inputs of linears on a grid, and of down rotated online too; a rotation
    spread       how far scores in the model's dtype move with the budget of tokens per forward
    memory       the peak of a process that evaluates, against the size of the model

The matrix rate is that of products of the model's own shapes and dtype, alone; evaluation is credited with
the products of tokens that are needed (linears of every token, the head of scored ones), without padding
and without attention. The dtype is `auto` unless `dtype=...` says otherwise: `doctor` names it.

The best batch size of a baseline is that of one run on a quarter of the documents or windows. Times are
medians of `--repeats` runs, taken in turn so that a busy machine hits all alike.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional

from faqbench.assets import packaged_dataset
from faqbench.cli.composing import compose_cells, parse_flags
from faqbench.config import Experiment
from faqbench.evaluation import (
    HiddenStates,
    HiddenWriter,
    harness,
    protocol_tokens,
    resolve_protocol,
    score_tokens,
)
from faqbench.evaluation.packed_scoring import TaskModel, score_packs
from faqbench.evaluation.packing import Request, pack
from faqbench.evaluation.results import packaged_task, read_documents
from faqbench.evaluation.scorer import Scorer
from faqbench.hardware import resolve_device
from faqbench.models import Architecture, LoadedModel, Model, RotatedTensors, load_model, prepare
from faqbench.pipeline.planning.rate import ModelShape, shape_of
from faqbench.quantization.activation_grid import ActivationGrid
from faqbench.stages import PlainProgress

TASKS = ("arc_easy_validation", "piqa_validation", "hellaswag_validation")
BOOLQ = "boolq_validation"
BATCH_SIZES = (4, 8, 16, 32)
BUDGETS = (256, 512, 1024, 2048, 4096)
PARTS = ("rate", "tasks", "boolq", "perplexity", "activations", "spread", "memory")
Row = tuple[str, str, str, str, str]


@dataclasses.dataclass
class Bench:
    """One model in the dtype of its evaluation, and how much of everything is run."""

    loaded: LoadedModel
    experiment: Experiment
    n_documents: int
    n_windows: int
    repeats: int

    def instances(self, task: str, n_documents: int) -> list[Any]:
        """Return lm-eval's requests for the first documents of a packaged task."""
        packaged = packaged_task(task)
        parquet = packaged_dataset(packaged.dataset, PlainProgress())
        some = read_documents(packaged, parquet, n_documents)
        with harness._quiet():
            built = harness.build_packaged(packaged, some)
            built.build_all_requests(rank=0, world_size=1)
        return [SimpleNamespace(args=i.args, task_name=task, doc=i.doc_id) for i in built.instances]

    def hflm(self, batch_size: int) -> Any:
        """Return lm-eval's own HFLM, as it is by default."""
        from lm_eval.models.huggingface import HFLM

        return HFLM(
            pretrained=self.loaded.model,
            tokenizer=self.loaded.tokenizer,
            batch_size=batch_size,
            add_bos_token=False,
        )

    def scorer(self, model: TaskModel | None = None) -> Any:
        """Return ours; without a `TaskModel` it has still to find out whether the model can be packed."""
        model = model or TaskModel(self.loaded.model, self.loaded.tokenizer)
        return Scorer(model, self.experiment, PlainProgress(), "benchmark")

    def compare(self, tasks: Sequence[str], wanted: str) -> list[Row]:
        """Time tasks against HFLM at its best batch size for each.

        Each repeat is a cell of its own: whether its model can be packed is found out by its first task.
        """
        rows, ours, theirs = [], 0.0, 0.0
        cells = [TaskModel(self.loaded.model, self.loaded.tokenizer) for _ in range(self.repeats)]
        for task in tasks:
            few = self.instances(task, max(1, self.n_documents // 4))
            times = {n: seconds(lambda n=n, r=few: ask(self.hflm(n), r)) for n in BATCH_SIZES}
            best = min(times, key=times.__getitem__)
            requests = self.instances(task, self.n_documents)
            model_of, hflm = iter(cells), self.hflm(best)
            found = medians(
                {
                    "ours": lambda r=requests, m=model_of: ask(self.scorer(next(m)), r),
                    "theirs": lambda r=requests, lm=hflm: ask(lm, r),
                },
                self.repeats,
            )
            ours, theirs = ours + found["ours"], theirs + found["theirs"]
            against = f"HFLM, batch {best}: {found['theirs']:.1f} s"
            ratio = found["theirs"] / found["ours"]
            rows.append(
                (
                    f"{task}, {len(requests)} requests",
                    f"{found['ours']:.1f} s",
                    against,
                    f"{ratio:.2f}x",
                    "",
                )
            )
        total = ("together", f"{ours:.1f} s", f"HFLM: {theirs:.1f} s", f"{theirs / ours:.2f}x", wanted)
        return [*rows, total] if len(rows) > 1 else [(*rows[0][:4], wanted)]

    def rate(self) -> list[Row]:
        """Compare operations per second of evaluation with those of its products alone."""
        shape = shape_of(self.loaded.model.config.to_dict())
        assert shape is not None, "a model that the benchmark knows"
        of_token, of_head = 2 * shape.n_block_weights, 2 * shape.hidden_size * shape.vocab_size
        tokens = self._windows()
        requests = {task: self.instances(task, self.n_documents) for task in (*TASKS, BOOLQ)}
        work = {f"{len(tokens)} windows": tokens.numel() * (of_token + of_head)}
        asks: dict[str, Callable[[], object]] = {next(iter(work)): lambda: self._score(tokens)}
        for task, asked in requests.items():
            packs = pack(self._encoded(asked), self.experiment.evaluation.batch_tokens)
            n_scored = sum(len(np.unique(np.concatenate([s.nodes for s in p.scored]))) for p in packs)
            work[task] = sum(p.n_nodes for p in packs) * of_token + n_scored * of_head
            asks[task] = lambda asked=asked: ask(self.scorer(), asked)  # type: ignore[misc]
        products, n_operations = self._products(shape)
        found = medians({"products": products, **asks}, self.repeats)
        alone = n_operations / found["products"]
        return [
            (name, f"{n / found[name] / 1e9:.0f} GFLOP/s", f"products alone: {alone / 1e9:.0f} GFLOP/s",
             f"{n / found[name] / alone:.2f}x", "≥ 0.6x")
            for name, n in work.items()
        ]  # fmt: skip

    def _products(self, shape: ModelShape) -> tuple[Callable[[], object], int]:
        """Return the linears of one block and as large a part of the head, and their operations."""
        budget = self.experiment.evaluation.batch_tokens
        sizes = [*shape.linears.values(), (shape.hidden_size, shape.vocab_size // shape.n_blocks)]
        dtype, device = next(self.loaded.model.parameters()).dtype, self.loaded.model.device
        operands = [
            [torch.randn(n, width, device=device).to(dtype) for n in (budget, rows)]
            for width, rows in sizes
        ]

        @torch.inference_mode()
        def products() -> None:
            for _ in range(shape.n_blocks):
                for inputs, weight in operands:
                    functional.linear(inputs, weight)

        n_operations = 2 * budget * shape.n_blocks * sum(width * rows for width, rows in sizes)
        return products, n_operations

    def _windows(self) -> torch.Tensor:
        name = self.experiment.evaluation.protocols[0]
        protocol = resolve_protocol(name, self.experiment.data)
        tokens: torch.Tensor = protocol_tokens(
            protocol, self.loaded.tokenizer, self.experiment, PlainProgress()
        ).tokens[: self.n_windows]
        return tokens

    def perplexity(self) -> list[Row]:
        """Time a protocol's windows against a plain loop, without and with divergence."""
        name, tokens = self.experiment.evaluation.protocols[0], self._windows()
        few = tokens[: max(1, self.n_windows // 4)]
        times = {n: seconds(lambda n=n: plain_loop(self.loaded.model, few, n)) for n in (1, 2, 4, 8)}
        best = min(times, key=times.__getitem__)
        folder = self.folder
        with HiddenWriter(folder, tokens.shape[1]) as keep:
            self._score(tokens, keep=keep)
        reference = HiddenStates.open(folder)
        found = medians(
            {
                "ours": lambda: self._score(tokens),
                "theirs": lambda: plain_loop(self.loaded.model, tokens, best),
                "divergence": lambda: self._score(tokens, reference=reference),
            },
            self.repeats,
        )
        against = f"plain loop, batch {best}: {found['theirs']:.1f} s"
        title = f"{name}, {len(tokens)} windows"
        rate = tokens.numel() / found["ours"]
        more = found["divergence"] / found["ours"]
        return [
            (f"{title}, {rate:.0f} tokens/s", f"{found['ours']:.1f} s", against,
             f"{found['theirs'] / found['ours']:.2f}x", "≥ 1.1x"),
            (f"{title}, with divergence", f"{found['divergence']:.1f} s", "without", f"{more:.2f}x", ""),
        ]  # fmt: skip

    def activations(self) -> list[Row]:
        """Time a protocol's windows with quantized activations against those without."""
        name, tokens, view = (self.experiment.evaluation.protocols[0], self._windows(), self.loaded.view)
        quant = compose("tiny-llama", "quant=w8a8", "quant.rotation.places=[R1,R2,R4]").quant
        quant = quant.model_copy(update={"rotate": "hadamard"})
        rotated = RotatedTensors(view.tensors, view.architecture, quant)

        def on_grid(module: Any, architecture: Architecture) -> None:
            for linear in architecture.linear_names():
                prepare(module, linear, ActivationGrid(quant.activations, None, None))

        def both(module: Any, architecture: Architecture) -> None:
            rotated.prepare(module, architecture)
            on_grid(module, architecture)

        start = time.perf_counter()
        views = {"plain": view, "rotated": view.view(tensors=rotated, prepare=both).fill()}
        folding = time.perf_counter() - start
        views["grid"] = view.view(prepare=on_grid).fill()
        budget = self.experiment.evaluation.batch_tokens

        def score(model: Model) -> None:
            score_tokens(model.fill().module, tokens, budget, PlainProgress())

        tasks = {key: partial(score, model) for key, model in views.items()}
        found = medians(tasks, self.repeats)
        against = f"without: {found['plain']:.1f} s"
        title = f"{name}, {len(tokens)} windows"
        return [
            (f"{title}, 8-bit activations", f"{found['grid']:.1f} s", against,
             f"{found['grid'] / found['plain']:.2f}x", "≤ 1.3x"),
            (f"{title}, and R4 online", f"{found['rotated']:.1f} s", against,
             f"{found['rotated'] / found['plain']:.2f}x", ""),
            ("R1, R2 and R4 folded", f"{folding:.1f} s", f"without: {found['plain']:.1f} s",
             f"{folding / found['plain']:.2f}x", "≤ 5 s"),
        ]  # fmt: skip

    @property
    def folder(self) -> Any:
        import tempfile
        from pathlib import Path

        return Path(tempfile.mkdtemp())

    def _score(self, tokens: torch.Tensor, **more: Any) -> Any:
        budget = self.experiment.evaluation.batch_tokens
        return score_tokens(self.loaded.model, tokens, budget, PlainProgress(), **more)

    def spread(self) -> list[Row]:
        """Score the same documents under several budgets, and say how far apart they come out."""
        rows = []
        for task in TASKS:
            instances = self.instances(task, self.n_documents)
            requests = self._encoded(instances)
            scores = np.array([self._packed(requests, budget) for budget in BUDGETS])
            largest, typical = np.ptp(scores, axis=0).max(), np.median(np.ptp(scores, axis=0))
            choices = np.array([chosen(instances, row) for row in scores])
            n_moved = int((choices != choices[0]).any(axis=0).sum())
            rows.append(
                (f"{task}, budgets {BUDGETS[0]} to {BUDGETS[-1]}", f"{largest:.3f} nats at most",
                 f"{typical:.3f} in the median", f"{n_moved} of {choices.shape[1]}", "other choices")
            )  # fmt: skip
        return rows

    def _encoded(self, instances: list[Any]) -> list[Request]:
        lm = self.scorer()
        taken: list[Request] = []
        lm._loglikelihood_tokens = lambda requests, **_: (
            taken.extend(
                Request(tokens=(*context, *wanted), n_scored=len(wanted)) for _, context, wanted in requests
            )
            or [(0.0, False)] * len(requests)
        )
        lm.loglikelihood(instances)
        return taken

    def _packed(self, requests: list[Request], budget: int) -> Any:
        packs = pack(requests, budget)
        return score_packs(self.loaded.model, packs, len(requests), lambda _n=1: None)[0]


def ask(lm: Any, requests: list[Any]) -> Any:
    """Score requests; log lines and bars are silent, as in a run."""
    with harness._quiet():
        return lm.loglikelihood(requests, disable_tqdm=True)


def chosen(instances: list[Any], scores: Any) -> list[int]:
    """Return the choice with the highest log-likelihood for every document."""
    documents: dict[int, list[float]] = {}
    for instance, score in zip(instances, scores, strict=True):
        documents.setdefault(instance.doc, []).append(score)
    return [int(np.argmax(values)) for values in documents.values()]


@torch.inference_mode()
def plain_loop(model: Any, tokens: torch.Tensor, batch_size: int) -> float:
    """Return the mean loss the plain way: all logits of a batch, in float32, at once."""
    losses = []
    for batch in tokens.split(batch_size):
        logits = model(input_ids=batch.to(model.device), use_cache=False).logits[:, :-1].float()
        targets = batch[:, 1:].to(model.device)
        losses.append(functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none"))
    return float(torch.cat(losses).double().mean())


def seconds(task: Callable[[], object]) -> float:
    """Return how long a task takes."""
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


def medians(tasks: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Run the tasks in turn, `repeats` times, and return each one's median seconds."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(repeats):
        for name, task in tasks.items():
            times[name].append(seconds(task))
    return {name: statistics.median(found) for name, found in times.items()}


def memory(model: str, n_documents: int, *overrides: str) -> list[Row]:
    """Evaluate in a process of its own, and compare its peak with the model."""
    command = [
        sys.executable,
        __file__,
        "--model",
        model,
        "--documents",
        str(n_documents),
        "--child",
        *overrides,
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(result.stdout.splitlines()[-1])
    size = found.pop("model_bytes")
    rows = []
    for name, peak in found.items():
        allowed = 1.5 * size + 1e9
        rows.append(
            (name, f"{peak / 1e6:.0f} MB", f"1.5 x {size / 1e6:.0f} MB + 1 GB",
             f"{peak / allowed:.2f}x", "≤ 1x")
        )  # fmt: skip
    return rows


def child(model: str, n_documents: int, *overrides: str) -> None:
    """Evaluate every protocol and task once, and print the peak of each section as JSON."""
    from faqbench.evaluation import run_task
    from faqbench.pipeline.environment import PeakMemory

    experiment = compose(model, f"evaluation.n_documents={n_documents}", *overrides)
    loaded = load(model, experiment)
    found = {"model_bytes": sum(p.numel() * p.element_size() for p in loaded.model.parameters())}
    meter = PeakMemory(torch.device("cpu"))
    progress, budget = PlainProgress(), experiment.evaluation.batch_tokens
    for name in experiment.evaluation.protocols:
        with meter.section() as section:
            protocol = resolve_protocol(name, experiment.data)
            tokens = protocol_tokens(protocol, loaded.tokenizer, experiment, progress)
            score_tokens(loaded.model, tokens.tokens, budget, progress)
        found[name] = section.bytes
    model = TaskModel(loaded.model, loaded.tokenizer)
    for name in (*experiment.evaluation.tasks, "hellaswag_validation"):
        with meter.section() as section:
            run_task(name, model, experiment, progress)
        found[name] = section.bytes
    print(json.dumps(found))


def compose(model: str, *overrides: str) -> Experiment:
    """Compose the quick evaluation of a model."""
    flags = parse_flags((f"model={model}", "quant=fp", *overrides))
    return compose_cells(flags).experiments[0]


def load(model: str, experiment: Experiment) -> LoadedModel:
    """Load a model in the dtype of its evaluation."""
    dtype = getattr(torch, experiment.dtype)
    return load_model(experiment.model, dtype, resolve_device("auto"), PlainProgress())


def run(
    model: str, parts: Sequence[str], n_documents: int, n_windows: int, repeats: int, *overrides: str
) -> list[Row]:
    """Run some parts, print the table, and return its rows."""
    experiment = compose(model, "evaluation.n_windows=null", *overrides)
    bench = Bench(load(model, experiment), experiment, n_documents, n_windows, repeats)
    rows: list[Row] = []
    for part in parts:
        rows += {
            "rate": bench.rate,
            "tasks": lambda: bench.compare(TASKS, "≥ 2.5x"),
            "boolq": lambda: bench.compare([BOOLQ], "≥ 1.3x"),
            "perplexity": bench.perplexity,
            "activations": bench.activations,
            "spread": bench.spread,
            "memory": lambda: memory(model, n_documents, *overrides),
        }[part]()
    table = Table(
        title=f"{model}, {experiment.dtype}, first {n_documents} documents, "
        f"{torch.get_num_threads()} threads, medians of {repeats}"
    )
    for header in ("what", "found", "against", "ratio", "wanted"):
        table.add_column(header, justify="right" if header in ("found", "ratio") else "left")
    for row in rows:
        table.add_row(*row)
    Console(width=130).print(table)
    return rows


@pytest.mark.benchmark
def test_every_row_of_the_table_has_a_ratio():
    torch.set_num_threads(1)  # toy tensors
    parts = [part for part in PARTS if part != "memory"]
    rows = run("tiny-llama", parts, 3, 2, 1, "evaluation.protocols=[heldout-medicine-64]")
    assert len(rows) == 5 + 4 + 1 + 2 + 3 + 3
    assert all(row[3].endswith("x") or " of " in row[3] for row in rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("overrides", nargs="*", help="such as dtype=bfloat16")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.model, given.documents, *given.overrides)
    else:
        sizes = given.documents, given.windows, given.repeats
        run(given.model, given.parts, *sizes, *given.overrides)
