"""What the contract tests share: one thread, and cells that need no asset, each run once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from faqbench import pipeline
from faqbench.config import Experiment
from faqbench.models import ModelHolder
from faqbench.pipeline.graph import StageNeed, look_up
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
    """Overrides of a cell of two blocks that runs in half a second, on no asset at all."""
    return [
        "tracking=none",
        "evaluation=none",
        "model.random.num_hidden_layers=2",
        "dtype=float32",
        "calibration.n_samples=2",
        "calibration.seq_len=32",
        f"calibration.domain={text_file}",
        f"data.wikitext2_path={text_file}",
    ]


class Cells:
    """Cells that share a cache and a loaded model, each with what a plan said before and after it.

    Attributes:
        plans: before and after each cell, by its run id.
    """

    def __init__(self, root: Path) -> None:
        self.plans: dict[str, tuple[list[StageNeed], list[StageNeed]]] = {}
        self._cache, self._holder = StageCache(root / "cache"), ModelHolder()

    def run(self, experiment: Experiment) -> RunData:
        """Plan a cell, run it, and plan it again."""
        before = look_up(experiment, self._cache, made=())
        progress = PlainProgress()
        data = pipeline.run(experiment, cache=self._cache, progress=progress, holder=self._holder)
        self.plans[data.record.run_id] = before, look_up(experiment, self._cache, made=())
        return data


@pytest.fixture(scope="session")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Cells:
    return Cells(tmp_path_factory.mktemp("cells"))


@pytest.fixture(scope="session")
def run_cell(
    compose: Callable[..., Experiment],
    toy_cell: list[str],
    tmp_path_factory: pytest.TempPathFactory,
    cells: Cells,
) -> Callable[..., tuple[Experiment, RunData]]:
    """Run a cell and return it with its results; all cells share a cache and a loaded model."""
    root = tmp_path_factory.mktemp("runs")

    @functools.cache
    def make(*overrides: str) -> tuple[Experiment, RunData]:
        paths = [f"paths.runs={root}/runs", f"paths.reports={root}/reports"]
        experiment = compose(*toy_cell, *paths, *overrides)
        return experiment, cells.run(experiment)

    return make
