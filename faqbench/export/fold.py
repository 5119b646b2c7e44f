"""The measured model as the tensors of a checkpoint: quantized linears, and all else with scales folded in.

A run evaluates W = (q - z) * scale / s in the place of each weight, s its role's input scale. A checkpoint
has no place for s, so it is folded into what produces the input (see `quantization.folding`), which leaves
the outputs as they were:

    a norm             (g + offset) / s - offset         offset 1 for Gemma's norms, else 0
    quantized rows     scale / s, their bias / s         codes and zero points stay
    other rows         w / s, their bias / s
    linears left out   w * s, where `quant.skip` keeps a linear that reads the same input

Tensors are read and folded one at a time, a block's codes together, so memory is that of a block.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from faqbench.models import Architecture, Tensors
from faqbench.quantization import Grid, QuantizedLinear
from faqbench.quantization.checkpoint import StoredLinears, read_grid
from faqbench.quantization.folding import fed_by, fold_block, row_scale

Part = QuantizedLinear | Tensor


@dataclass(frozen=True, kw_only=True)
class _Folds:
    """What the scales of one block change: by name relative to the block, vectors to divide or multiply."""

    gains: Mapping[str, Tensor]
    rows: Mapping[str, Tensor]
    columns: Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredModel:
    """A measured model, to be written tensor by tensor.

    Attributes:
        config: of transformers.
        tokenizer: of transformers.
        architecture: where its blocks and linears are.
        names: of its parameters, in the order in which they are written.
        base: the tensors of the full precision model.
        codes: the folder of the run's quantized linears.
        weights_dtype: in which weights were quantized.
        dtype: in which they were evaluated.
    """

    config: Any
    tokenizer: Any
    architecture: Architecture
    names: tuple[str, ...]
    base: Tensors
    codes: Path
    weights_dtype: torch.dtype
    dtype: torch.dtype

    @cached_property
    def grids(self) -> dict[str, Grid]:
        """The grid of each quantized linear as it is stored, by full name; scales are float32 at most."""
        return {name: _stored(read_grid(self.codes, name)) for name in self._stored_linears}

    @cached_property
    def _stored_linears(self) -> StoredLinears:
        return StoredLinears(self.codes, torch.device("cpu"))

    @cached_property
    def kept(self) -> list[str]:
        """The full names of linears that stay in full precision, the output head among them."""
        return [self.architecture.head] + [
            n for n in self.architecture.linear_names() if n not in self.grids
        ]

    def parts(self) -> Iterator[tuple[str, Part]]:
        """Yield (name, tensor) of each parameter, or (full name, linear) where it is a quantized weight."""
        start = f"{self.architecture.blocks}."
        index, linears, folds = (-1, dict[str, QuantizedLinear](), _Folds(gains={}, rows={}, columns={}))
        for name in self.names:
            if not name.startswith(start):
                yield name, self._cast(self.base.read(name))
                continue
            number, _, inner = name.removeprefix(start).partition(".")
            if int(number) != index:
                index = int(number)
                linears = self._linears(index)
                folds = self._folds(linears)
            module, _, kind = inner.rpartition(".")
            if kind == "weight" and module in linears:
                yield f"{start}{number}.{module}", linears[module]
            else:
                yield name, self._folded(self.base.read(name), module, kind, folds)

    def _linears(self, index: int) -> dict[str, QuantizedLinear]:
        """Return the quantized linears of a block as they are stored, by name relative to it."""
        start = f"{self.architecture.blocks}.{index}."
        linears = {
            name: self._stored_linears[f"{start}{name}"]
            for name in self.architecture.shapes
            if f"{start}{name}" in self._stored_linears
        }
        if any(linear.grid.scale_dtype is None for linear in linears.values()):
            fold_block(linears, self.architecture, linears.__setitem__)  # else it was measured so
        return {n: replace(linear, grid=_stored(linear.grid)) for n, linear in linears.items()}

    def _folds(self, linears: Mapping[str, QuantizedLinear]) -> _Folds:
        gains, rows, columns = dict[str, Tensor](), dict[str, Tensor](), dict[str, Tensor]()
        for role in self.architecture.roles:
            scale = next((linears[n].input_scale for n in role.linears if n in linears), None)
            if scale is None:
                continue
            columns |= dict.fromkeys(role.linears, scale)
            source = fed_by(role, self.architecture)
            if source is None:
                gains[role.source] = scale
            else:
                n_rows = self.architecture.shapes[source][0]
                rows[source] = row_scale(role, scale, n_rows, self.architecture)
        return _Folds(gains=gains, rows=rows, columns=columns)

    def _folded(self, tensor: Tensor, module: str, kind: str, folds: _Folds) -> Tensor:
        value = tensor
        if module in folds.gains:
            offset = self.architecture.norm_offset
            value = (value.float() + offset) / folds.gains[module] - offset
        if module in folds.columns and kind == "weight":
            value = value.float() * folds.columns[module]
        if module in folds.rows:
            rows = folds.rows[module]
            value = value.float() / (rows if kind == "bias" else rows.unsqueeze(-1))
        return self._cast(tensor) if value is tensor else value.to(self.dtype)

    def _cast(self, tensor: Tensor) -> Tensor:
        """Return a tensor as it was measured: in its own dtype while both dtypes hold all its numbers."""
        dtypes = (self.weights_dtype, self.dtype)
        if all(torch.promote_types(tensor.dtype, dtype) == dtype for dtype in dtypes):
            return tensor
        return tensor.to(self.weights_dtype).to(self.dtype)


def stored_weight(linear: QuantizedLinear) -> Tensor:
    """Return the float32 weight [out_features, in_features] that a loader makes of what is stored."""
    return replace(linear, input_scale=None, output_scale=None).dequantize()


def _stored(grid: Grid) -> Grid:
    """Return a grid whose scales are stored as they were measured, in float32 where no dtype was set."""
    return replace(grid, scale_dtype=grid.scale_dtype or "float32")
