"""Runs to report on."""

import pytest
from toy_runs import write_toy_run


@pytest.fixture(scope="session")
def make_run():
    """Return a function that writes one toy run and returns its record."""
    return write_toy_run


@pytest.fixture(scope="session")
def quickstart_runs(tmp_path_factory, make_run):
    """The runs of the quickstart: full precision, RTN, AWQ and FAQ at 3 bits, one draw each."""
    runs = tmp_path_factory.mktemp("quickstart") / "runs"
    for method in ("fp", "rtn", "awq", "faq"):
        make_run(runs, method)
    return runs
