"""Orthogonal matrices that are cheap to multiply by: Hadamard matrices of most sizes, and what stands in.

Legend: H a matrix of ±1 with H H' = n I; K its part that is no power of two; q a prime; chi(a) is 0, 1 or
-1 as a is 0, a square or no square modulo q; Q_ij = chi(i - j).

    Sylvester  order 2^m        H_2n = [[H, H], [H, -H]]
    Paley I    order q + 1      q = 3 mod 4: H = I + [[0, 1'], [-1, Q]]            12, 20, 44, 60, 140
    Paley II   order 2 (q + 1)  q = 1 mod 4: H = C (x) [[1, 1], [1, -1]] + I (x) [[1, -1], [-1, -1]]
                                with C = [[0, 1'], [1, Q]]                         28, 36, 76, 148
    product    order n m        H_n (x) H_m: 576 = 36·16, 1536 = 12·128, 640 = 20·32

A size that no order up to `_LARGEST_ORDER` times a power of two makes gets blocks of the largest power of
two that divides it (11008: 43 blocks of 256), which mix within a block alone.

    randomized Hadamard   R = diag(±1) H / sqrt(n), the signs drawn
    random orthogonal     Q of a Gaussian matrix, its columns turned so that R's diagonal is positive, which
                          makes it uniform among all orthogonal matrices

Reference: Paley 1933; QuIP#, arXiv 2402.04396, and QuaRot, arXiv 2404.00456, for the use. Differs from
QuaRot's code: the matrices are made, not read from a table, so its orders 52, 156 and 172, which need prime
powers or searches, are not among them; a size of theirs may have a larger order here, or blocks.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from functools import cache, reduce
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["hadamard", "random"]
_LARGEST_ORDER = 256  # a larger one is as costly as a dense matrix
_WIDEST_FACTOR = 64  # Sylvester's matrices are products: factors up to here multiply faster than the whole


@dataclass(frozen=True, kw_only=True, eq=False)
class Rotation:
    """An orthogonal matrix R = diag(signs) · (I of n_blocks (x) F_1 (x) F_2 ...).

    Attributes:
        factors: float64, each square and orthogonal.
        n_blocks: how often their product stands on the diagonal.
        signs: float64 [size] of ±1; None for ones.
    """

    factors: tuple[Tensor, ...]
    n_blocks: int = 1
    signs: Tensor | None = None

    @property
    def size(self) -> int:
        """Rows and columns of R."""
        return self.n_blocks * math.prod(len(factor) for factor in self.factors)

    def times(self, x: Tensor) -> Tensor:
        """Return x R for rows x [..., size], in x's dtype."""
        if self.signs is not None:
            x = x * self.signs.to(x)
        lead = (*x.shape[:-1], self.n_blocks)
        rows = x.reshape(*lead, -1)
        # Each factor multiplies the leading part of what is left and then goes to the end: after all of
        # them the parts are in their old order.
        for factor in self.factors:
            parts = rows.reshape(*lead, len(factor), -1).transpose(-1, -2)
            rows = (parts @ factor.to(x)).reshape(*lead, -1)
        return rows.reshape(x.shape)

    def like(self, x: Tensor) -> Rotation:
        """Return the same in the dtype and on the device of a tensor."""
        signs = None if self.signs is None else self.signs.to(x)
        return replace(self, factors=tuple(factor.to(x) for factor in self.factors), signs=signs)

    def matrix(self) -> Tensor:
        """Return R, float64 [size, size]."""
        return self.times(torch.eye(self.size, dtype=torch.float64))

    def repeated(self, times: int) -> Rotation:
        """Return the rotation of so many parts side by side, each by this one."""
        signs = None if self.signs is None else self.signs.repeat(times)
        return replace(self, n_blocks=self.n_blocks * times, signs=signs)


def draw_rotation(kind: Kind, size: int, seed: int, place: str) -> Rotation:
    """Draw a rotation.

    Args:
        kind: randomized Hadamard, or uniform among all orthogonal matrices.
        size: rows and columns; even for a Hadamard matrix.
        seed: of the draw.
        place: what it is for: each place has a draw of its own.
    """
    digest = hashlib.sha256(f"{seed} {place}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    if kind == "random":
        gaussian = torch.randn(size, size, dtype=torch.float64, generator=generator)
        q, r = torch.linalg.qr(gaussian)
        return Rotation(factors=(q * r.diagonal().sign(),))
    width = block_width(size)
    signs = torch.randint(0, 2, (size,), generator=generator).double() * 2 - 1
    factors = _split(width) if width < size else _factors(size)
    factors = tuple(factor / math.sqrt(len(factor)) for factor in factors)
    return Rotation(factors=factors, n_blocks=size // width, signs=signs)


def block_width(size: int) -> int:
    """Return how many channels a Hadamard rotation of this size mixes: all, or a power of two."""
    return size if _paley_part(size) is not None else size & -size


def hadamard(order: int) -> Tensor:
    """Return H of an order that has one here, float64 [order, order]."""
    return reduce(torch.kron, _factors(order), torch.ones(1, 1, dtype=torch.float64))


def _factors(size: int) -> tuple[Tensor, ...]:
    part = _paley_part(size)
    assert part is not None, f"no Hadamard matrix of order {size}"
    return (*([_paley(part)] if part > 1 else []), *_split(size // part))


def _paley_part(size: int) -> int | None:
    """Return the smallest order K such that size is K times a power of two; None when there is none."""
    part = size // (size & -size)
    while part <= min(size, _LARGEST_ORDER):
        if part == 1 or _paley_prime(part) is not None:
            return part
        part *= 2
        if size % part:
            break
    return None


def _split(power: int) -> tuple[Tensor, ...]:
    """Return Sylvester's matrix of a power of two as factors of about equal size."""
    exponent = power.bit_length() - 1
    n_factors = max(1, math.ceil(exponent / math.log2(_WIDEST_FACTOR)))
    exponents = [(exponent + i) // n_factors for i in range(n_factors)]
    return tuple(_sylvester(e) for e in exponents if e > 0)


@cache
def _sylvester(exponent: int) -> Tensor:
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    return reduce(torch.kron, [two] * exponent)


def _paley_prime(order: int) -> tuple[int, bool] | None:
    """Return the prime that a Paley construction makes an order of, and whether it is the second."""
    if order % 4 == 0 and _is_prime(order - 1):
        return order - 1, False
    if order % 4 == 0 and _is_prime(order // 2 - 1) and (order // 2 - 1) % 4 == 1:
        return order // 2 - 1, True
    return None


@cache
def _paley(order: int) -> Tensor:
    found = _paley_prime(order)
    assert found is not None
    q, is_second = found
    squares = {i * i % q for i in range(1, q)}
    chi = torch.tensor([0.0] + [1.0 if i in squares else -1.0 for i in range(1, q)])
    index = torch.arange(q)
    bordered = torch.ones(q + 1, q + 1, dtype=torch.float64)
    bordered[0, 0] = 0
    bordered[1:, 1:] = chi[(index[:, None] - index) % q]
    identity = torch.eye(q + 1, dtype=torch.float64)
    if not is_second:
        bordered[1:, 0] = -1
        return identity + bordered
    one = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    other = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
    return torch.kron(bordered, one) + torch.kron(identity, other)


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % divisor for divisor in range(2, math.isqrt(n) + 1))
