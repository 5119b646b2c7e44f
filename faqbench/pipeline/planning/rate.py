"""The sizes of a model, read from its configuration, and how fast this machine is at what a run does.

The second is measured in seconds, and what a first estimate stands on.
A decoder block of the model's own widths is run on made-up numbers, with its norms, its attention and its
activation function, so that a tiny model is as slow here as it is in the run: there, calling an operation
takes longer than the operation. Searches and statistics are float32 products, whatever the run's dtype.
Python itself is timed by counting, since importing libraries and preparing tasks is Python's work.

On a CPU all is timed on one thread, and divided by what all threads gain in the model's largest product:
where others use the machine, threads that wait for each other would take a minute for a second's work.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from faqbench.quantization.reproducible import one_thread


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """What cost depends on.

    Attributes:
        n_blocks: decoder blocks.
        linears: per block and role, (in_features, out_features of all linears of the role together).
        hidden_size: width of the residual stream.
        vocab_size: rows of the output head.
        n_parameters: of the whole model, tied weights once.
    """

    n_blocks: int
    linears: Mapping[str, tuple[int, int]]
    hidden_size: int
    vocab_size: int
    n_parameters: int

    @property
    def n_block_weights(self) -> int:
        """Weights of all linears of all blocks."""
        return self.n_blocks * sum(a * b for a, b in self.linears.values())

    @property
    def n_gram_elements(self) -> int:
        """Elements of the Gram matrices of one block."""
        return sum(width * width for width, _ in self.linears.values())


def shape_of(config: Mapping[str, Any]) -> ModelShape | None:
    """Return the shape that a transformers configuration describes, or None when it lacks a size."""
    try:
        hidden, mlp = int(config["hidden_size"]), int(config["intermediate_size"])
        n_blocks, vocab = int(config["num_hidden_layers"]), int(config["vocab_size"])
        n_heads = int(config["num_attention_heads"])
    except (KeyError, TypeError):
        return None
    n_kv_heads = int(config.get("num_key_value_heads") or n_heads)
    width = int(config.get("head_dim") or hidden // n_heads)
    linears = {
        "qkv": (hidden, (n_heads + 2 * n_kv_heads) * width),
        "o": (n_heads * width, hidden),
        "gate_up": (hidden, 2 * mlp),
        "down": (mlp, hidden),
    }
    n_tables = 1 if config.get("tie_word_embeddings", True) else 2
    in_blocks = n_blocks * sum(a * b for a, b in linears.values())
    return ModelShape(
        n_blocks=n_blocks,
        linears=linears,
        hidden_size=hidden,
        vocab_size=vocab,
        n_parameters=in_blocks + n_tables * vocab * hidden,
    )


_N_TOKENS = 512
_N_WINDOWS = 4  # in one forward: what lies between products no longer fits a core's cache then
_N_SCORED = 128  # rows of logits at once, as evaluation takes them
_HEAD_WIDTH = 64
_LARGEST = 2**21  # weights of one product; of a larger one some rows are timed, which is as fast for each
_WIDEST = 1536  # of a square product
_MOST_LOGITS = 2**24  # of one log-softmax; of a larger vocabulary a part is timed
_COUNTS = 200_000
_REPEATS, _ENOUGH_SECONDS = 3, 0.03


@dataclass(frozen=True, kw_only=True)
class MachineRate:
    """Seconds of the parts that a run consists of.

    Attributes:
        block_seconds: of one decoder block's forward, per token, in the run's dtype.
        exact_block_seconds: the same in float32, in which statistics are taken.
        head_seconds: of the output head and its log-softmax, per token.
        operations_per_second: of float32 products as wide as the model.
        hash_seconds: of sha256, per byte.
        python_seconds: of counting to 200,000.
    """

    block_seconds: float
    exact_block_seconds: float
    head_seconds: float
    operations_per_second: float
    hash_seconds: float
    python_seconds: float


@torch.inference_mode()
def measure_rate(shape: ModelShape, device: torch.device, dtype: torch.dtype) -> MachineRate:
    """Time the parts of a run on a device that this machine has."""
    gain = _gain_of_threads(shape, dtype) if device.type == "cpu" else 1.0
    cpu, some_bytes = torch.device("cpu"), bytes(2**20)
    with one_thread(device):
        exact = _block_seconds(shape, device, torch.float32) / gain
        in_dtype = _block_seconds(shape, device, dtype) / gain if dtype != torch.float32 else exact
        return MachineRate(
            block_seconds=in_dtype,
            exact_block_seconds=exact,
            head_seconds=_head_seconds(shape, device, dtype) / gain,
            operations_per_second=_operations_per_second(shape, device) * gain,
            hash_seconds=_seconds(lambda: hashlib.sha256(some_bytes), cpu) / len(some_bytes),
            python_seconds=_seconds(_count, cpu),
        )


def _gain_of_threads(shape: ModelShape, dtype: torch.dtype) -> float:
    """Return how many times faster a block's largest product is on all of torch's threads than on one."""
    cpu, n_threads = torch.device("cpu"), torch.get_num_threads()
    n_in, n_out = max(shape.linears.values(), key=lambda widths: widths[0] * widths[1])
    together = _product_seconds(n_in, n_out, _N_TOKENS, cpu, dtype)
    with one_thread(cpu):
        alone = _product_seconds(n_in, n_out, _N_TOKENS, cpu, dtype)
    return min(max(alone / together, 1.0), float(n_threads))


def _block_seconds(shape: ModelShape, device: torch.device, dtype: torch.dtype) -> float:
    """Return the seconds per token of one block: its products, and all that lies between them."""
    products = sum(
        _product_seconds(n_in, n_out, _N_TOKENS, device, dtype) for n_in, n_out in shape.linears.values()
    )
    hidden = torch.ones(_N_WINDOWS, _N_TOKENS, shape.hidden_size, device=device).to(dtype)
    inner = torch.ones(_N_WINDOWS, _N_TOKENS, shape.linears["down"][0], device=device).to(dtype)
    width = min(_HEAD_WIDTH, shape.linears["o"][0])
    heads = hidden.new_ones(_N_WINDOWS, shape.linears["o"][0] // width, _N_TOKENS, width)

    def between() -> None:
        for _ in range(2):
            functional.rms_norm(hidden.float(), hidden.shape[-1:]).to(dtype).add(hidden)
        for _ in range(2):  # rotary position embeddings of queries and keys
            heads * heads + torch.cat((-heads, heads), dim=-1)[..., :width] * heads
        functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
        functional.silu(inner) * inner

    return products + _seconds(between, device) / (_N_WINDOWS * _N_TOKENS)


def _head_seconds(shape: ModelShape, device: torch.device, dtype: torch.dtype) -> float:
    vocab = min(shape.vocab_size, _MOST_LOGITS // _N_SCORED)
    logits = torch.ones(_N_SCORED, vocab, device=device)
    product = _product_seconds(shape.hidden_size, shape.vocab_size, _N_SCORED, device, dtype)
    seconds = _seconds(lambda: functional.log_softmax(logits, dim=-1), device)
    return product + seconds / _N_SCORED * shape.vocab_size / vocab


def _operations_per_second(shape: ModelShape, device: torch.device) -> float:
    width = min(max(n_in for n_in, _ in shape.linears.values()), _WIDEST)
    seconds = _product_seconds(width, width, _N_TOKENS, device, torch.float32)
    return 2.0 * width * width / seconds


def _product_seconds(
    n_in: int, n_out: int, n_tokens: int, device: torch.device, dtype: torch.dtype
) -> float:
    """Return the seconds per token of a linear, of some of its rows where it has very many weights."""
    rows = min(n_out, max(1, _LARGEST // n_in))
    weight = torch.ones(rows, n_in, device=device).to(dtype)
    x = torch.ones(n_tokens, n_in, device=device).to(dtype)
    return _seconds(lambda: functional.linear(x, weight), device) / n_tokens * n_out / rows


def _count() -> None:
    total = 0
    for number in range(_COUNTS):
        total += number


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the fastest of some repetitions, of long ones of fewer, after one that does not count."""
    work()
    taken = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        result = work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - start)
        del result
        if sum(taken) > _ENOUGH_SECONDS:
            break
    return min(taken)
