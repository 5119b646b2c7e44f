"""Which device a cell runs on, and which dtype that device multiplies fast: the answer to `dtype=auto`.

    CUDA 8.0 and later                              bfloat16
    CUDA below 8.0                                  float16
    CPU with AVX512-BF16, AMX-BF16 or ARM's bf16    bfloat16
    every other CPU and device                      float32

The hardware's own flags decide, not a measurement, so that the same machine always gives the same run id.
A dtype that a device does not multiply is emulated: results are as good, and much later (a CPU with AVX2
only, two cores: 8 times the seconds of float32 in bfloat16, 30 times beside other work).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

from faqbench.config import UserError
from faqbench.config.section import DType

# By architecture and dtype, the flags as torch names them; of other architectures it reads none.
_CPU_FLAGS: dict[str, dict[str, dict[str, str]]] = {
    "x86_64": {
        "bfloat16": {"avx512_bf16": "AVX512-BF16", "amx_bf16": "AMX-BF16"},
        "float16": {"avx512_fp16": "AVX512-FP16", "amx_fp16": "AMX-FP16"},
    },
    "arm64": {"bfloat16": {"bf16": "BF16"}, "float16": {"fp16_arith": "FP16"}},
}
# A product as large as those of a small model, and how often each dtype has its turn.
_ROWS, _WIDTH, _TURNS = 256, 576, 5


@dataclass(frozen=True, kw_only=True)
class FastDtype:
    """The dtype that a device multiplies fast.

    Attributes:
        dtype: what `dtype=auto` means there.
        reason: why, as a clause.
        is_known: whether the hardware said so; else it is the safe choice.
    """

    dtype: DType
    reason: str
    is_known: bool = True


def named_device(device: str) -> torch.device:
    """Return the torch device of a `device` setting, which need not be this machine's.

    Raises:
        UserError: for what names no device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise _unusable(device, error) from error


def resolve_device(device: str) -> torch.device:
    """Return the torch device of a `device` setting; `auto` is CUDA where there is one.

    Raises:
        UserError: for a device that this machine does not have.
    """
    chosen = named_device(device)
    try:
        torch.zeros(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise _unusable(device, error) from error
    return chosen


def fast_dtype(device: torch.device) -> FastDtype:
    """Return the dtype that a device multiplies fast, and why."""
    if device.type == "cuda":
        return _fast_on_cuda(device)
    if device.type == "cpu":
        return _fast_on_cpu()
    return FastDtype(
        dtype="float32",
        reason=f"what {device.type} multiplies fast is not known, and every device has float32",
        is_known=False,
    )


def has_fast_bfloat16(device: torch.device) -> bool:
    """Say whether bfloat16 matrix products are much faster than float32 ones on a device."""
    return fast_dtype(device).dtype == "bfloat16"


def dtype_warning(device: torch.device, dtype: DType) -> str | None:
    """Return a sentence on a dtype that a device of this machine emulates; None when it does not.

    Raises:
        UserError: for a dtype in which the device multiplies nothing at all.
    """
    try:
        _product(torch.ones(2, 2, dtype=getattr(torch, dtype), device=device))
    except (RuntimeError, TypeError) as error:
        raise UserError(
            f"dtype={dtype} cannot be used on {device}: {_first_line(error)}. dtype=auto means "
            f"{fast_dtype(device).dtype} here."
        ) from error
    if not _is_emulated(device, dtype):
        return None
    fast = fast_dtype(device)
    return (
        f"dtype={dtype} is emulated on this {_kind(device)}: products take about "
        f"{_slowdown(device, dtype):.2g} times as long as in {fast.dtype}, which dtype=auto means here "
        f"({fast.reason})."
    )


def _fast_on_cuda(device: torch.device) -> FastDtype:
    if not torch.cuda.is_available():
        return FastDtype(
            dtype="bfloat16",
            reason="no CUDA device is here to be asked, and those of 8.0 and later multiply it fast",
            is_known=False,
        )
    with torch.cuda.device(device):
        is_fast = torch.cuda.is_bf16_supported(including_emulation=False)
    major, minor = torch.cuda.get_device_capability(device)
    return FastDtype(
        dtype="bfloat16" if is_fast else "float16",
        reason=f"this GPU of compute capability {major}.{minor} multiplies it fast",
    )


def _fast_on_cpu() -> FastDtype:
    flags = _cpu_flags("bfloat16")
    if not flags:
        return FastDtype(
            dtype="float32",
            reason="this CPU does not say what it multiplies fast, and every CPU has float32",
            is_known=False,
        )
    there = [name for name, is_there in flags.items() if is_there]
    if there:
        return FastDtype(dtype="bfloat16", reason=f"this CPU has {' and '.join(there)}")
    lacks = " and ".join(f"no {name}" for name in flags)
    return FastDtype(dtype="float32", reason=f"this CPU has {lacks}")


def _cpu_flags(dtype: DType) -> dict[str, bool]:
    """Return the flags that say that a CPU multiplies a dtype, and whether this one has them."""
    capabilities = torch.cpu.get_capabilities()
    flags = _CPU_FLAGS.get(capabilities["architecture"], {}).get(dtype, {})
    return {name: bool(capabilities.get(flag)) for flag, name in flags.items()}


def _is_emulated(device: torch.device, dtype: DType) -> bool:
    if device.type == "cpu":
        return dtype != "float32" and not any(_cpu_flags(dtype).values())
    return device.type == "cuda" and dtype == "bfloat16" and not has_fast_bfloat16(device)


@cache
def _slowdown(device: torch.device, dtype: DType) -> float:
    """Measure how many times as long a product takes in a dtype as in the device's fast one.

    By one thread's own seconds on a CPU, which other work on the machine moves little.
    """
    clock = time.thread_time if device.type == "cpu" else time.perf_counter
    operands = [
        torch.ones(_ROWS, _WIDTH, dtype=getattr(torch, name), device=device)
        for name in (dtype, fast_dtype(device).dtype)
    ]
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for x in operands:  # the first product of a kind prepares the others
            _product(x)
        seconds = [[_seconds(x, clock) for x in operands] for _ in range(_TURNS)]
    finally:
        torch.set_num_threads(n_threads)
    return min(slow for slow, _ in seconds) / min(fast for _, fast in seconds)


def _seconds(x: torch.Tensor, clock: Callable[[], float]) -> float:
    start = clock()
    _product(x)
    return clock() - start


def _product(x: torch.Tensor) -> float:
    """Multiply a matrix by its transpose, and wait until that is done."""
    return float((x @ x.T)[0, 0])


def _kind(device: torch.device) -> str:
    return {"cpu": "CPU", "cuda": "GPU"}.get(device.type, device.type)


def _unusable(device: str, error: Exception) -> UserError:
    return UserError(f"device={device} cannot be used here: {_first_line(error)}.")


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")
