"""What the quantizers know of the activations, and the full precision pass that gathers it.

Per decoder block and role, over all calibration tokens x [in]:

    mean_abs  [in]      mean of |x|
    gram      [in, in]  mean of x x'
    low, high [in]      the least and the largest x

Both are accumulated in float32, whatever the model's dtype, and stored one file per block, so that a
reader holds one block's Gram matrices at a time. The means of all blocks are small and kept together:
they are all that FAQ needs of the future.

`observe_means` takes mean|x| per channel alone, without Gram matrices: enough to say how far one
calibration set is from another, at the cost of the forward pass only. The means are those of `observe` to
the bit, so they can as well be copied from its folder.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typing_extensions import TypedDict

from faqbench.config import UserError
from faqbench.foreign import read_as
from faqbench.models import (
    BlockStream,
    LoadedModel,
    Model,
    Role,
    is_finite,
    open_stream,
    prepared_input,
    walk_blocks,
)
from faqbench.stages import Progress

CODE_VERSION = 4  # raise it when the numbers that `observe` writes change
MEANS_VERSION = 2  # raise it when the numbers that `observe_means` writes change
Tokens = Literal["all", "drop_first", "norm_cap"]
NORM_CAP = 10.0
_GRAM_BLOCK = 384  # columns per block of a Gram matrix
_MEANS_FILE = "mean_abs.safetensors"


@dataclass(frozen=True, kw_only=True)
class RoleStatistics:
    """Statistics of one role's input.

    Attributes:
        mean_abs: float32 [in_features].
        gram: float32 [in_features, in_features].
        low: float32 [in_features], the least of each channel.
        high: float32 [in_features], the largest.
        n_tokens: how many tokens they were taken over.
    """

    mean_abs: Tensor
    gram: Tensor
    low: Tensor
    high: Tensor
    n_tokens: int

    @property
    def largest(self) -> Tensor:
        """The largest |x| of each channel [in_features]."""
        return torch.maximum(self.high, -self.low)


class GramSum:
    """Sums up x x' in float32. It is symmetric, so only the blocks on and above the diagonal are."""

    def __init__(self, in_features: int, device: torch.device) -> None:
        self._upper = torch.zeros(in_features, in_features, device=device)
        self._is_whole = False

    def add(self, x: Tensor) -> None:
        """Add tokens, float32 [n_tokens, in_features]."""
        assert not self._is_whole
        for start in range(0, x.shape[1], _GRAM_BLOCK):
            rows = slice(start, start + _GRAM_BLOCK)
            self._upper[rows, start:].addmm_(x[:, rows].T, x[:, start:])

    def plus(self, other: GramSum) -> GramSum:
        """Return the sum over both's tokens."""
        assert not (self._is_whole or other._is_whole)
        result = copy.copy(self)
        result._upper = self._upper + other._upper
        return result

    def mean(self, n_tokens: int) -> Tensor:
        """Return the mean [in_features, in_features] in the sum's place; nothing is added afterwards.

        Of a wide linear a second matrix would be as large as the block.
        """
        if self._is_whole:
            return self._upper
        self._is_whole = True
        for start in range(0, len(self._upper), _GRAM_BLOCK):
            stop = start + _GRAM_BLOCK
            corner = self._upper[start:stop, start:stop]
            corner.copy_(corner.triu() + corner.triu(diagonal=1).T)
            self._upper[stop:, start:stop] = self._upper[start:stop, stop:].T
        return self._upper.div_(n_tokens)


class Accumulator:
    """Sums up |x| and x x' over batches of tokens, and keeps the extremes."""

    def __init__(self, in_features: int, device: torch.device) -> None:
        self._abs = torch.zeros(in_features, dtype=torch.float64, device=device)
        self._gram = GramSum(in_features, device)
        self._low = torch.full((in_features,), torch.inf, device=device)
        self._high = -self._low
        self.n_tokens = 0

    def add(self, x: Tensor) -> None:
        """Add tokens [n_tokens, in_features]."""
        x = x.float()
        self._abs += x.abs().sum(dim=0)
        self._gram.add(x)
        self._low = torch.minimum(self._low, x.amin(dim=0))
        self._high = torch.maximum(self._high, x.amax(dim=0))
        self.n_tokens += len(x)

    def plus(self, other: Accumulator) -> Accumulator:
        """Return the sums over both's tokens."""
        result = copy.copy(self)
        result._abs, result._gram = self._abs + other._abs, self._gram.plus(other._gram)
        result._low = torch.minimum(self._low, other._low)
        result._high = torch.maximum(self._high, other._high)
        result.n_tokens = self.n_tokens + other.n_tokens
        return result

    def result(self) -> RoleStatistics:
        """Return the means; nothing is added afterwards."""
        return RoleStatistics(
            mean_abs=(self._abs / self.n_tokens).float(),
            gram=self._gram.mean(self.n_tokens),
            low=self._low,
            high=self._high,
            n_tokens=self.n_tokens,
        )


