"""Quantized linears on disk, so that what a walk found need not be found again.

    <full name of the linear>.safetensors   one file per linear:
        qvalue       uint8 [n_bytes], codes less the smallest one, several to a byte, row by row
        scale        float32 [out_features, n_groups]
        zero_point   uint8 [out_features, n_groups]; absent when symmetric
        input_scale  float32 [in_features]; absent when unscaled
        output_scale float32 [out_features]; absent where no stored scale was divided by one
        input_range  float32 [2]; absent unless activations have static ranges
        metadata: bits, group_size, symmetric, out_features, in_features; symmetric_grid where it is not
        signed, and scale_dtype where one is set

Codes of 2 bits lie four to a byte, those of 3 and 4 bits two, wider ones alone, the first in the lowest
bits. Reading gives back the tensors that were written, so a weight dequantized from them is the same to
the bit. One file per linear lets a reader hold one linear at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from faqbench.config.experiment import ActivationsSection
from faqbench.models import Architecture, Rotation, Tensors, change_operands, prepare
from faqbench.quantization.activation_grid import ActivationGrid, OperandGrid
from faqbench.quantization.grid import Grid, QuantizedLinear

CHECKPOINT_VERSION = 1  # raise it when files change
_SUFFIX = ".safetensors"


def write_linear(folder: Path, name: str, linear: QuantizedLinear) -> None:
    """Write one quantized linear under its full name."""
    grid = linear.grid
    tensors = {"qvalue": pack(linear.qvalue, grid), "scale": linear.scale}
    if linear.zero_point is not None:
        tensors["zero_point"] = linear.zero_point
    if linear.input_scale is not None:
        tensors["input_scale"] = linear.input_scale
    if linear.input_range is not None:
        tensors["input_range"] = linear.input_range
    if linear.output_scale is not None:
        tensors["output_scale"] = linear.output_scale
    out_features, in_features = linear.qvalue.shape
    metadata: dict[str, int | str] = {
        "bits": grid.bits,
        "group_size": grid.group_size,
        "symmetric": int(grid.symmetric),
        "out_features": out_features,
        "in_features": in_features,
    }
    if grid.symmetric_grid != "signed":
        metadata["symmetric_grid"] = grid.symmetric_grid
    if grid.scale_dtype is not None:
        metadata["scale_dtype"] = grid.scale_dtype
    save_file(
        {key: tensor.cpu().contiguous() for key, tensor in tensors.items()},
        folder / f"{name}{_SUFFIX}",
        {key: str(value) for key, value in metadata.items()},
    )


def read_grid(folder: Path, name: str) -> Grid:
    """Read the grid of one quantized linear alone."""
    with safe_open(folder / f"{name}{_SUFFIX}", framework="pt") as file:
        return _grid(file.metadata())


def read_linear(folder: Path, name: str, device: torch.device) -> QuantizedLinear:
    """Read one quantized linear by its full name."""
    with safe_open(folder / f"{name}{_SUFFIX}", framework="pt", device=str(device)) as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    grid = _grid(metadata)
    shape = (int(metadata["out_features"]), int(metadata["in_features"]))
    return QuantizedLinear(
        qvalue=unpack(tensors["qvalue"], grid, shape),
        scale=tensors["scale"],
        zero_point=tensors.get("zero_point"),
        input_scale=tensors.get("input_scale"),
        output_scale=tensors.get("output_scale"),
        grid=grid,
        input_range=tensors.get("input_range"),
    )


def fingerprint_codes(folder: Path) -> str:
    """Return a sha256 over the names, shapes and bytes of all that a folder's linears are made of."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob(f"*{_SUFFIX}")):
        with safe_open(path, framework="np") as file:
            for key in sorted(file.keys()):
                tensor = file.get_tensor(key)
                digest.update(f"{path.name} {key} {tensor.dtype} {tensor.shape}".encode())
                digest.update(tensor.tobytes())
    return digest.hexdigest()


