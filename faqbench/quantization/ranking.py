"""Which of many candidates may have the smallest loss, without taking all losses in full.

A loss is a sum over the rows of a weight, and rows are alike but not equal: in some layers a few rows make
most of it. So one candidate is taken in full first, and tells which rows are heavy. All candidates
are taken on the heavy rows, then on one sample of the others after another, and leave when what is known
of them rules them out:

    behind(c) = seen loss of c + least(c) - whole loss of the leader
    least(c)  = max(0, loss of the leader on U + n_U · (mean(d) - sigmas · standard error))

where U are the unseen rows on which the leader loses no more than on some sampled row, and d is the paired
difference to the leader on the sampled rows. The leader is always taken in full. On unseen rows where
it is heavier than on any sampled one, c may lose nothing; where c is heavy itself, a sampled row widens
the standard error, and an unseen one makes c worse than thought, not better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

_LOSING_SIGMAS = 4.0
_HEAVY_FRAC = 1 / 32


class RowLosses(Protocol):
    """The loss of every candidate on every row."""

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    def __call__(self, candidates: Sequence[int], rows: Tensor) -> Tensor:
        """Return float64 [candidates, rows], non-negative or NaN."""
        ...


def contenders(
    row_losses: RowLosses, n_candidates: int, *, first: int, margin: float, n_samples: int
) -> list[int]:
    """Return the candidates whose loss may be within `margin` of the smallest, in increasing order.

    Args:
        row_losses: of the candidates. One whose loss is seen to be NaN stays.
        n_candidates: how many there are.
        first: the candidate that is taken in full first; close to the best, it saves work.
        margin: relative to the smallest loss.
        n_samples: into how many samples the rows are cut; 1 takes every loss in full.
    """
    n_rows = len(row_losses)
    losses_seen = row_losses([first], torch.arange(n_rows))
    order = losses_seen[0].argsort(descending=True, stable=True).cpu()
    losses = losses_seen.new_zeros(n_candidates, n_rows)  # columns in the order of `order`
    losses[first] = losses_seen[0, order]
    in_full, kept = {first}, list(range(n_candidates))
    heavy = torch.arange(n_rows) < math.ceil(n_rows * _HEAVY_FRAC)
    sampled = torch.zeros(n_rows, dtype=torch.bool)
    for sample in range(n_samples):
        new = ~heavy & (torch.arange(n_rows) % n_samples == sample)
        sampled |= new
        seen = sampled | heavy
        unknown = [c for c in kept if c not in in_full]
        _take(row_losses, unknown, order, seen if sample == 0 else new, losses)
        leader = kept[first_smallest(losses[kept][:, seen].sum(dim=1).tolist())]
        if leader not in in_full:
            _take(row_losses, [leader], order, ~seen, losses)
            in_full.add(leader)
        behind = _behind(losses[kept], losses[leader], seen, sampled)
        limit = margin * float(losses[leader].sum())
        kept = [c for c, b in zip(kept, behind.tolist(), strict=True) if c == leader or not b > limit]
        if len(kept) == 1:
            break
    return kept


def first_smallest(losses: Sequence[float]) -> int:
    """Return the index of the smallest loss, the first of equals; NaN never wins over a number."""
    return min(range(len(losses)), key=lambda i: (math.isnan(losses[i]), losses[i]))


def _take(
    row_losses: RowLosses, candidates: Sequence[int], order: Tensor, rows: Tensor, losses: Tensor
) -> None:
    """Fill in the losses of some candidates on the rows that a mask over `order` names."""
    columns = rows.nonzero().flatten()
    if candidates and len(columns) > 0:
        taken = row_losses(candidates, order[columns])
        losses[torch.tensor(candidates)[:, None], columns] = taken


def _behind(losses: Tensor, leader: Tensor, seen: Tensor, sampled: Tensor) -> Tensor:
    """Return by how much each candidate's whole loss exceeds the leader's at least, [candidates].

    Args:
        losses: [candidates, rows], of which those seen are known.
        leader: [rows], all known.
        seen: [rows], a mask.
        sampled: [rows], a mask of those seen rows that stand for unseen ones.
    """
    behind = losses[:, seen].sum(dim=1) - leader.sum()
    if bool(seen.all()):
        return behind
    alike = ~seen.to(leader.device) & (leader <= leader[sampled].max())
    n_sampled, n_alike = int(sampled.sum()), int(alike.sum())
    differences = losses[:, sampled] - leader[sampled]
    error = differences.std(dim=1) * math.sqrt(n_alike * (1 + n_alike / n_sampled))
    expected = leader[alike].sum() + n_alike * differences.mean(dim=1)
    least = (expected - _LOSING_SIGMAS * error).clamp(min=0)
    return behind + least
