"""What unit tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from toy_runs import write_toy_run

from faqbench.records import RunRecord


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Keep toy tensors on one thread: several would only wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def make_run() -> Callable[..., RunRecord]:
    """Return a function that writes one toy run and returns its record."""
    return write_toy_run


@pytest.fixture(scope="session")
def quickstart_runs(tmp_path_factory: pytest.TempPathFactory, make_run: Callable[..., RunRecord]) -> Path:
    """The runs of the quickstart: full precision, RTN, AWQ and FAQ at 3 bits, one draw each."""
    runs = tmp_path_factory.mktemp("quickstart") / "runs"
    for method in ("fp", "rtn", "awq", "faq"):
        make_run(runs, method)
    return runs
