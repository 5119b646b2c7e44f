"""The measured model as the tensors of a checkpoint: quantized linears, and all else with scales folded in.

A run evaluates W = (q - z) * scale / s in the place of each weight, s its role's input scale. A checkpoint
has no place for s, so it is folded into what produces the input (see `quantization.folding`), which leaves
the outputs as they were:

    a norm             (g + offset) / s - offset         offset 1 for Gemma's norms, else 0
    quantized rows     scale / s, their bias / s         codes and zero points stay
    other rows         w / s, their bias / s
    linears left out   w * s, where `quant.skip` keeps a linear that reads the same input

Tensors are read and folded one at a time, a block's codes together, so memory is that of a block.

They are written as files of a bounded size, their index, and the model's config beside them. Until the
checkpoint is whole each file has a list of the parts in it beside it, which is written last: what an export
that was stopped has packed is not packed again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from faqbench.files import atomic_write
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


Encode = Callable[[QuantizedLinear], Mapping[str, Tensor]]


class Shards:
    """Takes the parts of a model one by one; a single file of them is `model.safetensors`."""

    def __init__(
        self, folder: Path, most_bytes: int, encode: Encode, config: Any, settings: Mapping[str, Any]
    ) -> None:
        """Begin a checkpoint.

        Args:
            folder: to write into, where an earlier attempt at the same checkpoint may have left files.
            most_bytes: of one file, a single tensor aside.
            encode: gives the tensors of a linear, by the last part of their names.
            config: of transformers.
            settings: the `quantization_config` that the loader expects.
        """
        self._folder, self._most, self._encode = folder, most_bytes, encode
        self._held: dict[str, Tensor] = {}
        self._parts: list[str] = []  # whose tensors are held
        self._shards = [json.loads(path.read_text()) for path in self._lists()]
        self._done = {part for shard in self._shards for part in shard["parts"]}
        config.save_pretrained(folder)
        path = folder / "config.json"
        content = json.loads(path.read_text()) | {"quantization_config": dict(settings)}
        path.write_text(json.dumps(content, indent=2) + "\n")

    def add(self, name: str, part: Part) -> None:
        """Take a parameter or a quantized linear; what an earlier attempt has written stays as it is."""
        if name in self._done:
            return
        tensors = {name: part} if isinstance(part, Tensor) else self._packed(name, part)
        n_bytes = sum(tensor.nbytes for tensor in tensors.values())
        if self._held and _size(self._held) + n_bytes > self._most:
            self._write()
        self._held |= {key: tensor.contiguous().clone() for key, tensor in tensors.items()}
        self._parts.append(name)

    def close(self) -> None:
        """Write the rest, and give the files the names that loaders know."""
        if self._held:
            self._write()
        n_shards = len(self._shards)
        weight_map: dict[str, str] = {}
        for index, shard in enumerate(self._shards):
            file = f"model-{index + 1:05d}-of-{n_shards:05d}.safetensors"
            file = file if n_shards > 1 else "model.safetensors"
            self._part(index).rename(self._folder / file)
            weight_map |= dict.fromkeys(shard["tensors"], file)
        if n_shards > 1:
            total = sum(shard["n_bytes"] for shard in self._shards)
            content = {"metadata": {"total_size": total}, "weight_map": weight_map}
            index_file = self._folder / "model.safetensors.index.json"
            index_file.write_text(json.dumps(content, indent=1))
        for path in self._lists():
            path.unlink()

    def _packed(self, name: str, linear: QuantizedLinear) -> dict[str, Tensor]:
        return {f"{name}.{kind}": tensor for kind, tensor in self._encode(linear).items()}

    def _write(self) -> None:
        index = len(self._shards)
        save_file(self._held, self._part(index), {"format": "pt"})
        shard = {"parts": self._parts, "tensors": list(self._held), "n_bytes": _size(self._held)}
        atomic_write(self._part(index).with_suffix(".json"), json.dumps(shard).encode())
        self._shards.append(shard)
        self._held, self._parts = {}, []

    def _part(self, index: int) -> Path:
        return self._folder / f"part-{index}.safetensors"

    def _lists(self) -> list[Path]:
        n_lists = len(list(self._folder.glob("part-*.json")))
        return [self._part(index).with_suffix(".json") for index in range(n_lists)]


def _size(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
