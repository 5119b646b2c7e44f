"""What a model may take of the memory, and whether its weights fit.

The budget is `memory.device_gigabytes` and `memory.host_gigabytes` of the configuration; null is what is
free when a process first asks. On a CPU the device is the host. No result depends on it: a model that does
not fit is streamed, block by block, with the same bits.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from math import prod

import psutil
import torch

from faqbench.config import Experiment, UserError
from faqbench.config.experiment import MemorySection, QuantSection
from faqbench.config.method import Reads, method_of
from faqbench.hardware import named_device
from faqbench.models.architecture import Architecture
from faqbench.models.inspection import inspect_model
from faqbench.models.model import Room

# Of what is free, the share that is left to what the estimates here do not see.
_SPARED = 0.1
# Of a budget, the share that hidden states have at least.
_LEAST_HIDDEN = 0.1
# Of the host's memory beside a device, the share that they may be pinned in.
_MOST_PINNED = 0.5


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Bytes that weights, streams and statistics may take.

    Attributes:
        device_bytes: on the device; None is what was free.
        host_bytes: in the host's memory; None is what was free.
        is_cpu: whether the device is the host.
    """

    device_bytes: int | None
    host_bytes: int | None
    is_cpu: bool

    def holds(self, architecture: Architecture, dtype: torch.dtype, kept: int = 0) -> bool:
        """Say whether all weights fit beside what working on one block takes.

        Args:
            architecture: of the model.
            dtype: of its weights.
            kept: bytes that a method keeps beside a block, from `moment_bytes`.

        Raises:
            UserError: when not even one block fits.
        """
        available, working = self.on_device, working_bytes(architecture, dtype)
        if working + kept > available:
            narrower = "set calibration.dtype=bfloat16, " if dtype.itemsize > 2 else ""
            raise UserError(
                f"One block of this model takes {gigabytes(working + kept)} of memory while it is "
                f"quantized, and there are {gigabytes(available)} ({self.setting}); {narrower}raise the "
                "budget, or take a machine with more."
            )
        return weight_bytes(architecture, dtype) + working <= available

    def room(self, architecture: Architecture, dtype: torch.dtype) -> Room:
        """Return what a model may have in memory beside its weights, or the block that is worked on.

        Cells of all methods share it: what `moment_bytes` says comes on top.
        """
        working, block = working_bytes(architecture, dtype), _block_bytes(architecture, dtype)
        reads_ahead = working + block <= self.on_device
        head = 4 * architecture.vocab_size * architecture.hidden_size
        weights = weight_bytes(architecture, dtype) if self.holds(architecture, dtype) else 0
        beside = self.on_device - max(head, working + block * reads_ahead) - weights
        return Room(
            reads_ahead=reads_ahead,
            hidden_bytes=max(beside, int(self.on_device * _LEAST_HIDDEN)),
            host_bytes=None if self.is_cpu else int(self.on_host * _MOST_PINNED),
        )

    @property
    def setting(self) -> str:
        """The key of the configuration that says how much of the device's memory may be taken."""
        return "memory.host_gigabytes" if self.is_cpu else "memory.device_gigabytes"

    @property
    def on_device(self) -> int:
        """Bytes of the device's memory."""
        if self.is_cpu:
            return self.on_host
        if self.device_bytes is not None:
            return self.device_bytes
        return _free_on_device()

    @property
    def on_host(self) -> int:
        """Bytes of the host's memory."""
        if self.host_bytes is not None:
            return self.host_bytes
        return _free_on_host()


@cache
def _free_on_host() -> int:
    """Return what was free when this process first asked, so that all its cells are judged alike."""
    return int(psutil.virtual_memory().available * (1 - _SPARED))


@cache
def _free_on_device() -> int:
    if not torch.cuda.is_available():  # a plan for another machine
        return sys.maxsize
    return int(torch.cuda.mem_get_info()[0] * (1 - _SPARED))


