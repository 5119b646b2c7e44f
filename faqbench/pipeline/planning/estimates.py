"""What stages cost: the median of earlier records of the same model and hardware, else a measured rate.

Costs grow with a stage's work (tokens, the operations of a method), so a record is of use for other amounts
of it too, for other tasks and for other methods. Without any, the model's shape says how much there is to
do, and `rate.py` how fast this machine does it; for a device that this machine lacks, a data-centre GPU's
usual rate stands in.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import torch

from faqbench.config.method import Reads, method_of
from faqbench.pipeline.environment import device_name
from faqbench.pipeline.planning.rate import MachineRate, ModelShape, measure_rate
from faqbench.records import RunRecord

_GPU_RATE = 1.5e13  # operations per second of a data-centre GPU in float32 and bfloat16 mixed
# Of a multiple-choice task, what its choices share counted once; in words of a usual tokenizer.
_TOKENS_PER_DOCUMENT = {"boolq": 160, "hellaswag": 120, "arc_challenge": 60}
_TOKENS_OF_ANOTHER = 50
_BYTES_PER_TOKEN = 4.3  # of a usual tokenizer; a tokenizer of bytes has as many tokens more
_TOKENS_OF_A_TEXT = 300_000  # of a protocol without a limit: WikiText-2's test split
_DOCUMENTS_OF_A_TASK = 1_500
# Interpreted work, in countings to 200,000 (`MachineRate.python_seconds`): importing transformers and the
# model's classes; importing lm-eval; building one task; tokenising a protocol's text; writing a record.
_IMPORTING, _IMPORTING_TASKS, _BUILDING_A_TASK, _TOKENISING, _RECORDING = (600.0, 160.0, 30.0, 200.0, 120.0)
_SEARCHING = 1.3  # what a search takes of memory beside its products
_CLIPPING, _POWERS = (
    400.0,
    2000.0,
)  # operations' worth of trying a limit on a weight; of powers of its error
_BETWEEN = 1e9  # operations' worth of what is interpreted between two blocks
_ROUNDING = 1200.0  # operations' worth of a weight's way to the grid and back, mostly memory
_ROUNDING_AND_BACK = 600.0  # the same where gradients go back through it
_STEPS_PER_CHECK = 10  # of a learned block, on all windows that it is learned from
_PROCESS_BYTES = 700_000_000  # Python, torch and the other libraries
_LOGITS_BYTES = 400_000_000


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """What a stage takes."""

    seconds: float
    n_bytes: float


@dataclass(frozen=True, kw_only=True)
class _Observation:
    seconds_per_work: float
    bytes_per_size: float


class Estimator:
    """Estimates of one model on one kind of machine.

    Attributes:
        n_records: how many earlier records it knows of.
    """

    def __init__(
        self,
        records: Iterable[RunRecord],
        model: str,
        shape: ModelShape | None,
        device: torch.device,
        dtype: str = "float32",
    ) -> None:
        """Read the records of a model.

        Args:
            records: all of a folder; those of other models are left out, and those of other hardware or
                in another dtype where there are any of these.
            model: `model.name`.
            shape: of that model, where its configuration is on this machine.
            device: where cells run.
            dtype: of the evaluated model.
        """
        self._shape = shape
        self._device = device
        self._dtype = dtype
        self._seen: dict[tuple[str, str], list[_Observation]] = defaultdict(list)
        self._overheads: dict[bool, list[float]] = {True: [], False: []}  # by whether it computed a stage
        self._peaks: dict[str, list[int]] = defaultdict(list)
        self.n_records = 0
        alike = [
            record
            for record in records
            if record.status == "finished"
            and record.config.get("model", {}).get("name") == model
            and "stage_keys" in record.extra
        ]
        same = [
            record
            for record in alike
            if record.environment.get("device_name") == device_name(device)
            and record.config.get("dtype") == dtype
        ]
        for record in same or alike:
            with suppress(KeyError):  # a foreign or older record without what work is made of
                self._read(record)

    def stage(self, kind: str, title: str, config: Mapping[str, Any]) -> StageCost:
        """Return what computing a stage takes.

        Args:
            kind: the stage's name.
            title: the protocol, task or method.
            config: the cell's, as records hold it.
        """
        seen = self._seen.get((kind, title)) or [
            o for (k, _), all_seen in self._seen.items() if k == kind for o in all_seen
        ]
        if not seen:
            return self._by_shape(kind, title, config)
        work, size = self._amounts(kind, title, config)
        return StageCost(
            seconds=work * median(o.seconds_per_work for o in seen),
            n_bytes=size * median(o.bytes_per_size for o in seen),
        )

    @property
    def is_blind(self) -> bool:
        """Whether neither a record nor the model's shape says what anything takes."""
        return self._shape is None and self.n_records == 0

    def overhead_seconds(self, *, computes: bool) -> float:
        """Return what a cell takes beside its stages: loading, tokenising, writing the record.

        Args:
            computes: whether any stage is left to compute; a cell of cached ones loads no model.
        """
        if self._overheads[computes]:
            return median(self._overheads[computes])
        return 0.0 if self._shape is None else self._rate.python_seconds * _RECORDING

    def start_seconds(self, *, has_tasks: bool) -> float:
        """Return what the first cell of a process takes beside that: importing, loading the weights."""
        if self._overheads[True] or self._shape is None:
            return 0.0
        # Hashed twice: against the manifest, and as the weights' fingerprint.
        loading = 8.0 * self._shape.n_parameters * self._rate.hash_seconds
        imports = _IMPORTING + (_IMPORTING_TASKS if has_tasks else 0.0)
        return self._rate.python_seconds * imports + loading

    def peak_memory_bytes(self, config: Mapping[str, Any], streamed: tuple[int, int] | None = None) -> int:
        """Return the most memory that a cell holds at once.

        Args:
            config: the cell's, as records hold it.
            streamed: `streamed_bytes` of its model where it is read block by block.
        """
        if streamed is not None:
            model, room = streamed
            return _PROCESS_BYTES + model + min(self._waiting_bytes(config), room)
        method = str(config["quant"]["name"])
        peaks = self._peaks.get(method) or [p for all_of in self._peaks.values() for p in all_of]
        if peaks:
            return int(median(peaks))
        if self._shape is None:
            return _PROCESS_BYTES
        return int(
            _PROCESS_BYTES
            + 4 * self._shape.n_parameters
            + self._stream_bytes(config)
            + 3 * 4 * self._shape.n_gram_elements
            + _LOGITS_BYTES
        )

    def scratch_bytes(self, config: Mapping[str, Any], streamed: tuple[int, int] | None = None) -> int:
        """Return what hidden states take on disk meanwhile; arguments as for `peak_memory_bytes`."""
        if streamed is None or (waiting := self._waiting_bytes(config)) <= streamed[1]:
            return 0
        return waiting

    def _waiting_bytes(self, config: Mapping[str, Any]) -> int:
        """Return what hidden states that wait between two blocks take: of streams, or of an evaluation."""
        if self._shape is None:
            return 0
        evaluation = config["evaluation"]
        n_models = 2 if evaluation["kl"] and config["quant"]["round"] != "none" else 1
        scored = n_models * sum(_work("perplexity", p, config) for p in evaluation["protocols"])
        scored += sum(_work("tasks", t, config) for t in evaluation["tasks"])
        n_bytes = getattr(torch, self._dtype).itemsize
        return max(self._stream_bytes(config), int(n_bytes * scored * self._shape.hidden_size))

    def _stream_bytes(self, config: Mapping[str, Any]) -> int:
        """Return what the hidden states of the calibration windows take, on both streams."""
        if self._shape is None or config["quant"]["round"] == "none":
            return 0
        return int(8 * _work("statistics", "", config) * self._shape.hidden_size)

    def _read(self, record: RunRecord) -> None:
        method = str(record.config["quant"]["name"])
        spent, computes = 0.0, False
        for use in record.extra["stage_keys"]:
            spent += use["seconds"]
            if not use["cached"]:
                computes = True
                kind = use["entry"].partition("/")[0]
                work, size = self._amounts(kind, use["title"], record.config)
                self._seen[kind, use["title"]].append(
                    _Observation(
                        seconds_per_work=use["seconds"] / work, bytes_per_size=use["n_bytes"] / size
                    )
                )
        self._overheads[computes].append(max(0.0, record.seconds - spent))
        self._peaks[method].append(record.peak_memory_bytes)
        self.n_records += 1

    def _amounts(self, kind: str, title: str, config: Mapping[str, Any]) -> tuple[float, float]:
        """Return what a stage's seconds and what its bytes grow with, whichever its title."""
        work = _work(kind, title, config)
        if kind == "quantized" and self._shape is not None:
            size = _bytes_of_shape(self._shape, kind, title, config)
            return _quantizing(self._shape, config) + _BETWEEN * self._shape.n_blocks, size
        return work, work

    def _by_shape(self, kind: str, title: str, config: Mapping[str, Any]) -> StageCost:
        if self._shape is None:
            return StageCost(seconds=0.0, n_bytes=0.0)
        return StageCost(
            seconds=_seconds_of_shape(self._shape, self._rate, kind, title, config),
            n_bytes=_bytes_of_shape(self._shape, kind, title, config),
        )

    @cached_property
    def _rate(self) -> MachineRate:
        assert self._shape is not None
        if self._device.type == "cuda" and not torch.cuda.is_available():
            return _usual_gpu(self._shape)
        return measure_rate(self._shape, self._device, getattr(torch, self._dtype))


