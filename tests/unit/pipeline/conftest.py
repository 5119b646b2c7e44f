"""Cells of a tiny model on a toy text, with a cache and a runs folder of their own."""

from functools import partial

import pytest

from faqbench import pipeline
from faqbench.stages import PlainProgress, StageCache


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
    return partial(cell_in, tmp_path)


@pytest.fixture
def run(cell, tmp_path):
    def make(*overrides):
        cache = StageCache(tmp_path / "cache")
        return pipeline.run(cell(*overrides), cache=cache, progress=PlainProgress())

    return make