def _grid(metadata: Mapping[str, str]) -> Grid:
    return Grid(
        bits=int(metadata["bits"]),
        group_size=int(metadata["group_size"]),
        symmetric=metadata["symmetric"] == "1",
        symmetric_grid=metadata.get("symmetric_grid", "signed"),  # type: ignore[arg-type]
        scale_dtype=metadata.get("scale_dtype"),
    )


class StoredLinears(Mapping[str, QuantizedLinear]):
    """The quantized linears of a folder by full name; each is read when it is asked for."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._folder = folder
        self._device = device
        self._names = {p.name.removesuffix(_SUFFIX) for p in folder.glob(f"*{_SUFFIX}")}

    def __getitem__(self, name: str) -> QuantizedLinear:
        """Read a linear."""
        if name not in self._names:
            raise KeyError(name)
        return read_linear(self._folder, name, self._device)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names in their order."""
        return iter(sorted(self._names))

    def __len__(self) -> int:
        """Count the linears."""
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        """Say whether there is such a linear, without reading it."""
        return name in self._names


class QuantizedTensors:
    """A model's tensors with quantized linears, dequantized, in the place of some."""

    def __init__(self, base: Tensors, linears: Mapping[str, QuantizedLinear]) -> None:
        self._base = base
        self._linears = linears

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return a tensor's shape, or None when there is no such tensor."""
        return self._base.shape(name)

    def read(self, name: str, rows: slice = slice(None)) -> Tensor:
        """Return a tensor's rows; those of a quantized weight are float32."""
        linear = name.removesuffix(".weight")
        if linear not in self._linears:
            return self._base.read(name, rows)
        return self._linears[linear].dequantize()[rows]


def quantize_inputs(
    linears: Mapping[str, QuantizedLinear],
    settings: ActivationsSection,
    module: nn.Module,
    architecture: Architecture,
    of_keys: Rotation | None = None,
) -> None:
    """Let the linears of a model that were quantized round their inputs too, as `activation_grid` says.

    And its attention queries, keys and values, rotated by `of_keys` before.
    """
    if settings.key_bits is not None:
        change_operands(module, architecture, OperandGrid(settings, of_keys))
    targets = {name for role in settings.targets for name in architecture.role(role).linears}
    for name in linears if settings.bits is not None else ():
        if name.removeprefix(f"{architecture.blocks}.").partition(".")[2] in targets:
            linear = linears[name]
            prepare(module, name, ActivationGrid(settings, linear.input_scale, linear.input_range))


def pack(qvalue: Tensor, grid: Grid) -> Tensor:
    """Return codes [out_features, in_features] as bytes [n_bytes], the last one padded with zeros."""
    codes = (qvalue.to(torch.int16) - grid.code_range[0]).to(torch.uint8).flatten()
    per_byte = _codes_per_byte(grid)
    padded = nn.functional.pad(codes, (0, -len(codes) % per_byte)).view(-1, per_byte)
    packed = torch.zeros(len(padded), dtype=torch.uint8, device=codes.device)
    for index, shift in enumerate(_shifts(grid)):
        packed |= padded[:, index] << shift
    return packed


def unpack(packed: Tensor, grid: Grid, shape: tuple[int, int]) -> Tensor:
    """Return the codes of bytes: uint8 [out_features, in_features], or int8 when symmetric."""
    mask = 2**grid.bits - 1
    codes = torch.stack([(packed >> shift) & mask for shift in _shifts(grid)], dim=1).flatten()
    codes = codes[: shape[0] * shape[1]].view(shape)
    if grid.symmetric:
        return (codes.to(torch.int16) + grid.code_range[0]).to(torch.int8)
    return codes.contiguous()


def _codes_per_byte(grid: Grid) -> int:
    return {2: 4, 3: 2, 4: 2}.get(grid.bits, 1)


def _shifts(grid: Grid) -> Iterator[int]:
    per_byte = _codes_per_byte(grid)
    return (index * 8 // per_byte for index in range(per_byte))
