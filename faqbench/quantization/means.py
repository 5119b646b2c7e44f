"""mean|x| per channel alone: a full precision pass without Gram matrices.

It is enough to say how far one calibration set is from another, and costs the forward pass only. The means
are those of `activations.observe` to the bit, so they can as well be copied from its folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from faqbench.models import BlockStream, LoadedModel, Model, Role, open_stream, prepared_input, walk_blocks
from faqbench.quantization.activations import Tokens, select_tokens
from faqbench.stages import Progress

_FILE = "mean_abs.safetensors"  # as `activations.observe` names it
CODE_VERSION = 2  # raise it when the numbers that `observe_means` writes change


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
    with progress.stage("reference activations", loaded.architecture.n_blocks) as advance:
        stream = open_stream(loaded.view, tokens, batch_size)
        averaging = _Averaging(loaded.view, stream, select)
        walk_blocks([averaging], advance)
    save_file(averaging.means, folder / _FILE)


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

    def hook(own: nn.Module, args: tuple[Any, ...], name: str) -> None:
        x = select_tokens(prepared_input(own, args[0]), select).float()
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
    shutil.copyfile(statistics / _FILE, folder / _FILE)


def read_means(folder: Path, n_blocks: int) -> dict[str, list[Tensor]]:
    """Return mean|x| by role, of every block in turn."""
    stored = load_file(folder / _FILE)
    roles = dict.fromkeys(name.partition(".")[2] for name in stored)
    return {role: [stored[f"{index}.{role}"] for index in range(n_blocks)] for role in roles}
