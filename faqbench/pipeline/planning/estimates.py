"""What stages cost: the median of earlier records of the same model and hardware, else the model's shape.

Costs grow with a stage's work (tokens, documents), so a record is of use for other amounts of it too. The
shape gives no more than an order of magnitude: operations, at a rate measured by one small product.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from faqbench.pipeline.planning.shape import ModelShape
from faqbench.quantization.reproducible import one_thread
from faqbench.records import RunRecord

_GPU_RATE = 1.5e13  # operations per second of a data-centre GPU in float32 and bfloat16 mixed
_TOKENS_PER_DOCUMENT = 150  # of a multiple-choice task, all choices together
_TOKENS_OF_A_TEXT = 300_000  # of a protocol without a limit: WikiText-2's test split
_DOCUMENTS_OF_A_TASK = 1_500
_PROCESS_BYTES = 700_000_000  # Python, torch and the other libraries
_LOGITS_BYTES = 400_000_000


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a stage takes."""

    seconds: float
    n_bytes: float


@dataclass(frozen=True, kw_only=True)
class _Observation:
    seconds_per_work: float
    bytes_per_work: float


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
        device_name: str,
        device: str,
    ) -> None:
        """Read the records of a model.

        Args:
            records: all of a folder; those of other models are left out, and those of other hardware
                where there are any of this.
            model: `model.name`.
            shape: of that model, where its configuration is on this machine.
            device_name: as records name it, `environment.device_name`.
            device: cpu or cuda.
        """
        self._shape = shape
        self._rate = _GPU_RATE if device == "cuda" else None
        self._seen: dict[tuple[str, str], list[_Observation]] = defaultdict(list)
        self._overheads: list[float] = []
        self._peaks: dict[str, list[int]] = defaultdict(list)
        self.n_records = 0
        alike = [
            record
            for record in records
            if record.status == "finished"
            and record.config.get("model", {}).get("name") == model
            and "stage_keys" in record.extra
        ]
        same = [r for r in alike if r.environment.get("device_name") == device_name]
        for record in same or alike:
            with suppress(KeyError):  # a foreign or older record without what work is made of
                self._read(record)

    def stage(self, kind: str, title: str, config: Mapping[str, Any]) -> Cost:
        """Return what computing a stage takes.

        Args:
            kind: the stage's name.
            title: the protocol, task or method.
            config: the cell's, as records hold it.
        """
        seen = self._seen.get((kind, title)) or [
            o for (k, _), all_seen in self._seen.items() if k == kind for o in all_seen
        ]
        work = _work(kind, config)
        if seen:
            return Cost(
                seconds=work * median(o.seconds_per_work for o in seen),
                n_bytes=work * median(o.bytes_per_work for o in seen),
            )
        return self._by_shape(kind, work, config)

    @property
    def is_blind(self) -> bool:
        """Whether neither a record nor the model's shape says what anything takes."""
        return self._shape is None and self.n_records == 0

    def overhead_seconds(self) -> float:
        """Return what a cell takes beside its stages: loading, tokenising, writing the record."""
        if self._overheads:
            return median(self._overheads)
        n_parameters = self._shape.n_parameters if self._shape else 0
        return 3.0 + 4 * n_parameters / 5e8

    def peak_memory_bytes(self, config: Mapping[str, Any]) -> int:
        """Return the most memory that a cell holds at once."""
        method = str(config["quant"]["name"])
        peaks = self._peaks.get(method) or [p for all_of in self._peaks.values() for p in all_of]
        if peaks:
            return int(median(peaks))
        if self._shape is None:
            return _PROCESS_BYTES
        tokens = _work("statistics", config)
        streams = 0 if config["quant"]["round"] == "none" else 2
        return int(
            _PROCESS_BYTES
            + 4 * self._shape.n_parameters
            + 4 * tokens * self._shape.hidden_size * streams
            + 3 * 4 * self._shape.n_gram_elements
            + _LOGITS_BYTES
        )

    def _read(self, record: RunRecord) -> None:
        method = str(record.config["quant"]["name"])
        spent = 0.0
        for use in record.extra["stage_keys"]:
            spent += use["seconds"]
            if not use["cached"]:
                kind = use["entry"].partition("/")[0]
                work = _work(kind, record.config)
                self._seen[kind, use["title"]].append(
                    _Observation(
                        seconds_per_work=use["seconds"] / work,
                        bytes_per_work=use["n_bytes"] / work,
                    )
                )
        self._overheads.append(max(0.0, record.seconds - spent))
        self._peaks[method].append(record.peak_memory_bytes)
        self.n_records += 1

    def _by_shape(self, kind: str, work: float, config: Mapping[str, Any]) -> Cost:
        if self._shape is None:
            return Cost(seconds=0.0, n_bytes=0.0)
        self._rate = self._rate or _cpu_rate()
        operations, n_bytes = _cost_of_shape(self._shape, kind, work, config)
        return Cost(seconds=operations / self._rate, n_bytes=n_bytes)


