"""Compose, run, record and report on a tiny model, as a user types it; questions settled on tiny cells."""

import math
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import faqbench.pipeline
from faqbench.cli import main
from faqbench.config import UserError
from faqbench.records import find_decisions, find_runs, read_run, read_sweep

from .conftest import Workplace, new_workplace

SWEEP = ["-m", "quant=fp,rtn,awq,faq"]


def everything(runs):
    return {r.run_id: read_run(runs / r.run_id) for r in find_runs(runs)[0]}


def assert_equal_results(first, second):
    """Bit for bit, seconds and cache hits excepted."""
    assert list(first) == list(second) and first
    for run_id, one in first.items():
        other = second[run_id]
        assert one.record.metrics == other.record.metrics
        assert one.record.fingerprints == other.record.fingerprints
        assert one.record.gates == other.record.gates
        pd.testing.assert_frame_equal(one.items, other.items)
        drop = {"columns": ["seconds"], "errors": "ignore"}
        pd.testing.assert_frame_equal(one.layers.drop(**drop), other.layers.drop(**drop))
        assert one.tokens.keys() == other.tokens.keys()
        for name, nll in one.tokens.items():
            np.testing.assert_array_equal(nll, other.tokens[name])


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A workplace where the sweep ran in a process of its own, as a user starts it, and how it ended."""
    place = new_workplace(tmp_path_factory.mktemp("swept"))
    return place, place.faqbench(*SWEEP, *place.cell, "report.name=study")


@pytest.fixture
def beside(swept, workplace):
    """A fresh workplace whose cells read the texts of the sweep, so that they are the same cells."""
    return Workplace(workplace.root, swept[0].cell)


def test_a_sweep_in_a_process_of_its_own_ends_with_a_table_records_and_a_report(swept):
    place, done = swept
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "RTN" in done.stdout
    records, damaged = find_runs(place.runs)
    assert [r.status for r in records] == ["finished"] * 4 and not damaged
    assert set(read_sweep(place.runs, "study")) == {r.run_id for r in records}
    assert (place.reports / "study" / "index.html").is_file()
    assert (place.reports / "study" / "report.md").is_file()


def test_a_cell_in_this_process_is_a_record(workplace, capsys):
    assert main(["quant=faq", *workplace.cell]) == 0
    (record,), _ = find_runs(workplace.runs)
    assert record.metric("wikitext2-64", "perplexity").value > 1
    assert f"Record: runs/{record.run_id}" in capsys.readouterr().out


def test_both_ways_to_start_give_the_same_numbers_with_the_cache_and_without(swept, beside):
    in_a_process = everything(swept[0].runs)
    assert len(in_a_process) == 4
    assert main([*SWEEP, *beside.cell]) == 0
    assert_equal_results(in_a_process, everything(beside.runs))
    shutil.rmtree(beside.runs)
    assert main([*SWEEP, *beside.cell]) == 0
    from_cache = everything(beside.runs)
    assert all(d.record.stages["evaluate"].cached for d in from_cache.values())
    assert_equal_results(in_a_process, from_cache)


def test_a_finished_cell_is_skipped_when_asked_for_again(workplace, capsys):
    assert main(["quant=rtn", *workplace.cell]) == 0
    (first,), _ = find_runs(workplace.runs)
    written = (workplace.runs / first.run_id / "record.json").stat().st_mtime_ns
    assert main(["-m", "quant=fp,rtn", *workplace.cell]) == 0
    assert (workplace.runs / first.run_id / "record.json").stat().st_mtime_ns == written
    assert f"{first.run_id}: finished before, skipped" in capsys.readouterr().err
    assert len(find_runs(workplace.runs)[0]) == 2


def test_rerun_repeats_a_finished_cell(workplace):
    assert main(["quant=rtn", *workplace.cell]) == 0
    (first,), _ = find_runs(workplace.runs)
    path = workplace.runs / first.run_id / "record.json"
    written = path.stat().st_mtime_ns
    assert main(["quant=rtn", *workplace.cell, "rerun=true"]) == 0
    assert path.stat().st_mtime_ns > written


def test_a_damaged_cache_changes_no_number(workplace):
    assert main(["quant=awq", *workplace.cell]) == 0
    first = everything(workplace.runs)
    for path in (workplace.root / "cache" / "stages").rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-8] + b"damaged!")
    for path in (workplace.root / "cache" / "stages").rglob("nll.npy"):
        path.write_bytes(path.read_bytes()[:100])
    shutil.rmtree(workplace.runs)
    assert main(["quant=awq", *workplace.cell]) == 0
    assert_equal_results(first, everything(workplace.runs))


def test_a_failing_cell_is_a_failed_record_and_the_sweep_goes_on(workplace, capsys):
    arguments = ["-m", "quant=awq,rtn", "calibration.n_samples=100000,4", *workplace.cell]
    arguments.remove("calibration.n_samples=4")
    assert main(arguments) == 1
    records, _ = find_runs(workplace.runs)
    assert sorted(r.status for r in records) == ["failed", "finished", "finished"]
    (failed,) = [r for r in records if r.status == "failed"]
    assert "100000" in failed.error and "\n" not in failed.error
    out = capsys.readouterr().out
    assert "failed cell" in out and failed.run_id in out


def test_a_failed_cell_is_tried_again(workplace, capsys):
    path = workplace.root / "later.txt"
    path.write_text("Too few words.\n")
    arguments = ["quant=awq", *workplace.cell, f"calibration.domain={path}"]
    assert main(arguments) == 2
    assert str(path) in capsys.readouterr().err  # for whoever can mend it; a record is for others too
    (failed,) = find_runs(workplace.runs)[0]
    assert failed.status == "failed"
    assert "…/later.txt" in failed.error and str(path.parent) not in failed.error
    shutil.copy(workplace.root / "calibration.txt", path)
    assert main(arguments) == 0
    assert [r.status for r in find_runs(workplace.runs)[0]] == ["finished"]


def test_a_single_cell_that_cannot_run_is_one_sentence_and_exit_code_2(workplace, capsys):
    arguments = ["quant=awq", *workplace.cell, "calibration.n_samples=100000"]
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("faqbench: The calibration part of") and "100000" in error


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["quant=fqa"], "Did you mean 'faq'?"),
        (["bits=9"], "bits=9 is not allowed"),
        (["seeed=1"], "Did you mean 'seed'?"),
        (["-m", "quant=rtn,fqa"], "Did you mean 'faq'?"),
        (["model.source=path", "model.path=/no/such/folder"], "/no/such/folder is not a model"),
        (["group_size=48", "model=tiny-llama"], "16, 32, 64, or -1"),
        (["paths.runs=calibration.txt", "model=tiny-llama"], "is a file, not a folder"),
    ],
)
def test_a_mistake_is_one_sentence_without_a_traceback_and_exit_code_2(
    workplace, capsys, arguments, expected
):
    rest = [] if arguments == ["quant=fqa"] else ["tracking=none", "evaluation=none"]
    assert main([*arguments, *rest]) == 2
    out, err = capsys.readouterr()
    assert "Traceback" not in err + out
    assert expected in err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["quant=fqa"], "Did you mean 'faq'?"),
        (["-m", "model=tiny-llama", "bits=3,9", "tracking=none"], "bits=9 is not allowed"),
    ],
)
def test_a_mistake_ends_a_process_of_its_own_alike(workplace, arguments, expected):
    done = workplace.faqbench(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr + done.stdout
    assert expected in done.stderr.strip().splitlines()[-1]


def test_a_hub_model_without_a_hub_stops_with_one_sentence(forks, workplace):
    done = forks.run(workplace, "model=qwen3-8b", "quant=faq", "bits=3", "tracking=none")
    assert done.wait() == 2, done.output
    assert "Traceback" not in done.output
    last = done.output.strip().splitlines()[-1]
    assert "Qwen/Qwen3-8B" in last and "Hugging Face hub" in last and "model.source=path" in last


def test_a_report_is_rebuilt_from_the_runs_alone(swept, workplace, capsys):
    shutil.copytree(swept[0].runs, workplace.runs)
    (workplace.root / "calibration.txt").unlink()
    assert not (workplace.root / "cache").exists()
    assert main(["report", "name=again"]) == 0
    page = workplace.reports / "again" / "index.html"
    assert "over 4 runs" in capsys.readouterr().out
    assert "FAQ" in page.read_text() and "RTN" in page.read_text()


def test_ls_and_show_know_the_run(workplace, capsys):
    assert main(["quant=rtn", *workplace.cell]) == 0
    (record,), _ = find_runs(workplace.runs)
    capsys.readouterr()
    assert main(["ls"]) == 0 and main(["show", record.run_id]) == 0
    out = capsys.readouterr().out
    assert record.run_id in out and "wikitext2-64" in out and "quantize" in out


def test_hydras_own_flags_show_the_configuration_and_run_nothing(forks, workplace):
    done = forks.run(workplace, "--cfg", "job", *workplace.cell)
    assert done.wait() == 0, done.output
    assert "bits: 3" in done.output
    assert not workplace.runs.exists()


def test_a_sweep_that_is_killed_is_taken_up_where_it_was(forks, workplace):
    killed = forks.start(workplace, *SWEEP, *workplace.cell)
    killed.until(lambda: find_runs(workplace.runs)[0])
    killed.kill(signal.SIGKILL)
    killed.wait()
    before = [r.run_id for r in find_runs(workplace.runs)[0]]
    assert before
    done = forks.run(workplace, *SWEEP, *workplace.cell)
    assert done.wait() == 0, done.output
    assert done.output.count("finished before, skipped") == len(before)
    assert [r.status for r in find_runs(workplace.runs)[0]] == ["finished"] * 4


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
