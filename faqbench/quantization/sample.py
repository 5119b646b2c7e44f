"""The beginnings of a few calibration windows, carried along both streams.

512 tokens in all, so that carrying them costs little beside quantizing a block. They show how the error
of the blocks' outputs grows with depth, they are what `loss=attention` runs attention on, and they tell
FAQ's preview of the quantized stream what later blocks will read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from faqbench.models import BlockStream, LoadedModel, Model, Role, open_stream
from faqbench.quantization.activations import Tokens, block_means
from faqbench.quantization.reports import BlockReport
from faqbench.quantization.reproducible import total

# Several short beginnings choose better scales than one long one: reports/LOG.md, 2026-11-27.
N_SEARCHED = 4
_N_TOKENS = 512
Searched = Literal["full", "quantized"]


class Sample:
    """Both streams of the sample at the input of one block."""

    def __init__(
        self,
        loaded: LoadedModel,
        tokens: Tensor,
        *,
        n_traced: int,
        searched: Searched | None,
        looks_ahead: bool,
    ) -> None:
        """Open both streams.

        Args:
            loaded: the full precision model.
            tokens: [n_samples, seq_len], all calibration windows.
            n_traced: how many windows' errors are reported.
            searched: the stream that scale searches read, if any.
            looks_ahead: whether `drift` will be asked for.
        """
        self._n_traced = min(n_traced, len(tokens))
        self._searched = searched
        n_tokens = _N_TOKENS // min(N_SEARCHED, len(tokens))
        n_read = 0 if searched is None and not looks_ahead else N_SEARCHED
        cut = tokens[: max(n_traced, n_read), :n_tokens]
        # All in one batch: what is found must not depend on the batch size.
        opened = open_stream(loaded.view, cut, len(cut))
        # Each stream carries what is read of it.
        everything, traced = slice(None), slice(self._n_traced)
        read = [searched] if not looks_ahead else ["quantized", "full"]
        self._quantized = opened.fork(everything if "quantized" in read else traced)
        self._full = opened.fork(everything if "full" in read else traced)
        self._entered = self._full.fork()

    def arrive(self, block: nn.Module) -> None:
        """Take the next block in full precision."""
        self._entered = self._full.fork()
        self._full.advance(block)

    def searched(self) -> BlockStream:
        """Return what enters the block, of the stream and the windows that searches read."""
        stream = self._quantized if self._searched == "quantized" else self._entered
        return stream.fork(slice(N_SEARCHED))

    @torch.no_grad()
    def drift(
        self, blocks: Model, n_ahead: int, roles: Sequence[Role], select: Tokens
    ) -> list[dict[str, Tensor]]:
        """Return mean|x| of the quantized stream over that in full precision, by role.

        Both are sent on from the block that has arrived through it and `n_ahead` blocks after it, all in
        full precision; there is one entry for each of these. A channel that is never active gets 1.
        """
        streams = [s.fork(slice(N_SEARCHED)) for s in (self._quantized, self._entered)]
        start, errors = self._entered.index, list[dict[str, Tensor]]()
        for index in range(start, min(start + n_ahead + 1, blocks.architecture.n_blocks)):
            with blocks.block(index) as block:
                quantized, full = (block_means(s, block, roles, select) for s in streams)
            errors.append({r: torch.where(full[r] > 0, quantized[r] / full[r], 1.0) for r in quantized})
        return errors

    @torch.no_grad()
    def release(self, block: nn.Module) -> BlockReport | None:
        """Move on past the quantized block and report its error; None when nothing is traced."""
        self._quantized.advance(block)
        if self._n_traced == 0:
            return None
        traced = self._entered.fork(slice(self._n_traced))
        traced.advance(block)
        exact = self._full.hidden[: self._n_traced].float()
        quantized = self._quantized.hidden[: self._n_traced].float()
        cosines = functional.cosine_similarity(quantized, exact, dim=-1)
        return BlockReport(
            block=self._full.index - 1,
            local_error=_relative(traced.hidden.float(), exact),
            relative_error=_relative(quantized, exact),
            cosine=float(total(cosines) / cosines.numel()),
        )


def _relative(quantized: Tensor, exact: Tensor) -> float:
    return float(total((quantized - exact).square()) / total(exact.square()))