def _usual_gpu(shape: ModelShape) -> MachineRate:
    block = 2.0 * shape.n_block_weights / shape.n_blocks / _GPU_RATE
    return MachineRate(
        block_seconds=block,
        exact_block_seconds=block,
        head_seconds=2.0 * shape.vocab_size * shape.hidden_size / _GPU_RATE,
        operations_per_second=_GPU_RATE,
        hash_seconds=1e-9,
        python_seconds=0.01,
    )


def _work(kind: str, title: str, config: Mapping[str, Any]) -> float:
    """Return the amount of a stage's work: its tokens, or one."""
    evaluation, limit = config["evaluation"], config["limit"]
    if kind in ("means", "calibration") and title == "reference":
        return float(config["calibration"]["n_reference"] * config["calibration"]["seq_len"])
    if kind in ("statistics", "calibration", "means"):
        scenario, calibration = config["scenario"], config["calibration"]
        n_samples = scenario.get("n_samples") or calibration["n_samples"]
        return float(n_samples * calibration["seq_len"])
    if kind in ("perplexity", "reference"):
        caps = [float(n) for n in (evaluation["n_windows"], limit) if n is not None]
        whole = max(1.0, _tokens_of_a_text(title, config) / _seq_len(title))
        return min([*caps, whole]) * _seq_len(title)
    if kind == "tasks":
        caps = [n for n in (evaluation["n_documents"], limit) if n is not None]
        n_documents = float(min(caps, default=_DOCUMENTS_OF_A_TASK))
        return n_documents * _tokens_per_document(title, config)
    return 1.0


