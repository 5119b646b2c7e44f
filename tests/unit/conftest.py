"""Experiments as the command line composes them, for all unit tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import pytest

from faqbench.cli.composing import compose_cells, parse_flags
from faqbench.config import Experiment


@pytest.fixture(scope="session")
def compose() -> Callable[..., Experiment]:
    """Compose and validate one cell from overrides; equal overrides are composed once."""

    @cache
    def make(*overrides: str) -> Experiment:
        return compose_cells(parse_flags(overrides)).experiments[0]

    return make


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Keep toy tensors on one thread: several would only wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
