"""Cells of a tiny model on a toy text, in folders of their own or each run once for all tests."""

from functools import cache, partial
from pathlib import Path

import pytest

from faqbench import pipeline
from faqbench.models import ModelHolder
from faqbench.stages import PlainProgress, StageCache

TWO_BLOCKS = "model.random.num_hidden_layers=2"  # enough where a cell's weights are not the point


@pytest.fixture(autouse=True)
def small_tensors(one_thread):
    """All tensors here are small."""


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "toy.txt"
    texts = [f"Text {i}. " + "the weight of a group, " * (3 + i % 5) for i in range(60)]
    path.write_text("\n\n".join(texts))
    return path


@pytest.fixture(scope="session")
def cell_in(compose, text_file):
    """Compose a cell whose runs lie below a folder."""

    def make(root, *overrides):
        return compose(
            "model=tiny-llama",
            "tracking=none",
            "evaluation=none",
            "dtype=float32",
            "calibration.n_samples=4",
            "calibration.seq_len=32",
            "evaluation.n_windows=8",
            f"calibration.domain={text_file}",
            f"data.wikitext2_path={text_file}",
            f"paths.runs={root / 'runs'}",
            *overrides,
        )

    return make


@pytest.fixture
def cell(cell_in, tmp_path):
    return partial(cell_in, tmp_path, TWO_BLOCKS)


@pytest.fixture
def run(cell, tmp_path):
    def make(*overrides, cache=tmp_path / "cache"):
        return pipeline.run(cell(*overrides), cache=StageCache(cache), progress=PlainProgress())

    return make


@pytest.fixture(scope="session")
def ran(cell_in, tmp_path_factory):
    """Run a cell once for all tests that read its results; such cells share a cache and a loaded model."""
    root, holder = tmp_path_factory.mktemp("ran"), ModelHolder()

    @cache
    def make(*overrides):
        experiment = cell_in(root, TWO_BLOCKS, *overrides)
        stages = StageCache(root / "cache")
        return pipeline.run(experiment, cache=stages, progress=PlainProgress(), holder=holder)

    return make


@pytest.fixture(scope="session")
def folder_of():
    """The folder of a run."""
    return lambda data: Path(data.record.config["paths"]["runs"]) / data.record.run_id


@pytest.fixture(scope="session")
def after(cell_in, tmp_path_factory):
    """Run a cell once in a cache of its own; return its results, and the cache for others to go on in."""

    @cache
    def make(*overrides):
        root = tmp_path_factory.mktemp("first")
        experiment = cell_in(root, TWO_BLOCKS, *overrides)
        data = pipeline.run(experiment, cache=StageCache(root / "cache"), progress=PlainProgress())
        return data, root / "cache"

    return make
