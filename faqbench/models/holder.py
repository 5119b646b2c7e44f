"""Keeping one model from cell to cell, so that a process opens it once for all cells that share it.

A cell looks at several views of it: pristine, quantized, in the evaluation's dtype. One of them at a time
has its weights in memory; the one asked for next reads its own.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable
from typing import Any

import torch

from faqbench.config import UserError
from faqbench.config.experiment import ModelSection
from faqbench.models.loading import LoadedModel, load_model, load_tokenizer
from faqbench.models.memory import Budget
from faqbench.models.model import Model
from faqbench.models.sources import tokenizer_source, weights_source
from faqbench.stages import Progress, hash_json


class ModelHolder:
    """Holds the model that was asked for last, and the view of it that was.

    Attributes:
        n_loads: how often a model was loaded from its source.
    """

    def __init__(self) -> None:
        self.n_loads = 0
        self._held: tuple[str, LoadedModel] | None = None
        self._other: tuple[Hashable, Model] | None = None
        self._tokenizer: tuple[str, Any] | None = None

    def pristine(
        self,
        section: ModelSection,
        dtype: torch.dtype,
        device: torch.device,
        progress: Progress,
        fingerprint: str | None = None,
        budget: Budget | None = None,
    ) -> LoadedModel:
        """Return a model with its weights as loaded.

        Raises:
            UserError: when it cannot be loaded.
        """
        origin = _origin(section, dtype, device, budget)
        self._let_go()
        if self._held is not None and self._held[0] == origin:
            return self._held[1]
        if self._held is not None:
            self._held = None
            gc.collect()  # the old model goes before the new one comes
        self.n_loads += 1
        was_here = weights_source(section) is not None
        loaded = load_model(section, dtype, device, progress, fingerprint, budget)
        loaded.view.fill()
        after = _origin(section, dtype, device, budget)
        if was_here and after != origin:
            raise UserError(
                f"The files of model={section.name} changed while they were read; run again when "
                "nothing writes them."
            )
        self._held = after, loaded
        return loaded

    def view(self, key: Hashable, make: Callable[[Model], Model]) -> Model:
        """Return another view of the model that was asked for last.

        Args:
            key: what it is a view of; the view of the same key is given again.
            make: makes it of the pristine one.
        """
        assert self._held is not None, "a view is one of a model that was loaded"
        if self._other is None or self._other[0] != key:
            pristine = self._held[1].view
            self._let_go()
            pristine.empty()
            self._other = key, make(pristine)
        return self._other[1]

    def tokenizer(self, section: ModelSection, progress: Progress) -> Any:
        """Return a model's tokenizer, which nobody changes, without its weights.

        Raises:
            UserError: when it cannot be loaded.
        """
        origin = hash_json([tokenizer_source(section), section.model_dump(mode="json")])
        if self._tokenizer is None or self._tokenizer[0] != origin:
            self._tokenizer = origin, load_tokenizer(section, progress)
        return self._tokenizer[1]

    def _let_go(self) -> None:
        if self._other is not None:
            self._other[1].empty()
        self._other = None


def _origin(section: ModelSection, dtype: torch.dtype, device: torch.device, budget: Budget | None) -> str:
    source = weights_source(section)
    return hash_json([source, section.model_dump(mode="json"), str(dtype), str(device), str(budget)])
