"""`faqbench watch`: how the cells of a sweep stand, from `runs/` alone."""

import io
import os

import pytest
from rich.console import Console
from toy_runs import write_toy_run

from faqbench.cli import main, watch
from faqbench.records import write_sweep
from faqbench.tracking.samples import ProgressWriter, Sample, progress_path


@pytest.fixture
def runs(tmp_path):
    """A sweep of six cells in every state."""
    write_toy_run(tmp_path, "rtn", run_id="done")
    write_toy_run(tmp_path, "awq", run_id="broken", status="failed", error="first\nout of memory")
    for name in ("going", "gone", "ended"):
        writer = ProgressWriter(tmp_path, name, "study")
        sample = {"seconds": 12.0, "stage": "evaluate", "done": 3, "total": 40}
        writer.add(Sample(**sample, memory_bytes=1_500_000_000))
        if name == "ended":
            writer.end("stopped")
        writer._close()
    path = progress_path(tmp_path, "gone")
    path.write_text(path.read_text().replace(f'"pid": {os.getpid()}', '"pid": 999999999'))
    names = ["done", "broken", "going", "gone", "ended", "later"]
    write_sweep(tmp_path, "study", names)
    return tmp_path


def test_every_cell_of_a_sweep_has_its_state(runs):
    states = {s.run_id: s.state for s in watch.statuses(runs, watch._cells(runs, None)[1])}
    assert states == {
        "done": "finished",
        "broken": "failed",
        "going": "running",
        "gone": "killed",
        "ended": "stopped",
        "later": "waiting",
    }


def test_a_pipe_gets_one_plain_view(runs, capsys):
    assert main(["watch", f"runs={runs}"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("study: 1 finished, 1 failed, 1 running, 1 killed, 1 stopped, 1 waiting")
    assert "evaluate 3/40" in out and "out of memory" in out and "1.5 GB" in out
    assert "\x1b" not in out


def test_the_time_that_is_left_is_guessed_from_finished_cells(runs, capsys):
    main(["watch", f"runs={runs}"])
    # one finished in 66.3 s, one is 12 s old, one waits
    assert "about 2 min 01 s left" in capsys.readouterr().out


def test_a_terminal_is_refreshed_until_all_have_ended(runs, monkeypatch):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100)
    monkeypatch.setattr(watch, "Console", lambda **_: console)
    looks = []

    def finish(seconds):
        looks.append(seconds)
        for name in ("going", "later"):
            write_toy_run(runs, "rtn", run_id=name)
        progress_path(runs, "going").unlink()

    monkeypatch.setattr(watch.time, "sleep", finish)
    assert main(["watch", f"runs={runs}", "interval=0.5"]) == 0
    assert looks == [0.5] and "3 finished" in stream.getvalue()


def test_many_cells_show_those_that_run_or_went_wrong(runs):
    names = [f"cell-{i}" for i in range(200)]
    found = watch.statuses(runs, [*names, "going", "broken", "done"])
    shown = watch._worth_showing(found)
    assert len(shown) == 40
    assert {"going", "broken", "done"} <= {s.run_id for s in shown}


def test_without_a_sweep_all_runs_are_watched(tmp_path, capsys):
    write_toy_run(tmp_path, "rtn", run_id="only")
    assert main(["watch", f"runs={tmp_path}"]) == 0
    assert "all runs: 1 finished" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["name=stduy"], "Did you mean 'study'"),
        (["interval=fast"], "interval=fast is not allowed"),
        (["runs=nowhere"], "There is no folder nowhere"),
    ],
)
def test_a_mistake_is_one_sentence(runs, arguments, message, capsys):
    given = arguments if arguments[0].startswith("runs") else [*arguments, f"runs={runs}"]
    assert main(["watch", *given]) == 2
    assert message in capsys.readouterr().err
