"""How a sweep goes about its cells: order, isolation, failures of every kind, stopping, searching."""

from __future__ import annotations

import signal
import subprocess
import sys

import psutil
import pytest

from faqbench.records import differences, find_runs, read_run, read_sweep

# A model that no machine has the memory for: 64 TB of embeddings.
HUGE = 10**12


def statuses(runs):
    return {r.config["quant"]["name"]: r.status for r in find_runs(runs)[0]}


def started(output):
    return [line.split(":")[0] for line in output.splitlines() if line.endswith(": running")]


def test_cells_that_share_a_model_and_a_calibration_set_run_one_after_another(forks, workplace):
    sweep = ["-m", "quant=rtn,awq", "seed=0,1", "model=tiny-llama,tiny-qwen2", *workplace.cell[2:]]
    done = forks.run(workplace, *sweep)
    assert done.wait() == 0, done.output
    names = [name.rsplit("-", 1)[0] for name in started(done.output)]
    assert names == [
        "tiny-llama-rtn-w3-g32", "tiny-llama-awq-w3-g32-s0", "tiny-llama-awq-w3-g32-s1",
        "tiny-qwen2-rtn-w3-g32", "tiny-qwen2-awq-w3-g32-s0", "tiny-qwen2-awq-w3-g32-s1",
    ]  # fmt: skip
    assert done.output.count("\nload tiny-") == 2


def test_a_cell_that_was_fully_cached_loads_no_model(forks, workplace):
    assert forks.run(workplace, "-m", "quant=fp,awq", *workplace.cell).wait() == 0
    again = forks.run(workplace, "-m", "quant=fp,awq", *workplace.cell, "paths.runs=again")
    assert again.wait() == 0
    assert "load tiny-llama" not in again.output
    for record in find_runs(workplace.root / "again")[0]:
        assert record.stages["load"].cached and record.stages["evaluate"].cached
        name = record.run_id
        one, two = read_run(workplace.runs / name), read_run(workplace.root / "again" / name)
        assert differences(one, two) == []


# Memory runs out while a model that would fit is made.
STARVED = """
import torch
import faqbench.models.loading as loading
make = loading.random_model
def starved(settings):
    return torch.empty(10**16) if settings["vocab_size"] == 4000000 else make(settings)
loading.random_model = starved
"""


@pytest.mark.parametrize(
    ("options", "prelude"),
    [(["isolate=none"], STARVED), (["isolate=process", "memory_limit_gigabytes=1.5"], "")],
)
def test_a_cell_without_memory_or_above_its_limit_has_failed_and_the_sweep_goes_on(
    forks, workplace, options, prelude
):
    sweep = ["-m", "quant=rtn", "model.random.vocab_size=4000000,257"]
    done = forks.run(workplace, *sweep, *workplace.cell, *options, prelude=prelude)
    assert done.wait() == 1, done.output
    by_size = {r.config["model"]["random"]["vocab_size"]: r for r in find_runs(workplace.runs)[0]}
    assert by_size[257].status == "finished" and by_size[4000000].status == "failed"
    error = by_size[4000000].error
    assert "memory" in error and len(error.splitlines()) <= 12
    assert ("memory_limit_gigabytes=1.5 lets its process have" in error) == (
        options[0] == "isolate=process"
    )
    assert done.output.count("failed cell") == 1


def test_a_cell_that_no_machine_has_the_memory_for_is_refused_before_any_runs(forks, workplace):
    sweep = ["-m", "quant=rtn", f"model.random.vocab_size={HUGE},257"]
    done = forks.run(workplace, *sweep, *workplace.cell)
    assert done.wait() == 2 and "Traceback" not in done.output
    assert "its weights take 256 TB" in done.output
    assert find_runs(workplace.runs) == ([], [])


def child_of(process):
    """Wait for the process of an isolated cell."""

    def isolated():
        children = psutil.Process(process.pid).children()
        return next((c for c in children if "faqbench.cli.attempt" in c.cmdline()), None)

    return process.until(isolated)


