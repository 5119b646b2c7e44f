"""A model's tensors by name, wherever they come from: the one way that weights are read.

    Stored   of safetensors files, in the dtype that they were written in
    Held     of a model in memory: drawn, or one whose files transformers had to convert

Other packages add views over these (quantized linears in the place of some). Reading a tensor never holds a
second copy of the model.

Before a weight is read, config.json and the headers of its files say what a folder holds. One rule tells
which files hold the weights, that of transformers, and everything here goes by it: loading, restoring
between cells, the key of a source, and the checks before a run.

    1. the file, or the index, that config.json names as `transformers_weights`
    2. model.safetensors
    3. the files that model.safetensors.index.json names

Whatever else lies in the folder, an older set of shards or a backup, is no part of the checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any, Protocol

from safetensors import SafetensorError, safe_open
from torch import Tensor

from faqbench.config import UserError

CONFIG = "config.json"
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True, kw_only=True)
class TensorHeader:
    """A stored tensor.

    Attributes:
        file: that holds it.
        dtype: as safetensors spells it: F32, BF16, ...
        shape: of the tensor.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]


def read_config(folder: Path) -> dict[str, Any]:
    """Return what a folder's config.json holds.

    Raises:
        UserError: when it cannot be read, or is not a mapping.
    """
    return _read_mapping(folder / CONFIG)


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold a folder's weights, in the order in which transformers reads them.

    They need not be there. The list is empty when the folder names none.

    Raises:
        UserError: for a damaged index, and for files that are not inside the folder.
    """
    index = index_file(folder)
    if index is not None:
        shards = _read_mapping(index).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(n, str) for n in shards.values()):
            raise UserError(f"{index} is damaged: it has no weight_map from tensors to files")
        return [_inside(folder, name, index) for name in sorted(set(shards.values()))]
    named = read_config(folder).get("transformers_weights")
    if named is not None:
        return [_inside(folder, str(named), folder / CONFIG)]
    return [folder / _WEIGHTS] if (folder / _WEIGHTS).is_file() else []


def index_file(folder: Path) -> Path | None:
    """Return the index that tells which files hold which weights, or None when there is none to read."""
    named = read_config(folder).get("transformers_weights")
    if named is not None:
        path = _inside(folder, str(named), folder / CONFIG)
        return path if path.name.endswith(".index.json") else None
    if (folder / _WEIGHTS).is_file() or not (folder / _INDEX).is_file():
        return None
    return folder / _INDEX


def read_headers(files: Iterable[Path]) -> dict[str, TensorHeader]:
    """Return the headers of all tensors by name.

    Raises:
        UserError: for a file that is missing, damaged or cut short, and for a tensor that two files hold.
    """
    headers: dict[str, TensorHeader] = {}
    for path in files:
        if not path.is_file():
            raise UserError(f"{path} is missing")
        try:
            with safe_open(path, framework="pt") as stored:
                for name in stored.keys():  # noqa: SIM118 - not a mapping
                    if name in headers:
                        raise UserError(
                            f"both {headers[name].file.name} and {path.name} hold {name}; which of "
                            "them counts is left open"
                        )
                    part = stored.get_slice(name)
                    headers[name] = TensorHeader(
                        file=path, dtype=part.get_dtype(), shape=tuple(part.get_shape())
                    )
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is damaged or cut short ({error})") from error
    return headers


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: it holds no mapping")
    return value


def _inside(folder: Path, name: str, named_by: Path) -> Path:
    """Return a file that is named relative to a folder; refuse one outside it."""
    parts = {*PurePath(name).parts, *PureWindowsPath(name).parts}
    if PurePath(name).is_absolute() or PureWindowsPath(name).anchor or ".." in parts:
        raise UserError(f"{named_by} names a file outside its folder, {name}")
    return folder / name


ALL = slice(None)


class Tensors(Protocol):
    """Named tensors."""

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return a tensor's shape, or None when there is no such tensor."""

    def read(self, name: str, rows: slice = ALL) -> Tensor:
        """Return a tensor's rows, in the dtype that it is kept in; whoever changes or keeps them copies."""


class Stored:
    """The tensors of safetensors files; a file is mapped while a tensor of it is in use.

    A streamed model reads them for as long as its cell takes, and must not end as a mixture of two.
    """

    def __init__(self, headers: Mapping[str, TensorHeader]) -> None:
        self._headers = headers
        self._states = {file: _state(file) for file in {h.file for h in headers.values()}}

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return a tensor's shape, or None when no file holds it."""
        header = self._headers.get(name)
        return None if header is None else header.shape

    def read(self, name: str, rows: slice = ALL) -> Tensor:
        """Return a tensor's rows as they lie in its file; of some, no others come into memory.

        Raises:
            UserError: when the file is not what it was, or not there.
        """
        path = self._headers[name].file
        try:
            if _state(path) != self._states[path]:
                raise UserError(
                    f"{path} changed while its model was in use; run again when nothing writes it."
                )
            with safe_open(path, framework="pt") as file:
                tensor: Tensor = file.get_tensor(name) if rows == ALL else file.get_slice(name)[rows]
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} can no longer be read: {error}.") from error
        return tensor


def is_finite(tensor: Tensor) -> bool:
    """Say whether a tensor holds neither NaN nor infinity, in one pass and without a copy."""
    return all(extreme.isfinite() for extreme in tensor.aminmax())


def _state(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size


class Held:
    """The tensors of a model in memory."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._state = state

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return a tensor's shape, or None when there is no such tensor."""
        return tuple(self._state[name].shape) if name in self._state else None

    def read(self, name: str, rows: slice = ALL) -> Tensor:
        """Return a tensor's rows, not a copy of them."""
        return self._state[name] if rows == ALL else self._state[name][rows]
