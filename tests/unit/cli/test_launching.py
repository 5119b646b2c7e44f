"""The order of cells, the check of launchers, and limits of memory."""

import subprocess
import sys

import pytest
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper

from faqbench.cli.composing import compose_cells, is_search, parse_flags
from faqbench.cli.launching import check_launcher, in_order
from faqbench.config import UserError


def request(*arguments):
    return compose_cells(parse_flags(arguments))


def test_cells_keep_their_order_within_a_model_and_a_calibration_set():
    cells = request("-m", "quant=awq,rtn,faq", "seed=1,0", "model=tiny-qwen2,tiny-llama").cells
    found = [(c.experiment.model.name, c.experiment.quant.name, c.experiment.seed) for c in in_order(cells)]
    assert found == [
        (model, quant, seed)
        for model in ("tiny-qwen2", "tiny-llama")
        for quant, seed in (
            ("awq", 1), ("faq", 1), ("awq", 0), ("faq", 0), ("rtn", 1), ("rtn", 0)
        )
    ]  # fmt: skip


def test_other_calibration_settings_are_other_groups():
    cells = request("-m", "quant=awq,faq", "calibration.seq_len=64,128", "model=tiny-llama").cells
    found = [(c.experiment.calibration.seq_len, c.experiment.quant.name) for c in in_order(cells)]
    assert found == [(64, "awq"), (64, "faq"), (128, "awq"), (128, "faq")]


def test_hydra_finds_our_sweeper_where_it_looks_for_plug_ins():
    sweepers = {f"{c.__module__}.{c.__name__}" for c in Plugins.instance().discover(Sweeper)}
    assert request("-m", "quant=rtn,fp").hydra.sweeper._target_ in sweepers


def test_the_basic_launcher_is_always_there():
    assert check_launcher(request("model=tiny-llama").hydra) is None


def test_a_launcher_without_its_plugin_names_the_extra():
    hydra = request("model=tiny-llama").hydra
    hydra.launcher._target_ = "hydra_plugins.no_such_plugin.Launcher"
    hydra.runtime.choices["hydra/launcher"] = "ray"
    with pytest.raises(UserError, match=r"hydra/launcher=ray .* pip install 'faqbench\[ray\]'"):
        check_launcher(hydra)


def test_a_sweeper_of_the_users_choice_is_a_search():
    assert not is_search(request("-m", "quant=rtn,fp", "model=tiny-llama").hydra)
    other = request("-m", "model=tiny-llama", "hydra.sweeper._target_=hydra_plugins.x.Search")
    assert is_search(other.hydra) and other.kind == "search"


LIMIT = """
import sys
from faqbench.cli.attempt import lift_memory_limit, limit_memory
limit_memory(500_000_000)
try:
    b"x" * 2_000_000_000
except MemoryError:
    lift_memory_limit()
    print(len(b"x" * 600_000_000))
"""


def test_a_limit_of_memory_is_an_error_inside_the_process_and_can_be_lifted():
    done = subprocess.run(
        [sys.executable, "-c", LIMIT], capture_output=True, text=True, check=True, timeout=1800
    )
    assert done.stdout == "600000000\n"