def is_streamed(experiment: Experiment) -> bool:
    """Say whether a cell's model is read block by block; False for one that is not on this machine yet.

    Raises:
        UserError: when not even one block of it fits the budget.
    """
    architecture = inspect_model(experiment.model)
    if architecture is None:
        return False
    budget = budget_of(experiment.memory, named_device(experiment.device))
    kept = moment_bytes(architecture, experiment.quant)
    return not budget.holds(architecture, getattr(torch, experiment.calibration.dtype), kept)


def streaming_note(experiment: Experiment) -> str:
    """Say that a cell's model, which is streamed, is read block by block, and why."""
    architecture = inspect_model(experiment.model)
    assert architecture is not None, "a model that is not here is not known to be streamed"
    dtype = getattr(torch, experiment.calibration.dtype)
    budget = budget_of(experiment.memory, named_device(experiment.device))
    weights, block = weight_bytes(architecture, dtype), working_bytes(architecture, dtype)
    return (
        f"model={experiment.model.name} is read block by block, with the same results: its weights take "
        f"{gigabytes(weights)}, a block {gigabytes(block)} while it is quantized, and there are "
        f"{gigabytes(budget.on_device)} ({budget.setting})."
    )


def streamed_bytes(experiment: Experiment) -> tuple[int, int] | None:
    """Return about the most that a streamed model takes at once, and its hidden states beside it, at most.

    None for one that is not streamed. Beside a block, and the next one where there is room, there is the
    output head as it is evaluated.
    """
    architecture = inspect_model(experiment.model)
    if architecture is None or not is_streamed(experiment):
        return None
    head = architecture.vocab_size * architecture.hidden_size
    evaluated: int = getattr(torch, experiment.dtype).itemsize
    dtype = getattr(torch, experiment.calibration.dtype)
    working = working_bytes(architecture, dtype)
    room = budget_of(experiment.memory, named_device(experiment.device)).room(architecture, dtype)
    working += _block_bytes(architecture, dtype) * room.reads_ahead
    working += moment_bytes(architecture, experiment.quant)
    assert room.hidden_bytes is not None, "a budget is a number"
    return max(working, head * evaluated), room.hidden_bytes


def budget_of(section: MemorySection, device: torch.device) -> Budget:
    """Return the budget of a configuration."""

    def n_bytes(number: float | None) -> int | None:
        return None if number is None else int(number * 1e9)

    is_cpu = device.type == "cpu"
    return Budget(
        device_bytes=n_bytes(section.device_gigabytes),
        host_bytes=n_bytes(section.host_gigabytes),
        is_cpu=is_cpu,
    )


def weight_bytes(architecture: Architecture, dtype: torch.dtype) -> int:
    """Return what all weights take."""
    return dtype.itemsize * sum(map(prod, architecture.weight_shapes().values()))


def working_bytes(architecture: Architecture, dtype: torch.dtype) -> int:
    """Return about what quantizing one block takes: it, its quantized twin, and its largest role's.

    A role takes its weights in float32 several times over, and its Gram matrix twice.
    """
    role = max(
        4 * sum(prod(architecture.shapes[name]) for name in role.linears)
        + 2 * architecture.shapes[role.linears[0]][1] ** 2
        for role in architecture.roles
    )
    return 2 * _block_bytes(architecture, dtype) + 4 * role


def moment_bytes(architecture: Architecture, quant: QuantSection) -> int:
    """Return what a method that rounds by second moments keeps beside a block; 0 for any other.

    That is the moments of each role on the quantized stream, and a factor of the largest.
    """
    if method_of(quant).reads.isdisjoint({Reads.HESSIAN, Reads.BOTH_STREAMS}):
        return 0
    squares = [architecture.shapes[role.linears[0]][1] ** 2 for role in architecture.roles]
    return 4 * (sum(squares) + max(squares))


def _block_bytes(architecture: Architecture, dtype: torch.dtype) -> int:
    """Return what the linears of a block take."""
    return dtype.itemsize * sum(map(prod, architecture.shapes.values()))


def gigabytes(n_bytes: float) -> str:
    """Return a number of bytes in words, small ones in megabytes."""
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.2f} MB"