def test_an_isolated_cell_that_is_killed_has_failed_is_tried_again_and_gives_the_same_results(
    forks, workplace
):
    sweep = ["-m", "quant=awq,fp", *workplace.cell, "isolate=process"]
    process = forks.start(workplace, *sweep)
    child_of(process).send_signal(signal.SIGKILL)
    assert process.wait() == 1, process.output
    assert statuses(workplace.runs) == {"awq": "failed", "fp": "finished"}
    failed = next(r for r in find_runs(workplace.runs)[0] if r.status == "failed")
    assert "was killed by SIGKILL, as the system does when memory runs out" in failed.error
    again = forks.run(workplace, *sweep)
    assert again.wait() == 0 and len(started(again.output)) == 1
    assert statuses(workplace.runs) == {"awq": "finished", "fp": "finished"}
    (workplace.root / "cache").rename(workplace.root / "used")
    together = ["-m", "quant=awq,fp", *workplace.cell, "paths.runs=together"]
    done = forks.run(workplace, *together)
    assert done.wait() == 0, done.output
    for record in find_runs(workplace.runs)[0]:
        one = read_run(workplace.runs / record.run_id)
        assert differences(one, read_run(workplace.root / "together" / record.run_id)) == []


@pytest.mark.parametrize(("on_error", "n_run"), [("continue", 3), ("stop", 1)])
def test_a_sweep_stops_after_a_failure_only_when_asked_to(forks, workplace, on_error, n_run):
    sweep = ["-m", "quant=awq,rtn,fp", *workplace.cell, "calibration.n_samples=100000"]
    done = forks.run(workplace, *sweep, f"on_error={on_error}")
    assert done.wait() == 1, done.output
    assert len(find_runs(workplace.runs)[0]) == n_run
    assert done.output.count("not run") == 3 - n_run
    again = forks.run(workplace, *sweep)
    assert again.wait() == 1
    assert statuses(workplace.runs) == {"awq": "failed", "rtn": "finished", "fp": "finished"}


NAN = """
import faqbench.pipeline.evaluating as e, numpy as np
read = e.read_scores
def spoilt(folder):
    scores, facts = read(folder)
    scores.nll[:] = np.nan
    return scores, facts
e.read_scores = spoilt
"""


def test_a_cell_whose_numbers_are_not_numbers_has_failed(forks, workplace):
    done = forks.run(workplace, "-m", "quant=rtn", *workplace.cell, prelude=NAN)
    assert done.wait() == 1, done.output
    (record,) = find_runs(workplace.runs)[0]
    assert record.status == "failed" and "not finite: wikitext2-64 perplexity" in record.error
    assert any(not g.passed and g.name == "finite" for g in record.gates)


RAISES = """
import sys
def broken(*args, **kwargs):
    raise ZeroDivisionError("in the middle of it")
sys.modules["faqbench.pipeline.run"].evaluate = broken
"""


def test_an_exception_is_a_record_with_the_last_lines_of_its_traceback(forks, workplace):
    done = forks.run(workplace, "-m", "quant=rtn,fp", *workplace.cell, prelude=RAISES)
    assert done.wait() == 1, done.output
    for record in find_runs(workplace.runs)[0]:
        lines = record.error.splitlines()
        assert lines[-1] == "ZeroDivisionError: in the middle of it" and 1 < len(lines) <= 12
    assert done.output.count("ZeroDivisionError: in the middle of it") == 2


PANICS = """
import sys
class PanicException(BaseException):
    "What pyo3 makes of a panic in Rust."
run = sys.modules["faqbench.pipeline.run"]
evaluate = run.evaluate
def broken(cell):
    if cell.experiment.quant.name == "rtn":
        raise PanicException("index out of bounds")
    return evaluate(cell)
run.evaluate = broken
"""


def test_a_panic_which_is_no_exception_fails_its_cell_and_the_next_one_runs(forks, workplace):
    done = forks.run(workplace, "-m", "quant=rtn,fp", *workplace.cell, prelude=PANICS)
    assert done.wait() == 1, done.output
    assert statuses(workplace.runs) == {"rtn": "failed", "fp": "finished"}
    assert done.output.count("PanicException: index out of bounds") == 1


