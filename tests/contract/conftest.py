"""What the contract tests share: one thread, and cells that need no asset, each run once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import pytest
import torch

from faqbench import pipeline
from faqbench.config import Experiment
from faqbench.models import ModelHolder
from faqbench.records import RunData
from faqbench.stages import PlainProgress, StageCache


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Keep toy tensors on one thread: several would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("texts") / "toy.txt"
    texts = [f"Text {i}. " + "the weight of a group, " * (3 + i % 5) for i in range(60)]
    path.write_text("\n\n".join(texts))
    return str(path)


@pytest.fixture(scope="session")
def toy_cell(text_file: str) -> list[str]:
    """Overrides of a cell that runs in a second, on no asset at all."""
    return [
        "tracking=none",
        "evaluation=none",
        "dtype=float32",
        "calibration.n_samples=2",
        "calibration.seq_len=32",
        f"calibration.domain={text_file}",
        f"data.wikitext2_path={text_file}",
    ]


@pytest.fixture(scope="session")
def run_cell(
    compose: Callable[..., Experiment],
    toy_cell: list[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., tuple[Experiment, RunData]]:
    """Run a cell and return it with its results; all cells share a cache and a loaded model."""
    root, holder = tmp_path_factory.mktemp("cells"), ModelHolder()
    cache = StageCache(root / "cache")

    @functools.cache
    def make(*overrides: str) -> tuple[Experiment, RunData]:
        paths = [f"paths.runs={root}/runs", f"paths.reports={root}/reports"]
        experiment = compose(*toy_cell, *paths, *overrides)
        progress = PlainProgress()
        return experiment, pipeline.run(experiment, cache=cache, progress=progress, holder=holder)

    return make