def _work(kind: str, config: Mapping[str, Any]) -> float:
    """Return the amount of a stage's work: tokens, documents, or one."""
    evaluation, limit = config["evaluation"], config["limit"]
    if kind == "reference_means":
        return float(config["calibration"]["n_reference"] * config["calibration"]["seq_len"])
    if kind in ("statistics", "calibration"):
        scenario, calibration = config["scenario"], config["calibration"]
        n_samples = scenario.get("n_samples") or calibration["n_samples"]
        return float(n_samples * calibration["seq_len"])
    if kind in ("perplexity", "reference"):
        caps = [n for n in (evaluation["n_windows"], limit) if n is not None]
        return float(min(caps)) if caps else _TOKENS_OF_A_TEXT / 512
    if kind == "tasks":
        caps = [n for n in (evaluation["n_documents"], limit) if n is not None]
        return float(min(caps)) if caps else float(_DOCUMENTS_OF_A_TASK)
    return 1.0


def _cost_of_shape(
    shape: ModelShape, kind: str, work: float, config: Mapping[str, Any]
) -> tuple[float, float]:
    """Return a stage's operations and the bytes that it leaves in the cache."""
    forward = 2.0 * shape.n_block_weights
    scored = forward + 2.0 * shape.vocab_size * shape.hidden_size
    grams = shape.n_blocks * shape.n_gram_elements
    if kind == "weights":
        return 100.0 * shape.n_parameters, 1e3
    if kind == "statistics":
        return work * (forward + grams), 4.0 * grams
    if kind in ("perplexity", "reference"):
        hidden = 2.0 * shape.hidden_size if kind == "reference" else 0.0
        return work * 512 * scored, work * 512 * (4.0 + hidden)
    if kind == "reference_means":
        return work * forward, 4.0 * shape.n_blocks * sum(w for w, _ in shape.linears.values())
    if kind == "tasks":
        return work * _TOKENS_PER_DOCUMENT * scored, 1e5
    if kind == "quantized":
        bits = int(config["quant"]["bits"])
        stored = shape.n_block_weights * (0.25 if bits == 2 else 0.5 if bits <= 4 else 1.0)
        return _quantizing(shape, config["quant"], _work("statistics", config)), 1.2 * stored
    return 0.0, 0.0


def _quantizing(shape: ModelShape, quant: Mapping[str, Any], tokens: float) -> float:
    """Return the operations of a walk: roundings, searches through Gram matrices, factorisations."""
    blocks = shape.n_blocks
    products = blocks * sum(out * width * width for width, out in shape.linears.values())
    cubes = blocks * sum(width**3 for width, _ in shape.linears.values())
    forward = 2.0 * shape.n_block_weights
    operations = 100.0 * shape.n_block_weights
    if quant["scale"] != "none":
        operations += quant["search"]["n_grid"] * products
    if quant["clip"] != "none":
        operations += quant["search"]["clip_steps"] * shape.n_block_weights * 400.0
    if quant["correct"] != "none":
        operations += tokens * (8 * forward + 4 * blocks * shape.n_gram_elements) + cubes + products
    if quant["round"] == "gptq":
        operations += tokens * (forward + blocks * shape.n_gram_elements) + cubes + products
    return operations


def _cpu_rate() -> float:
    """Return half the operations per second of this machine's threads in float32 matrix products."""
    size, fastest = 512, float("inf")
    a = torch.ones(size, size)
    n_threads = torch.get_num_threads()
    with one_thread(a.device):  # several would wait for each other where others use the machine
        for _ in range(8):
            start = time.perf_counter()
            a @ a
            fastest = min(fastest, time.perf_counter() - start)
    return 2.0 * size**3 / fastest * n_threads / 2