def _seconds_of_shape(
    shape: ModelShape, rate: MachineRate, kind: str, title: str, config: Mapping[str, Any]
) -> float:
    """Return what a stage takes at a measured rate."""
    work = _work(kind, title, config)
    forward, exact = shape.n_blocks * rate.block_seconds, shape.n_blocks * rate.exact_block_seconds
    operations = rate.operations_per_second
    if kind == "windows":
        return rate.python_seconds * _TOKENISING
    if kind == "statistics":
        return work * (exact + shape.n_blocks * shape.n_gram_elements / operations)
    if kind == "means":  # those of a draw that is searched in are copied from its statistics
        is_copied = title == "drawn" and Reads.GRAM in method_of(config["quant"]).reads
        return 0.0 if is_copied else work * exact
    if kind in ("perplexity", "reference"):
        # Divergence takes the full precision model's logits as well.
        n_heads = 2.5 if kind == "perplexity" and config["evaluation"]["kl"] else 1.0
        return work * (forward + n_heads * rate.head_seconds)
    if kind == "tasks":
        return work * forward + rate.python_seconds * _BUILDING_A_TASK
    if kind == "quantized":
        counted = _quantizing(shape, config)
        return _SEARCHING * counted / operations + rate.python_seconds * shape.n_blocks
    return 0.0


