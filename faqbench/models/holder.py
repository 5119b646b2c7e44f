"""Keeping one model from cell to cell, so that a process loads it once for all cells that share it.

A cell replaces weights in place and casts the model for its evaluation. The next cell gets every
parameter and buffer back as loaded, bit for bit: read anew from the checkpoint's safetensors one tensor
at a time, so that no second copy of the model is ever in memory. A checkpoint whose tensors are not the
model's parameters one to one (transformers can rename and split while it loads) is loaded again instead.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from faqbench.config.experiment import ModelSection
from faqbench.models.loading import LoadedModel, load_model, load_tokenizer
from faqbench.models.random_model import random_model
from faqbench.models.sources import checkpoint_folder, tokenizer_source, weights_source
from faqbench.stages import Progress, hash_json


@dataclass(frozen=True, kw_only=True, eq=False)
class _Held:
    """A loaded model, what it was asked for as, and its buffers as they were then."""

    loaded: LoadedModel
    origin: str
    buffers: Mapping[str, Tensor]


class ModelHolder:
    """Holds the model that was asked for last.

    Attributes:
        n_loads: how often a model was loaded from its source.
    """

    def __init__(self) -> None:
        self.n_loads = 0
        self._held: _Held | None = None
        self._tokenizer: tuple[str, Any] | None = None
        self._changed = False

    def pristine(
        self,
        section: ModelSection,
        dtype: torch.dtype,
        device: torch.device,
        progress: Progress,
        fingerprint: str | None = None,
    ) -> LoadedModel:
        """Return a model with its weights as loaded; whoever changes it says so with `changed`.

        Raises:
            UserError: when it cannot be loaded.
        """
        origin = _origin(section, dtype, device)
        held = self._held
        if (
            held is not None
            and held.origin == origin
            and (not self._changed or _restore(held, section, dtype, progress))
        ):
            self._changed = False
            return held.loaded
        self._held = held = None
        gc.collect()  # the old model goes before the new one comes
        self.n_loads += 1
        loaded = load_model(section, dtype, device, progress, fingerprint)
        buffers = {name: buffer.clone() for name, buffer in loaded.model.named_buffers()}
        self._held = _Held(loaded=loaded, origin=_origin(section, dtype, device), buffers=buffers)
        self._changed = False
        return loaded

    def tokenizer(self, section: ModelSection, progress: Progress) -> Any:
        """Return a model's tokenizer, which nobody changes, without its weights.

        Raises:
            UserError: when it cannot be loaded.
        """
        origin = hash_json([tokenizer_source(section), section.model_dump(mode="json")])
        if self._tokenizer is None or self._tokenizer[0] != origin:
            self._tokenizer = origin, load_tokenizer(section, progress)
        return self._tokenizer[1]

    def changed(self) -> None:
        """Remember that the held model's weights are no longer those that were loaded."""
        self._changed = True


def _origin(section: ModelSection, dtype: torch.dtype, device: torch.device) -> str:
    source = weights_source(section)
    return hash_json([source, section.model_dump(mode="json"), str(dtype), str(device)])


@torch.no_grad()
def _restore(held: _Held, section: ModelSection, dtype: torch.dtype, progress: Progress) -> bool:
    """Give every parameter and buffer its value as loaded; False when that needs a new load."""
    model = held.loaded.model
    parameters = dict(model.named_parameters())
    with _tensors(section) as tensors, progress.stage(f"restore {section.name}", 1) as advance:
        if any(tensors.shape(name) != tuple(p.shape) for name, p in parameters.items()):
            return False
        for name, parameter in parameters.items():
            # By way of float32, as loading does.
            value = tensors.read(name).float()
            parameter.data = value.to(device=parameter.device, dtype=dtype)
        for name, buffer in model.named_buffers():
            buffer.data = held.buffers[name].clone()
        advance()
    return True


class _Tensors:
    """The tensors of a checkpoint by name, read one at a time."""

    def __init__(self, files: Mapping[str, Any]) -> None:
        self._files = files

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return a tensor's shape, or None when there is no such tensor."""
        file = self._files.get(name)
        return None if file is None else tuple(file.get_slice(name).get_shape())

    def read(self, name: str) -> Tensor:
        """Return a tensor."""
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor


class _Drawn(_Tensors):
    """The tensors of a random model, drawn anew."""

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return a tensor's shape, or None when there is no such tensor."""
        return tuple(self._files[name].shape) if name in self._files else None

    def read(self, name: str) -> Tensor:
        """Return a tensor."""
        tensor: Tensor = self._files[name]
        return tensor


@contextmanager
def _tensors(section: ModelSection) -> Iterator[_Tensors]:
    if section.source == "random":
        yield _Drawn(random_model(section.random or {}).state_dict())
        return
    folder = checkpoint_folder(section)
    with ExitStack() as stack:
        files: dict[str, Any] = {}
        for path in sorted(folder.glob("*.safetensors")) if folder is not None else ():
            file = stack.enter_context(safe_open(path, framework="pt"))
            files |= dict.fromkeys(file.keys(), file)
        yield _Tensors(files)
