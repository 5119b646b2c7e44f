"""Sums and factorisations whose bits do not depend on how many threads compute them.

On a CPU torch splits a sum over all elements among its threads, and LAPACK cuts a factorisation by them,
so each number of threads rounds differently. Matrix products and sums along one axis do not. A sweep
divides the machine's threads among its processes, and its records must not depend on how: so sums run
row by row, and factorisations on one thread.

A Hessian may be singular: the Cholesky factor is that of

    H / m + damping I = L L'        m = mean(diag H)

and a Hessian that cannot be factored gets ten times the damping, again and again; what was used is returned
and recorded, never a silent pass. H is divided by m first, so that tiny and huge activations factor alike.
The factor is computed in the place of the damped Hessian: of a wide linear each of them is a gigabyte.

The squared output error of a weight, tr(E G E'), goes through one half of the symmetric G. Legend: E [rows,
in] the error of a weight; G [in, in] = X'X / n_tokens.

    tr(E G E') = sum over column blocks b of   E_b · (E_b.. H_b)
    H_b [in - start of b, width]  the rows of G from block b on, those below b's own doubled

so every pair of blocks is multiplied once instead of twice, which takes a little over half the products.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from faqbench.models import is_finite

_SERIAL = 2**14  # numbers that torch adds up on one thread; half of what it takes


def total(values: Tensor) -> Tensor:
    """Return the sum of all elements as a float64 scalar: rows in their own dtype, then their sums."""
    rows = values.flatten(0, -2)
    # One row alone would be split among threads.
    return _total_of_rows(rows.sum(dim=-1) if len(rows) > 1 else rows.flatten())


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the sum of all products of two equal shapes as a float64 scalar."""
    return _total_of_rows(torch.linalg.vecdot(a, b).flatten())


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """Run LAPACK on one thread of a CPU; on other devices nothing changes."""
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _total_of_rows(sums: Tensor) -> Tensor:
    parts = torch.split(sums.double(), _SERIAL)
    return torch.stack([part.sum() for part in parts]).sum()


MAX_DAMPING = 1e4


class HessianError(ValueError):
    """A Hessian that no damping makes factorable; the engine adds which linear's it was."""


def damped_cholesky(
    hessian: Tensor, damping: float, dtype: torch.dtype | None = None
) -> tuple[Tensor, float]:
    """Return the lower factor L of the damped Hessian over its mean diagonal, and the damping used.

    Args:
        hessian: [in_features, in_features], symmetric, its diagonal not all zero.
        damping: relative to the mean of the diagonal.
        dtype: of the factor; None is that of the Hessian.

    Raises:
        HessianError: when no damping up to 10^4 helps, as with NaN.
    """
    dtype = dtype or hessian.dtype
    mean = hessian.diagonal().to(dtype).mean()
    while damping <= MAX_DAMPING:
        damped = hessian.to(dtype, copy=True).div_(mean)
        damped.diagonal().add_(damping)
        lower = damped.T  # in LAPACK's order of elements, and equal, since it is symmetric
        failed = torch.empty((), dtype=torch.int32, device=hessian.device)
        with one_thread(hessian.device):
            torch.linalg.cholesky_ex(lower, out=(lower, failed))
        if not failed and is_finite(lower):
            return lower, damping
        damping *= 10
    raise HessianError("the Hessian cannot be factored at any damping; it may hold NaN or infinity")


# Columns per block: narrow enough to save products, wide enough for the matrix units.
_BLOCK_COLUMNS = {"cpu": 192, "cuda": 2048}
# Elements of a weight that are worked on at a time: few enough to stay in cache, enough for the matrix
# units (SmolLM2-135M on two cores: 2**17 costs 11 % more time, 2**18 4 %, 2**20 1 %).
_CHUNK_ELEMENTS = {"cpu": 2**19, "cuda": 2**26}


@dataclass(frozen=True, kw_only=True)
class HalfGram:
    """One half of a Gram matrix, in blocks of columns.

    Attributes:
        blocks: [in_features - start, width] each, from the first columns to the last.
    """

    blocks: tuple[Tensor, ...]


def halve(gram: Tensor, dtype: torch.dtype = torch.float32) -> HalfGram:
    """Return one half of a symmetric [in_features, in_features] matrix; products are taken in `dtype`."""
    width = _BLOCK_COLUMNS.get(gram.device.type, len(gram))
    blocks = []
    for start in range(0, len(gram), width):
        block = gram[start:, start : start + width].clone()
        block[width:] *= 2
        blocks.append(block.to(dtype))
    return HalfGram(blocks=tuple(blocks))


def quadratic_form(error: Tensor, half: HalfGram) -> Tensor:
    """Return tr(E G E') as a float64 scalar tensor.

    Args:
        error: float32 [rows, in_features].
        half: of G.
    """
    total = torch.zeros((), dtype=torch.float64, device=error.device)
    for product, columns in _products(error, half):
        total += dot(product, columns)
    return total


def row_quadratic_forms(error: Tensor, half: HalfGram) -> Tensor:
    """Return e G e' of each row e as float64 [rows]; arguments as for `quadratic_form`."""
    totals = torch.zeros(len(error), dtype=torch.float64, device=error.device)
    for product, columns in _products(error, half):
        totals += torch.linalg.vecdot(product, columns)
    return totals


def _products(error: Tensor, half: HalfGram) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield E_b.. H_b and E_b of every block of columns; their products are what a row adds up."""
    narrow = error.to(half.blocks[0].dtype)
    start = 0
    for block in half.blocks:
        stop = start + block.shape[1]
        yield (narrow[:, start:] @ block).to(error.dtype), error[:, start:stop]
        start = stop


def row_chunks(weight: Tensor) -> tuple[Tensor, ...]:
    """Cut a weight into pieces of whole rows that fit a core's cache."""
    elements = _CHUNK_ELEMENTS.get(weight.device.type, 2**20)
    return torch.split(weight, max(1, elements // weight.shape[1]))
