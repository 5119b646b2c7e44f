"""Keeping one model from cell to cell, so that a process loads it once for all cells that share it.

A cell replaces weights in place and casts the model for its evaluation. The next cell gets every
parameter and buffer back as loaded, bit for bit: read anew one tensor at a time, so that no second copy
of the model is ever in memory. Loading can do more than to copy tensors of equal names (it may rename,
split, dequantize, apply an adapter); a model whose first restoring does not give the fingerprint that it
was loaded with is loaded again instead, then and for every cell that follows.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from faqbench.config import UserError
from faqbench.config.experiment import ModelSection
from faqbench.models.loading import LoadedModel, fingerprint_weights, load_model, load_tokenizer
from faqbench.models.sources import tokenizer_source, weights_source
from faqbench.models.tensors import open_tensors
from faqbench.stages import Progress, hash_json


@dataclass(kw_only=True, eq=False)
class _Held:
    """A loaded model, what it was asked for as, and its buffers as they were then.

    Attributes:
        can_restore: whether reading its tensors again gives the model as loaded; None until it was tried.
    """

    loaded: LoadedModel
    origin: str
    buffers: Mapping[str, Tensor]
    can_restore: bool | None = None


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
        can_restore = None
        if held is not None and held.origin == origin:
            if not self._changed or _restore(held, section, dtype, device, progress):
                self._changed = False
                return held.loaded
            can_restore = held.can_restore
        self._held = held = None
        gc.collect()  # the old model goes before the new one comes
        self.n_loads += 1
        was_here = weights_source(section) is not None
        loaded = load_model(section, dtype, device, progress, fingerprint)
        buffers = {name: buffer.clone() for name, buffer in loaded.model.named_buffers()}
        after = _origin(section, dtype, device)
        if was_here and after != origin:
            raise UserError(
                f"The files of model={section.name} changed while they were read; run again when "
                "nothing writes them."
            )
        self._held = _Held(loaded=loaded, origin=after, buffers=buffers, can_restore=can_restore)
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
def _restore(
    held: _Held, section: ModelSection, dtype: torch.dtype, device: torch.device, progress: Progress
) -> bool:
    """Give every parameter and buffer its value as loaded; False when that needs a new load."""
    if held.can_restore is False:
        return False
    model = held.loaded.model
    parameters = dict(model.named_parameters())
    with open_tensors(section) as tensors, progress.stage(f"restore {section.name}", 1) as advance:
        if any(tensors.shape(name) != tuple(p.shape) for name, p in parameters.items()):
            held.can_restore = False
            return False
        for name, parameter in parameters.items():
            # By way of float32, as loading does.
            value = tensors.read(name).float()
            parameter.data = value.to(device=parameter.device, dtype=dtype)
        for name, buffer in model.named_buffers():
            buffer.data = held.buffers[name].clone()
        if held.can_restore is None:
            held.can_restore = fingerprint_weights(model) == held.loaded.fingerprint
        advance()
    unchanged = held.origin == _origin(section, dtype, device)  # nobody wrote the files meanwhile
    return held.can_restore and unchanged
