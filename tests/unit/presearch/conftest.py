"""A search of a tiny model on a toy text, in a second or two."""

import pytest

from faqbench.presearch import search
from faqbench.stages import PlainProgress, StageCache

GRID = (
    "presearch.grids=[{window: [1, 2], gamma: [0.5, 0.9], roles: [all], source: [same_role], "
    "stream: [full], weights: [uniform], norm: [none], fuse: [convex]}]"
)


class Notes(PlainProgress):
    """A progress that remembers what it was told."""

    def __init__(self):
        super().__init__()
        self.notes = []

    def note(self, text):
        self.notes.append(text)


@pytest.fixture(autouse=True)
def small_tensors(one_thread):
    """All tensors here are small."""


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "toy.txt"
    texts = [f"Text {i}. " + "the weight of a group, " * (3 + i % 5) for i in range(120)]
    path.write_text("\n\n".join(texts))
    return path


@pytest.fixture
def overrides(tmp_path, text_file):
    return (
        "model=tiny-llama",
        "dtype=float32",
        "calibration.n_samples=4",
        "calibration.seq_len=32",
        f"calibration.domain={text_file}",
        f"paths.presearch={tmp_path / 'presearch'}",
        "presearch.rounds=[1,2]",
        "presearch.keep=0.5",
        "presearch.n_windows=4",
        GRID,
    )


@pytest.fixture
def notes():
    return Notes()


@pytest.fixture(scope="session")
def searched(tmp_path_factory):
    return tmp_path_factory.mktemp("searched")


@pytest.fixture
def found(compose, overrides, searched, notes):
    """Search: in a cache that all tests share, or in one of its own."""

    def make(*more, cache=searched):
        experiment = compose("quant=faq", *overrides, *more)
        return search(experiment, cache=StageCache(cache), progress=notes)

    return make