def test_all_mistakes_of_all_cells_are_listed_before_anything_runs(forks, workplace):
    sweep = ["-m", "quant=rtn", "bits=3,99,4,77", *workplace.cell]
    done = forks.run(workplace, *sweep)
    assert done.wait() == 2
    assert "bits=99 is not allowed" in done.output and "bits=77 is not allowed" in done.output
    assert not workplace.runs.exists()


def test_the_plan_of_a_sweep_says_what_then_happens(forks, workplace):
    sweep = ["-m", "quant=fp,rtn,awq", "bits=3,4", *workplace.cell]
    assert forks.run(workplace, "quant=rtn", *workplace.cell).wait() == 0
    plan = forks.run(workplace, "plan", *sweep)
    assert plan.wait() == 0, plan.output
    assert "5 cells: 4 new, 1 finished before and skipped" in plan.output
    assert "from 1 earlier run" in plan.output and "load tiny" not in plan.output
    done = forks.run(workplace, *sweep)
    assert done.wait() == 0 and "the plan said" in done.output
    before, _, after = done.output.partition(": running")
    assert "4 cells to run: about" in before and "as 1 earlier run took" in before
    assert "method RTN, bits 4, wikitext2-64" in after
    told = [line for line in after.splitlines() if " of 4 cells done" in line]
    assert len(told) == 4 and all("left" in line for line in told[:3])
    records = [r for r in find_runs(workplace.runs)[0] if "seconds" in r.extra["plan"]["error"]]
    assert len(records) == 5
    again = forks.run(workplace, "plan", *sweep)
    assert "5 cells: 0 new, 5 finished before and skipped. Nothing is left to run." in again.output


SWEEPER = '''
import sys, types
from dataclasses import dataclass
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
module = types.ModuleType("hydra_plugins.toy")
class Bisection(Sweeper):
    """Narrows an interval by what each cell gave, as a search does."""
    def __init__(self, low, high):
        self.low, self.high = low, high
    def setup(self, *, hydra_context, task_function, config):
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
    def sweep(self, arguments):
        low, high, seen = self.low, self.high, {}
        while len(seen) < 4:
            for bits in (low, high):
                if bits not in seen:
                    job = [*arguments, f"bits={bits}"]
                    seen[bits] = self.launcher.launch([job], len(seen))[0].return_value
            low, high = (low + 1, high) if seen[low] > seen[high] else (low, high - 1)
        print("best", min(seen, key=seen.get), flush=True)
Bisection.__module__ = "hydra_plugins.toy"
module.Bisection = Bisection
sys.modules["hydra_plugins.toy"] = module
Plugins.instance().register(Bisection)
@dataclass
class Conf:
    _target_: str = "hydra_plugins.toy.Bisection"
    low: int = 2
    high: int = 8
ConfigStore.instance().store(group="hydra/sweeper", name="toy", node=Conf, provider="toy")
'''


def test_a_sweeper_that_searches_gets_each_cells_result(forks, workplace):
    search = ["-m", "hydra/sweeper=toy", "quant=rtn", *workplace.cell, "report.name=found"]
    done = forks.run(workplace, *search, prelude=SWEEPER)
    assert done.wait() == 0, done.output
    records = {r.config["bits"]: r for r in find_runs(workplace.runs)[0]}
    best = min(records, key=lambda b: records[b].metric("wikitext2-64", "perplexity").value)
    assert f"best {best}" in done.output and len(records) == 4
    assert set(read_sweep(workplace.runs, "found")) == {r.run_id for r in records.values()}
    assert (workplace.reports / "found" / "index.html").is_file()


def test_a_launcher_that_is_not_installed_is_one_sentence(workplace):
    blocked = "import sys; sys.modules['hydra_plugins.hydra_joblib_launcher'] = None; "
    code = f"{blocked}from faqbench.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "-m", "hydra/launcher=joblib", "quant=fp", "model=tiny-llama"],
        capture_output=True, text=True, check=False, timeout=1800, cwd=workplace.root,
    )  # fmt: skip
    assert done.returncode == 2
    assert "hydra/launcher=joblib is not installed; pip install 'faqbench[parallel]'" in done.stderr
