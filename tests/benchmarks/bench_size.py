"""What a model of true size takes: peak memory, disk and seconds by the number of blocks, per method.

    python tests/benchmarks/bench_size.py --blocks 2,4 --methods rtn,awq,faq --most 6
    python tests/benchmarks/bench_size.py --blocks 2,4 --methods gptq,qep,loaq --most 8
    python tests/benchmarks/bench_size.py --shape llama-70b --blocks 2 --methods rtn,awq --gigabytes 15 \
        calibration.dtype=bfloat16
    python tests/benchmarks/bench_size.py --shape middling --blocks 4 --methods rtn,awq --together \
        --gigabytes 0.45 --windows 64 --tokens 512 bits=4,3
    python tests/benchmarks/bench_size.py --shape middling --blocks 4 --methods rtn,awq,faq --resident \
        --gigabytes 0.45
    python tests/benchmarks/bench_size.py --device cuda --blocks 36 --windows 128 --tokens 512 --grid 20
    pytest -m benchmark tests/benchmarks/bench_size.py -s            # a tiny model, seconds

The weights are random, written once as bfloat16 shards, one per block. Each cell is a process of its own
with a cache of its own, watched from outside: its peak is the largest of the system's high-water marks,
mapped shards counted. With `--together` all cells are a sweep of one process instead, whose seconds of
quantizing and evaluating (by the records) are compared with those of the cells one by one; with
`--resident` each cell is compared with one whose model is read once. Few windows and a small grid of
exponents do: what grows with the number of blocks is the point. `disk` is what lies in the cache beside the
quantized weights when the cell is done.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median

import pytest
import torch
from safetensors.torch import save_file

_MOST_TOGETHER = 0.6  # of the seconds of four cells one by one
_MOST_STREAMED = 1.15  # of the seconds of a resident cell
_ROOMY = 16.0  # GB, in which a model that is compared is resident
_N_PAIRS = 3
_BETWEEN_LOOKS = 0.05  # seconds
_COMMON = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": False}
SHAPES = {
    "qwen3-8b": {
        **_COMMON, "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_size": 4096,
        "intermediate_size": 12288, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
        "vocab_size": 151936, "max_position_embeddings": 40960,
    },
    "llama-70b": {
        **_COMMON, "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8192,
        "intermediate_size": 28672, "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128,
        "vocab_size": 128256, "max_position_embeddings": 8192,
    },
    "middling": {
        **_COMMON, "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_size": 1024,
        "intermediate_size": 3072, "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 64,
        "vocab_size": 16384, "max_position_embeddings": 4096,
    },
    "tiny": {
        **_COMMON, "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_size": 128,
        "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
        "vocab_size": 512, "max_position_embeddings": 512,
    },
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What one cell took.

    Attributes:
        method: the preset.
        n_blocks: of the model.
        peak_bytes: of its process.
        disk_bytes: in its cache beside the quantized weights.
        seconds: from start to end.
        cpu_seconds: of its process, which a busy machine hardly changes.
        work_seconds: of the first, of quantizing and evaluating, what both need included.
    """

    method: str
    n_blocks: int
    peak_bytes: int
    disk_bytes: int
    seconds: float
    cpu_seconds: float
    work_seconds: float


