"""Questions settled on tiny cells, from the command line to the decision, and by the committed runs."""

import math
import os
import shutil
import signal
from pathlib import Path

import pytest

import faqbench.pipeline
from faqbench.cli import main
from faqbench.config import UserError
from faqbench.records import find_decisions, find_runs

QUESTION = ("settle", "rtn(bits=8) < rtn(bits=2)", "evaluation.n_windows=12")


def started(runs):
    return {record.run_id: record.started for record in find_runs(runs)[0]}


def test_windows_alone_decide_where_no_arm_is_calibrated_and_asking_again_runs_nothing(workplace, capsys):
    assert main([*QUESTION, *workplace.cell]) == 0
    ((decision,), _) = find_decisions(workplace.runs)
    assert "No arm reads calibration data: one draw is all there is" in decision.notes[-1]
    looks = decision.contests[0].looks
    assert all(look.draws_margin == 0 and look.n_draws == 1 for look in looks)
    assert [look.n_items for look in looks] == [12, 24]
    before = started(workplace.runs)
    assert main([*QUESTION, *workplace.cell]) == 0
    assert started(workplace.runs) == before
    assert capsys.readouterr().out.count(decision.answer) == 2


def test_a_settle_that_was_stopped_goes_on_where_it_was(workplace, monkeypatch):
    """Struck in its second cell; the first is not run again."""
    run, calls = faqbench.pipeline.run, []

    def struck(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return run(*arguments, **options)

    monkeypatch.setattr(faqbench.pipeline, "run", struck)
    question = ["settle", "awq(bits=8) < rtn(bits=2)", *workplace.cell, "alpha=0.5", "max_draws=3"]
    assert main(question) == 128 + signal.SIGTERM
    before = started(workplace.runs)
    assert len(before) == 1 and find_decisions(workplace.runs) == ([], [])
    assert main(question) == 0
    assert before.items() <= started(workplace.runs).items()
    ((decision,), _) = find_decisions(workplace.runs)
    assert decision.contests[0].looks[0].n_draws == 3
    assert (workplace.reports / decision.name / "figures" / "interval.png").is_file()


def test_a_failed_cell_leaves_the_question_open(workplace, monkeypatch, capsys):
    def fails(*_, **__):
        raise UserError("there is no such thing.")

    monkeypatch.setattr(faqbench.pipeline, "run", fails)
    assert main([*QUESTION, *workplace.cell]) == 1
    err = capsys.readouterr().err
    assert "failed: there is no such thing." in err and "the question stays open" in err
    assert find_decisions(workplace.runs) == ([], [])


SETTLED = Path(__file__).parents[2] / "runs" / "settled"


@pytest.mark.parametrize("committed", find_decisions(SETTLED)[0], ids=lambda d: d.question.replace(" ", ""))
def test_a_committed_decision_is_what_its_committed_runs_give(committed, tmp_path, monkeypatch):
    def runs(*_, **__):
        raise AssertionError("a draw is missing")

    monkeypatch.setattr(faqbench.pipeline, "run", runs)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(SETTLED / "_pack", tmp_path / "runs" / "_pack")
    percent = f"{100 * math.expm1(committed.margin):g}%"
    keys = [f"metric={committed.task}", f"margin={percent}", f"max_draws={committed.max_draws}"]
    asked = ["settle", committed.question, *keys, *committed.settings, "tracking=none"]
    assert main(asked) == 0
    ((again,), _) = find_decisions(tmp_path / "runs")
    assert again.name == committed.name and again.answer == committed.answer
    assert again.contests == committed.contests
