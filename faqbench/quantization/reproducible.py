"""Sums and factorisations whose bits do not depend on how many threads compute them.

On a CPU torch splits a sum over all elements among its threads, and LAPACK cuts a factorisation by them,
so each number of threads rounds differently. Matrix products and sums along one axis do not. A sweep
divides the machine's threads among its processes, and its records must not depend on how: so sums run
row by row, and factorisations on one thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

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