def select_tokens(x: Tensor, tokens: Tokens) -> Tensor:
    """Return the rows [n, in_features] of windows x [batch, seq_len, in_features] that count.

    `drop_first` leaves out position 0 of each window, which often carries a massive activation;
    `norm_cap` shortens tokens longer than 10 times the median norm of their window to that norm.
    """
    if tokens == "drop_first":
        x = x[:, 1:]
    elif tokens == "norm_cap":
        norms = x.float().norm(dim=-1, keepdim=True)
        cap = NORM_CAP * norms.median(dim=1, keepdim=True).values
        # Zero tokens have no norm to cap.
        x = x * torch.where(norms > cap, cap / norms, 1.0).to(x.dtype)
    return x.flatten(0, 1)


@torch.no_grad()
def observe_block(
    stream: BlockStream, block: nn.Module, roles: Sequence[Role], tokens: Tokens, *, advance: bool
) -> dict[str, RoleStatistics]:
    """Gather the statistics of one block's roles in one pass, and move the stream on if asked to.

    Raises:
        UserError: when an activation is not finite, naming the block and the linear.
    """
    accumulators: dict[str, Accumulator] = {}
    handles = []
    for role in roles:
        linear = block.get_submodule(role.linears[0])
        assert isinstance(linear, nn.Linear)
        accumulator = Accumulator(linear.in_features, linear.weight.device)
        accumulators[role.name] = accumulator

        def hook(linear: nn.Module, args: tuple[Any, ...], a: Accumulator = accumulator) -> None:
            a.add(select_tokens(prepared_input(linear, args[0]), tokens))

        handles.append(linear.register_forward_pre_hook(hook))
    try:
        if advance:
            stream.advance(block)
        else:
            for _ in stream.batches(block):
                pass
    finally:
        for handle in handles:
            handle.remove()
    results = {role.name: accumulators.pop(role.name).result() for role in roles}
    for role in roles:
        check_finite(results[role.name], stream.index - advance, role)
    return results


def check_finite(statistics: RoleStatistics, block: int, role: Role) -> None:
    """Refuse statistics that hold NaN or infinity.

    Raises:
        UserError: naming the block and the linear whose input it was.
    """
    if not (is_finite(statistics.mean_abs) and is_finite(statistics.gram)):
        raise UserError(
            f"The input of {role.linears[0]} in block {block} holds NaN or infinity on the calibration "
            "tokens; try calibration.dtype=float32, or check the model's weights."
        )


def observe(
    loaded: LoadedModel,
    tokens: Tensor,
    *,
    batch_size: int,
    select: Tokens,
    folder: Path,
    progress: Progress,
) -> None:
    """Run the full precision pass and write its statistics, in the layout `ActivationStore` reads.

    Args:
        loaded: the full precision model.
        tokens: [n_samples, seq_len] calibration token ids.
        batch_size: windows per forward pass.
        select: which tokens count.
        folder: an empty folder.
        progress: one step per block.
    """
    n_blocks = loaded.architecture.n_blocks
    with progress.activity("activation statistics", n_blocks) as advance:
        stream = open_stream(loaded.view, tokens, batch_size)
        observing = _Observing(loaded.view, stream, select, folder)
        walk_blocks([observing], advance)
    save_file(observing.means, folder / _MEANS_FILE)
    save_file(observing.extremes, folder / "extremes.safetensors")
    (folder / "meta.json").write_text(json.dumps({"n_tokens": observing.n_tokens, "n_blocks": n_blocks}))


class _Observing:
    """A passenger who writes the Gram matrices of every block, and keeps the vectors."""

    def __init__(self, model: Model, stream: BlockStream, select: Tokens, folder: Path) -> None:
        self.model = model
        self.means: dict[str, Tensor] = {}
        self.extremes: dict[str, Tensor] = {}
        self.n_tokens = 0
        self._stream = stream
        self._select = select
        self._folder = folder

    def work(self, index: int, block: nn.Module) -> None:
        roles = self.model.architecture.roles
        results = observe_block(self._stream, block, roles, self._select, advance=True)
        save_file(
            {name: r.gram.cpu().contiguous() for name, r in results.items()},
            self._folder / f"gram-{index:03d}.safetensors",
        )
        for name, found in results.items():
            self.means[f"{index}.{name}"] = found.mean_abs.cpu()
            self.extremes[f"{index}.{name}.low"] = found.low.cpu()
            self.extremes[f"{index}.{name}.high"] = found.high.cpu()
            self.n_tokens = found.n_tokens


