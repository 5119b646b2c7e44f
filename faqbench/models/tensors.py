"""A model's tensors by name, wherever they come from: the one way that weights are read again.

`open_tensors` gives those of a model as loading it found them. Reading one never holds a second copy of
the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from safetensors import safe_open
from torch import Tensor

from faqbench.config.experiment import ModelSection
from faqbench.models.checkpoint import TensorHeader, read_headers, weight_files
from faqbench.models.random_model import random_model
from faqbench.models.sources import checkpoint_folder


class Tensors(Protocol):
    """Named tensors."""

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return a tensor's shape, or None when there is no such tensor."""

    def read(self, name: str) -> Tensor:
        """Return a tensor, in the dtype that it is kept in."""


@contextmanager
def open_tensors(section: ModelSection) -> Iterator[Tensors]:
    """Open the tensors of a model that was loaded before.

    Raises:
        UserError: when its files are gone or damaged.
    """
    if section.source == "random":
        yield _Drawn(random_model(section.random or {}).state_dict())
        return
    folder = checkpoint_folder(section)
    with open_stored({} if folder is None else read_headers(weight_files(folder))) as stored:
        yield stored


@contextmanager
def open_stored(headers: Mapping[str, TensorHeader]) -> Iterator[Tensors]:
    """Open the tensors that safetensors files hold."""
    with ExitStack() as files:
        yield _Stored(headers, files)


class _Stored:
    """The tensors of safetensors files, each file opened when it is first read from."""

    def __init__(self, headers: Mapping[str, TensorHeader], files: ExitStack) -> None:
        self._headers = headers
        self._files = files
        self._opened: dict[Path, Any] = {}

    def shape(self, name: str) -> tuple[int, ...] | None:
        header = self._headers.get(name)
        return None if header is None else header.shape

    def read(self, name: str) -> Tensor:
        path = self._headers[name].file
        if path not in self._opened:
            self._opened[path] = self._files.enter_context(safe_open(path, framework="pt"))
        tensor: Tensor = self._opened[path].get_tensor(name)
        return tensor


class _Drawn:
    """The tensors of a random model, drawn anew."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._state = state

    def shape(self, name: str) -> tuple[int, ...] | None:
        return tuple(self._state[name].shape) if name in self._state else None

    def read(self, name: str) -> Tensor:
        return self._state[name]
