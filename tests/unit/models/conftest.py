"""Tiny random models of every family that has a yaml in conf/model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from faqbench.config import Experiment
from faqbench.models import LoadedModel, load_model
from faqbench.stages import PlainProgress


@pytest.fixture(autouse=True)
def small_tensors(one_thread: None) -> None:
    """All tensors here are small."""


@pytest.fixture(scope="session")
def section(compose: Callable[..., Experiment]) -> Callable[..., Any]:
    """Return the model section of a yaml, some of its fields changed."""
    return lambda name, **changes: compose(f"model={name}").model.model_copy(update=changes)


@pytest.fixture(scope="session")
def load(section: Callable[..., Any]) -> Callable[..., LoadedModel]:
    def make(name: str = "tiny-llama", dtype: torch.dtype = torch.float32, **random: Any) -> LoadedModel:
        settings = {**section(name).random, **random}
        changed = section(name, random=settings)
        return load_model(changed, dtype, torch.device("cpu"), PlainProgress())

    return make