class Observer:
    """A passenger before several that quantize: it observes each block once for all of them.

    Attributes:
        model: in full precision.
        statistics: of the block under way, by role.
    """

    @torch.no_grad()
    def __init__(self, loaded: LoadedModel, tokens: Tensor, batch_size: int, select: Tokens) -> None:
        """Open the full precision stream; arguments as for `observe`."""
        self.model = loaded.view
        self.statistics: Mapping[str, RoleStatistics] = {}
        self._select: Tokens = select
        self._stream = open_stream(loaded.view, tokens, batch_size)

    def work(self, index: int, block: nn.Module) -> None:
        """Observe a block."""
        self.statistics = {}  # the last block's go first
        roles = self.model.architecture.roles
        self.statistics = observe_block(self._stream, block, roles, self._select, advance=True)


class _Meta(TypedDict):
    n_tokens: int
    n_blocks: int


class ActivationStore:
    """Statistics on disk, read one block at a time; those of a pass for the means alone have no more."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.folder = folder
        self._device = device
        self._meta = read_as(folder / "meta.json", _Meta) if self.has_grams else None

    @property
    def has_grams(self) -> bool:
        """Whether Gram matrices are there; else a walk gathers those of each block when it is there."""
        return (self.folder / "meta.json").is_file()

    @cached_property
    def _means(self) -> Mapping[str, Tensor]:
        return self._load(_MEANS_FILE)

    @cached_property
    def _extremes(self) -> Mapping[str, Tensor]:
        return self._load("extremes.safetensors")

    def _load(self, name: str) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = load_file(self.folder / name, device=str(self._device))
        return tensors

    def mean_abs(self, block: int, role: str) -> Tensor:
        """Return mean|x| [in_features] of one role of one block."""
        return self._means[f"{block}.{role}"]

    def block(self, block: int) -> dict[str, RoleStatistics]:
        """Return the statistics of one block by role; the caller holds the only copy."""
        assert self._meta is not None, "a pass for the means alone has no Gram matrices"
        tensors = self._load(f"gram-{block:03d}.safetensors")
        # A tensor of a file lies where it happens to, and products round by where their factors lie.
        grams = {role: tensors.pop(role).clone() for role in list(tensors)}
        return {
            role: RoleStatistics(
                mean_abs=self.mean_abs(block, role),
                gram=gram,
                low=self._extremes[f"{block}.{role}.low"],
                high=self._extremes[f"{block}.{role}.high"],
                n_tokens=self._meta["n_tokens"],
            )
            for role, gram in grams.items()
        }


@torch.no_grad()
def observe_means(
    loaded: LoadedModel,
    tokens: Tensor,
    *,
    batch_size: int,
    select: Tokens,
    folder: Path,
    progress: Progress,
) -> None:
    """Write mean|x| [in_features] of every role of every block, as `read_means` reads it.

    Args:
        loaded: the full precision model.
        tokens: [n_samples, seq_len] token ids.
        batch_size: windows per forward pass.
        select: which tokens count.
        folder: an empty folder.
        progress: one step per block.
    """
    with progress.activity("reference activations", loaded.architecture.n_blocks) as advance:
        stream = open_stream(loaded.view, tokens, batch_size)
        averaging = _Averaging(loaded.view, stream, select)
        walk_blocks([averaging], advance)
    save_file(averaging.means, folder / _MEANS_FILE)


class _Averaging:
    """A passenger who keeps the means of every block."""

    def __init__(self, model: Model, stream: BlockStream, select: Tokens) -> None:
        self.model = model
        self.means: dict[str, Tensor] = {}
        self._stream = stream
        self._select = select

    def work(self, index: int, block: nn.Module) -> None:
        means = block_means(self._stream, block, self.model.architecture.roles, self._select)
        self.means |= {f"{index}.{name}": mean.cpu() for name, mean in means.items()}


def block_means(
    stream: BlockStream, block: nn.Module, roles: Sequence[Role], select: Tokens
) -> dict[str, Tensor]:
    """Return mean|x| [in_features] of one block's roles and move the stream past it."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def hook(linear: nn.Module, args: tuple[Any, ...], name: str) -> None:
        x = select_tokens(prepared_input(linear, args[0]), select).float()
        sums[name] = sums.get(name, 0) + x.abs().sum(dim=0).double()
        counts[name] = counts.get(name, 0) + len(x)

    handles = [
        block.get_submodule(role.linears[0]).register_forward_pre_hook(partial(hook, name=role.name))
        for role in roles
    ]
    try:
        stream.advance(block)
    finally:
        for handle in handles:
            handle.remove()
    return {name: (total / counts[name]).float() for name, total in sums.items()}


def copy_means(statistics: Path, folder: Path) -> None:
    """Take the means out of the folder of full statistics."""
    shutil.copyfile(statistics / _MEANS_FILE, folder / _MEANS_FILE)


def read_means(folder: Path, n_blocks: int) -> dict[str, list[Tensor]]:
    """Return mean|x| by role, of every block in turn."""
    stored = load_file(folder / _MEANS_FILE)
    roles = dict.fromkeys(name.partition(".")[2] for name in stored)
    return {role: [stored[f"{index}.{role}"] for index in range(n_blocks)] for role in roles}