def write_model(folder: Path, shape: str, n_blocks: int) -> None:
    """Write random weights of a shape as a folder that transformers would load.

    Models of one shape share their shards, which lie beside them and are drawn once.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    from faqbench.models.model import without_weights

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = {**SHAPES[shape], "num_hidden_layers": n_blocks}
    (folder / "config.json").write_text(json.dumps(config))
    with without_weights():
        skeleton = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    parts: dict[str, dict[str, torch.Size]] = {}
    for name, parameter in skeleton.named_parameters():
        parts.setdefault(".".join(name.split(".")[:3]), {})[name] = parameter.shape
    for part, shapes in parts.items():
        shard = folder.parent / f"{shape}.{part}.safetensors"
        if not shard.exists():
            _write_shard(shard, shapes)
        os.link(shard, folder / f"{part}.safetensors")
    index = {name: f"{part}.safetensors" for part, names in parts.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def _write_shard(path: Path, shapes: Mapping[str, torch.Size]) -> None:
    draw, tensors = torch.Generator().manual_seed(zlib.crc32(path.name.encode())), {}
    for name, shape in shapes.items():
        drawn = torch.empty(shape, dtype=torch.bfloat16)
        tensors[name] = drawn.normal_(0, 0.02, generator=draw) if len(shape) > 1 else drawn.fill_(1)
    half = path.with_suffix(".half")
    save_file(tensors, half, {"format": "pt"})
    half.rename(path)


def run_cell(root: Path, method: str, n_blocks: int, options: argparse.Namespace) -> Cell:
    """Run one cell, or a sweep of several methods, in a process and a cache of its own."""
    home = Path(tempfile.mkdtemp(dir=root))
    overrides = [
        *(["-m"] if any("," in override for override in (method, *options.overrides)) else []),
        "model=qwen3-8b", "model.name=size", "model.source=path", "model.hub_id=null",
        f"model.path={root / f'{options.shape}-{n_blocks}'}", "model.tokenizer=bytes",
        f"group_size={options.group_size}", f"quant={method}", f"device={options.device}",
        f"quant.search.n_grid={options.grid}", "quant.search.clip_steps=4", "tracking=none",
        f"calibration.domain={root / 'text.txt'}", f"calibration.n_samples={options.windows}",
        f"calibration.seq_len={options.tokens}", "calibration.n_reference=2",
        f"data.wikitext2_path={root / 'text.txt'}",
        f"evaluation.protocols=[wikitext2-{options.tokens}]", "evaluation.tasks=[]",
        "evaluation.n_windows=2", "evaluation.batch_tokens=512", *options.overrides,
    ]  # fmt: skip
    if not any(override.startswith("bits=") for override in options.overrides):
        overrides.append("bits=4")
    if options.gigabytes:
        overrides.append(f"memory.host_gigabytes={options.gigabytes}")
    environment = {**os.environ, "FAQBENCH_CACHE": str(home / "cache"), "HF_HUB_OFFLINE": "1"}
    start = time.perf_counter()
    log = (home / "log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "faqbench", "-q", *overrides],
        cwd=home, env=environment, stdout=log, stderr=subprocess.STDOUT,
    )  # fmt: skip
    peak_bytes, status, usage = _watched(process.pid)
    assert status == 0, (home / "log").read_text()
    kept = [p for p in (home / "cache").rglob("*") if p.is_file() and "quantized" not in p.parts]
    cell = Cell(
        method=method,
        n_blocks=n_blocks,
        peak_bytes=peak_bytes,
        disk_bytes=sum(p.stat().st_size for p in kept),
        seconds=time.perf_counter() - start,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        work_seconds=_work_seconds(home / "runs"),
    )
    shutil.rmtree(home)
    return cell


def _watched(pid: int) -> tuple[int, int, resource.struct_rusage]:
    """Return a process's peak of memory, its status and what it has used, when it has ended.

    It takes its own peaks, section by section, and resets the system's mark for that: so the mark is read
    all the time, and `ru_maxrss` would be the last section's.
    """
    peak, ended = 0, 0
    while not ended:
        with suppress(OSError, IndexError):
            marks = Path(f"/proc/{pid}/status").read_text().split("VmHWM:")[1]
            peak = max(peak, int(marks.split()[0]) * 1024)
        time.sleep(_BETWEEN_LOOKS)
        ended, status, usage = os.wait4(pid, os.WNOHANG)
    return peak, status, usage


def _work_seconds(runs: Path) -> float:
    """Return what the records of cells say of their stages that read blocks."""
    kinds = ("means", "statistics", "quantized", "perplexity", "reference")
    records = [json.loads(path.read_text()) for path in runs.glob("*/record.json")]
    return sum(
        use["seconds"]
        for record in records
        for use in record["extra"]["stage_keys"]
        if use["entry"].partition("/")[0] in kinds
    )


def compare_walks(options: argparse.Namespace) -> float:
    """Return the seconds of all cells in one process over those of each in its own, and print both."""
    (n_blocks,) = options.blocks
    choices = [o.partition("=") for o in options.overrides]
    with _place(options) as root:
        write_model(root / f"{options.shape}-{n_blocks}", options.shape, n_blocks)
        together = run_cell(root, ",".join(options.methods), n_blocks, options).work_seconds
        alone = 0.0
        for method in options.methods:
            for values in product(*(value.split(",") for _, _, value in choices)):
                own = [f"{key}={v}" for (key, _, _), v in zip(choices, values, strict=True)]
                one = argparse.Namespace(**{**vars(options), "overrides": own})
                alone += run_cell(root, method, n_blocks, one).work_seconds
    print(f"in one walk {together:.1f} s, one by one {alone:.1f} s: {together / alone:.2f}")
    return together / alone


def compare_resident(options: argparse.Namespace) -> float:
    """Return the largest of the methods' seconds streamed over those resident, and print them all."""
    (n_blocks,), ratios = options.blocks, []
    roomy = argparse.Namespace(**{**vars(options), "gigabytes": _ROOMY})
    with _place(options) as root:
        write_model(root / f"{options.shape}-{n_blocks}", options.shape, n_blocks)
        for method in options.methods:
            pairs = [
                [run_cell(root, method, n_blocks, o).work_seconds for o in (options, roomy)]
                for _ in range(_N_PAIRS)
            ]
            ratios.append(median(streamed / resident for streamed, resident in pairs))
            told = ", ".join(f"{streamed:.1f} s / {resident:.1f} s" for streamed, resident in pairs)
            print(f"{method:10} streamed / resident {told}: {ratios[-1]:.2f}", flush=True)
    return max(ratios)


