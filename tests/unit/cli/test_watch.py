"""`faqbench watch` and `faqbench sync`: how a sweep stands, and showing runs, from files alone."""

import io
import os

import pytest
from offline_runs import logged, only
from rich.console import Console
from toy_runs import write_toy_run

from faqbench.cli import dashboards, main
from faqbench.records import write_sweep
from faqbench.report import ReportRequest, write_report
from faqbench.tracking import wandb as wandb_view
from faqbench.tracking.samples import ProgressSample, ProgressWriter, progress_path


@pytest.fixture
def runs(tmp_path):
    """A sweep of six cells in every state."""
    write_toy_run(tmp_path, "rtn", run_id="done")
    write_toy_run(tmp_path, "awq", run_id="broken", status="failed", error="first\nout of memory")
    for name in ("going", "gone", "ended"):
        writer = ProgressWriter(tmp_path, name, "study")
        sample = {"seconds": 12.0, "activity": "evaluate", "done": 3, "total": 40}
        writer.add(ProgressSample(**sample, memory_bytes=1_500_000_000))
        if name == "ended":
            writer.end("stopped")
        writer._close()
    path = progress_path(tmp_path, "gone")
    path.write_text(path.read_text().replace(f'"pid": {os.getpid()}', '"pid": 999999999'))
    names = ["done", "broken", "going", "gone", "ended", "later"]
    write_sweep(tmp_path, "study", names)
    return tmp_path


def test_every_cell_of_a_sweep_has_its_state(runs):
    states = {s.run_id: s.state for s in dashboards.statuses(runs, dashboards._cells(runs, None)[1])}
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
    monkeypatch.setattr(dashboards, "Console", lambda **_: console)
    looks = []

    def finish(seconds):
        looks.append(seconds)
        for name in ("going", "later"):
            write_toy_run(runs, "rtn", run_id=name)
        progress_path(runs, "going").unlink()

    monkeypatch.setattr(dashboards.time, "sleep", finish)
    assert main(["watch", f"runs={runs}", "interval=0.5"]) == 0
    assert looks == [0.5] and "3 finished" in stream.getvalue()


def test_many_cells_show_those_that_run_or_went_wrong(runs):
    names = [f"cell-{i}" for i in range(200)]
    found = dashboards.statuses(runs, [*names, "going", "broken", "done"])
    shown = dashboards._worth_showing(found)
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


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sync") / "runs"
    for method in ("rtn", "awq", "faq"):
        write_toy_run(folder, method, run_id=f"toy-{method}", tracking={"group": "g", "tags": ["t"]})
    return folder


def names_shown(folder):
    return {p.name.partition("-toy-")[2] for p in folder.glob("wandb/offline-run-*")}


def test_a_selection_is_shown_and_twice_is_the_same_as_once(finished, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    for _ in range(2):
        assert main(["sync", "select=quant=awq,faq", f"runs={finished}"]) == 0
    assert names_shown(finished) == {"awq", "faq"}
    (run,) = only(logged(finished, "toy-awq"), "run")
    assert run["run_group"] == "g" and run["tags"] == ["t"]
    assert main(["sync", "toy-rtn", f"runs={finished}", "project=other", "group=h"]) == 0
    (run,) = only(logged(finished, "toy-rtn"), "run")
    assert (run["project"], run["run_group"]) == ("other", "h")


def test_a_report_is_shown_as_a_run_of_its_own(finished, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    write_report(ReportRequest(runs=finished, reports=tmp_path, name="study", select=("*rtn",)))
    assert main(["sync", "report=study", f"runs={finished}", f"reports={tmp_path}"]) == 0
    assert only(logged(finished, "report-study"), "run")[0]["job_type"] == "report"


def test_a_report_with_a_link_in_its_folder_is_not_shown(finished, tmp_path, capsys):
    write_report(ReportRequest(runs=finished, reports=tmp_path, name="study", select=("*rtn",)))
    (tmp_path / "study" / "keys.html").symlink_to("/etc/hostname")
    assert main(["sync", "report=study", f"runs={finished}", f"reports={tmp_path}"]) == 2
    assert "keys.html is no regular file, so the report is not shown" in capsys.readouterr().err


def test_what_is_not_shown_is_counted_and_no_success(finished, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert main(["sync", "toy-rtn", f"runs={finished}"]) == 1
    assert "1 of 1 runs are not shown" in capsys.readouterr().err

    def broken(*_):
        raise OSError("no route to host")

    monkeypatch.setattr(wandb_view, "open_run", broken)
    assert main(["sync", "select=quant=awq,faq", f"runs={finished}"]) == 1
    assert "2 of 2 runs are not shown; their files are complete" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["project=a/b"], "tracking.project=a/b is not allowed: a name of 1 to 128 characters"),
        (["entity=" + "e" * 129], "is not allowed: a name of 1 to 128 characters"),
        (["to=wanbd"], "Did you mean 'wandb'"),
        (["report=none"], "There is no report in"),
        (["toy-x"], "There is no run 'toy-x'"),
        (["select=quant=fqa"], "Did you mean 'faq'"),
    ],
)
def test_a_mistake_of_sync_is_one_sentence(finished, arguments, message, capsys):
    assert main(["sync", *arguments, f"runs={finished}"]) == 2
    assert message in capsys.readouterr().err
