"""`faqbench sync`: any selection of runs, and a report, shown from files alone."""

import pytest
from offline_runs import logged, only
from toy_runs import write_toy_run

from faqbench.cli import main
from faqbench.report import ReportRequest, write_report
from faqbench.tracking import wandb as wandb_view


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sync") / "runs"
    for method in ("rtn", "awq", "faq"):
        write_toy_run(folder, method, run_id=f"toy-{method}", tracking={"group": "g", "tags": ["t"]})
    return folder


def names(folder):
    return {p.name.partition("-toy-")[2] for p in folder.glob("wandb/offline-run-*")}


def test_a_selection_is_shown_and_twice_is_the_same_as_once(runs, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    for _ in range(2):
        assert main(["sync", "select=quant=awq,faq", f"runs={runs}"]) == 0
    assert names(runs) == {"awq", "faq"}
    (run,) = only(logged(runs, "toy-awq"), "run")
    assert run["run_group"] == "g" and run["tags"] == ["t"]
    assert main(["sync", "toy-rtn", f"runs={runs}", "project=other", "group=h"]) == 0
    (run,) = only(logged(runs, "toy-rtn"), "run")
    assert (run["project"], run["run_group"]) == ("other", "h")


def test_a_report_is_shown_as_a_run_of_its_own(runs, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    write_report(ReportRequest(runs=runs, reports=tmp_path, name="study", select=("*rtn",)))
    assert main(["sync", "report=study", f"runs={runs}", f"reports={tmp_path}"]) == 0
    assert only(logged(runs, "report-study"), "run")[0]["job_type"] == "report"


def test_a_report_with_a_link_in_its_folder_is_not_shown(runs, tmp_path, capsys):
    write_report(ReportRequest(runs=runs, reports=tmp_path, name="study", select=("*rtn",)))
    (tmp_path / "study" / "keys.html").symlink_to("/etc/hostname")
    assert main(["sync", "report=study", f"runs={runs}", f"reports={tmp_path}"]) == 2
    assert "keys.html is no regular file, so the report is not shown" in capsys.readouterr().err


def test_what_is_not_shown_is_counted_and_no_success(runs, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert main(["sync", "toy-rtn", f"runs={runs}"]) == 1
    assert "1 of 1 runs are not shown" in capsys.readouterr().err

    def broken(*_):
        raise OSError("no route to host")

    monkeypatch.setattr(wandb_view, "open_run", broken)
    assert main(["sync", "select=quant=awq,faq", f"runs={runs}"]) == 1
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
def test_a_mistake_is_one_sentence(runs, arguments, message, capsys):
    assert main(["sync", *arguments, f"runs={runs}"]) == 2
    assert message in capsys.readouterr().err
