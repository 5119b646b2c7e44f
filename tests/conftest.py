"""Settings that every test shares: no hub, no account, no state from the user's machine.

The files are divided among as many processes as there are cores (pytest-xdist's `-n auto`, see below), each
with one thread: toy tensors on several would only wait for each other. A single file stays in this process.
"""

import gc
import logging
import os
import signal
from collections.abc import Callable, Iterator
from functools import cache

import pytest
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from faqbench.cli.composing import QuickComposer, compose_cells, composer, make_cell, parse_flags
from faqbench.cli.workers import n_cores
from faqbench.config import Experiment

MOST_WORKERS = 8  # each takes a GB of memory, and more would only wait for the longest file

os.environ.update(HF_HUB_OFFLINE="1", WANDB_MODE="offline", WANDB_SILENT="true")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what runs in the background so, and children would inherit it: no Ctrl-C to test.
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # nohup does so
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return how many processes `-n auto` starts: none where they would only cost their start."""
    files = {argument.split("::")[0] for argument in config.args}
    named = len(files) if all(file.endswith(".py") for file in files) else MOST_WORKERS
    n_workers = min(n_cores(), named, MOST_WORKERS)
    return n_workers if n_workers > 1 and config.option.capture != "no" else 0


def pytest_collection_finish() -> None:
    """Leave what the imports made out of every later search for garbage: each would take 0.3 s for it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _own_log() -> Iterator[None]:
    """Start each test with a log that nobody has sent anywhere, as the command line does.

    Fixtures of a module or a session call it too, and would leave what they did to all tests after them.
    """
    log = logging.getLogger("faqbench")
    _forget(log)
    yield
    _forget(log)


def _forget(log: logging.Logger) -> None:
    log.handlers, log.propagate = [], True
    log.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def compose() -> Callable[..., Experiment]:
    """Compose and validate one cell from overrides, as a sweep's cells are: each choice of groups once."""
    compose_quickly = QuickComposer()

    @cache
    def make(*overrides: str) -> Experiment:
        try:
            with composer():
                return make_cell(compose_quickly(overrides), overrides).experiment
        except (HydraException, OmegaConfBaseException, ValueError):
            return compose_cells(parse_flags(overrides)).experiments[0]  # or the mistake in words

    return make
