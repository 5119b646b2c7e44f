"""A model's tensors by name, wherever they come from: the one way that weights are read.

    Stored   of safetensors files, in the dtype that they were written in
    Held     of a model in memory: drawn, or one whose files transformers had to convert

Other packages add views over these (quantized linears in the place of some). Reading a tensor never holds a
second copy of the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from safetensors import SafetensorError, safe_open
from torch import Tensor

from faqbench.config import UserError
from faqbench.models.checkpoint import TensorHeader

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