def _bytes_of_shape(shape: ModelShape, kind: str, title: str, config: Mapping[str, Any]) -> float:
    """Return the bytes that a stage leaves in the cache."""
    work = _work(kind, title, config)
    if kind == "statistics":
        return 4.0 * shape.n_blocks * shape.n_gram_elements
    if kind in ("perplexity", "reference"):
        hidden = 2.0 * shape.hidden_size if kind == "reference" else 0.0
        return work * (4.0 + hidden)
    if kind == "means":
        return 4.0 * shape.n_blocks * sum(w for w, _ in shape.linears.values())
    if kind == "quantized":
        bits = int(config["quant"]["bits"])
        per_weight = 0.25 if bits == 2 else 0.5 if bits <= 4 else 1.0
        return 1.2 * shape.n_block_weights * per_weight
    return 1e5 if kind == "tasks" else 1e3 if kind == "weights" else 0.0


def _tokens_of_a_text(title: str, config: Mapping[str, Any]) -> float:
    """Return the tokens of a protocol's whole text; those of a local file are told by its size."""
    path = (config.get("data") or {}).get("wikitext2_path")
    if path is None or not title.startswith("wikitext2"):
        return _TOKENS_OF_A_TEXT
    try:
        n_bytes = Path(path).stat().st_size
    except (OSError, ValueError):  # moved since, or of another machine
        return _TOKENS_OF_A_TEXT
    return n_bytes if config["model"]["tokenizer"] == "bytes" else n_bytes / _BYTES_PER_TOKEN


def _seq_len(title: str) -> int:
    """Return the tokens of a protocol's window, which its name ends with."""
    match = re.search(r"-(\d+)$", title)
    return int(match[1]) if match else 512


def _tokens_per_document(title: str, config: Mapping[str, Any]) -> float:
    words = [n for name, n in _TOKENS_PER_DOCUMENT.items() if title.startswith(name)]
    finer = _BYTES_PER_TOKEN if config["model"]["tokenizer"] == "bytes" else 1.0
    return (words[0] if words else _TOKENS_OF_ANOTHER) * finer


def _quantizing(shape: ModelShape, config: Mapping[str, Any]) -> float:
    """Return the operations of a walk: roundings, searches through Gram matrices, factorisations."""
    quant, tokens, blocks = config["quant"], _work("statistics", "", config), shape.n_blocks
    products = blocks * sum(out * width * width for width, out in shape.linears.values())
    cubes = blocks * sum(width**3 for width, _ in shape.linears.values())
    forward = 2.0 * shape.n_block_weights
    operations = _ROUNDING * shape.n_block_weights
    method = method_of(quant)
    if Reads.MEANS in method["scale"].reads:
        operations += quant["search"]["n_grid"] * products
    if not method["clip"].is_idle:
        tried = quant["mse"]["steps"] * _POWERS if method.owns("mse") else 0.0
        tried = tried or quant["search"]["clip_steps"] * _CLIPPING
        operations += tried * shape.n_block_weights
    if Reads.BLOCKS in method.reads:
        window = float(config["calibration"]["seq_len"])
        operations += _learning(shape, quant["refinement"], tokens / window, window)
    if Reads.BOTH_STREAMS in method.reads:
        operations += tokens * (8 * forward + 4 * blocks * shape.n_gram_elements) + cubes + products
    if Reads.HESSIAN in method.reads:
        operations += tokens * (forward + blocks * shape.n_gram_elements) + cubes + products
    return operations


def _learning(shape: ModelShape, settings: Mapping[str, Any], n_windows: float, window: float) -> float:
    """Return the operations of learning every block, if no descent ends early."""
    forward, steps = 2.0 * shape.n_block_weights * window, settings["steps"]
    learned = min(float(settings["windows"]), n_windows)
    rounding = _ROUNDING_AND_BACK * shape.n_block_weights
    in_steps: float = steps * (3 * forward * min(float(settings["batch"]), learned) + rounding)
    in_checks: float = (1 + steps / _STEPS_PER_CHECK) * forward * learned
    return in_steps + in_checks + 4 * forward * learned
