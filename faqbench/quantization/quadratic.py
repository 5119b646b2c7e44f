"""The squared output error of a weight, tr(E G E'), through one half of the symmetric G.

Legend: E [rows, in] the error of a weight; G [in, in] = X'X / n_tokens, symmetric.

    tr(E G E') = sum over column blocks b of   E_b · (E_b.. H_b)
    H_b [in - start of b, width]  the rows of G from block b on, those below b's own doubled

so every pair of blocks is multiplied once instead of twice, which takes a little over half the products.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from faqbench.quantization.reproducible import dot

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
