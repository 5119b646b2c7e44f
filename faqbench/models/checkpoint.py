"""What a folder says of its model before a weight is read: config.json, and the headers of its weights.

One rule tells which files hold the weights, that of transformers, and everything here goes by it: loading,
restoring between cells, the key of a source, and the checks before a run.

    1. the file, or the index, that config.json names as `transformers_weights`
    2. model.safetensors
    3. the files that model.safetensors.index.json names

Whatever else lies in the folder, an older set of shards or a backup, is no part of the checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

from safetensors import SafetensorError, safe_open

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