def slope(cells: list[Cell], of: str) -> float:
    """Return the growth of a quantity per block, by least squares over the numbers of blocks."""
    x = [cell.n_blocks for cell in cells]
    y = [float(getattr(cell, of)) for cell in cells]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((a - mean_x) ** 2 for a in x)
    products = ((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return sum(products) / spread if spread else float("nan")


@contextmanager
def _place(options: argparse.Namespace) -> Iterator[Path]:
    """Give a folder with the text, which goes at the end unless its weights are to be kept."""
    root = Path(options.weights or tempfile.mkdtemp(dir=options.folder))
    root.mkdir(parents=True, exist_ok=True)
    words = "the weight of a group is a number and the block has many of them in its rows. "
    (root / "text.txt").write_text("\n\n".join(f"Text {i}. {words * 8}" for i in range(400)))
    try:
        yield root
    finally:
        if not options.weights:
            shutil.rmtree(root)


def measure(options: argparse.Namespace) -> dict[str, list[Cell]]:
    """Run all cells and print a line for each, and the slopes of each method."""
    found: dict[str, list[Cell]] = {method: [] for method in options.methods}
    print(f"{'method':10} blocks  peak GB  disk GB  seconds      CPU", flush=True)
    with _place(options) as root:
        for n_blocks in options.blocks:
            folder = root / f"{options.shape}-{n_blocks}"
            write_model(folder, options.shape, n_blocks)
            for method in options.methods:
                cell = run_cell(root, method, n_blocks, options)
                found[method].append(cell)
                print(
                    f"{method:10} {n_blocks:6} {cell.peak_bytes / 1e9:8.2f} "
                    f"{cell.disk_bytes / 1e9:8.2f} {cell.seconds:8.0f} {cell.cpu_seconds:8.0f}",
                    flush=True,
                )
    for method, cells in found.items() if len(options.blocks) > 1 else ():
        print(
            f"{method:10} per block: peak {slope(cells, 'peak_bytes') / 1e6:.0f} MB, "
            f"disk {slope(cells, 'disk_bytes') / 1e6:.0f} MB, CPU {slope(cells, 'cpu_seconds'):.1f} s, "
            f"at most {furthest(cells):.0%} off a straight line"
        )
    return found


def furthest(cells: list[Cell]) -> float:
    """Return how far the CPU seconds of any number of blocks are from a straight line, as a share."""
    per_block = slope(cells, "cpu_seconds")
    offsets = [cell.cpu_seconds - per_block * cell.n_blocks for cell in cells]
    start = sum(offsets) / len(offsets)
    return max(abs(o - start) / cell.cpu_seconds for o, cell in zip(offsets, cells, strict=True))


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser()
    comma = lambda text: text.split(",")  # noqa: E731
    parser.add_argument("--shape", default="qwen3-8b", choices=SHAPES)
    parser.add_argument("--blocks", type=lambda t: [int(n) for n in t.split(",")], default=[2, 4])
    parser.add_argument("--methods", type=comma, default=comma("rtn,awq,faq,gptq,qep,loaq"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--windows", type=int, default=4, help="of calibration text")
    parser.add_argument("--tokens", type=int, default=128, help="of a window")
    parser.add_argument("--grid", type=int, default=4, help="exponents of the scale search")
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--gigabytes", type=float, default=6.0, help="memory.host_gigabytes")
    parser.add_argument("--together", action="store_true", help="compare one walk with many")
    parser.add_argument("--resident", action="store_true", help="compare with models read once")
    parser.add_argument("--most", type=float, default=None, help="GB; a higher peak is a failure")
    parser.add_argument("--folder", default=None, help="where weights and caches are written")
    parser.add_argument("--weights", default=None, help="the same, of which the weights are kept")
    parser.add_argument("overrides", nargs="*", default=[])
    return parser.parse_args(arguments)


@pytest.mark.benchmark
def test_peak_and_disk_do_not_grow_with_the_blocks() -> None:
    """A tiny model through the same script; sizes are the process's own, so the bounds are wide."""
    arguments = ["--shape", "tiny", "--blocks", "2,6", "--methods", "faq", "--group-size", "32"]
    (cells,) = measure(parse([*arguments, "--gigabytes", "0.004"])).values()
    assert slope(cells, "disk_bytes") < 2e5
    assert slope(cells, "peak_bytes") < 30e6


def main(arguments: list[str]) -> int:
    """Measure, and say by the exit code whether all peaks were as low as wanted."""
    options = parse(arguments)
    if options.together:
        return 1 if compare_walks(options) > _MOST_TOGETHER else 0
    if options.resident:
        return 1 if compare_resident(options) > _MOST_STREAMED else 0
    cells = [cell for found in measure(options).values() for cell in found]
    above = [c for c in cells if options.most and c.peak_bytes > options.most * 1e9]
    for cell in above:
        print(f"{cell.method} with {cell.n_blocks} blocks took more than {options.most} GB")
    return 1 if above else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
