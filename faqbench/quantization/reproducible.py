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
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
