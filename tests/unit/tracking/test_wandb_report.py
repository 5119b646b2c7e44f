"""A W&B report by code: what it holds, without a network."""

import pytest
from toy_runs import write_toy_run

from faqbench.cli import main
from faqbench.records import write_sweep
from faqbench.report import ReportRequest, answer
from faqbench.tracking.wandb_report import build


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    for method in ("fp", "awq", "faq"):
        write_toy_run(folder, method, run_id=f"toy-{method}")
    write_sweep(folder, "study", ["toy-fp", "toy-awq", "toy-faq", "toy-gone"])
    return folder


@pytest.fixture(scope="module")
def said(runs):
    return answer(ReportRequest(runs=runs, reports=runs, name="study"))


def test_the_answer_is_the_reports_words_in_markdown(said):
    assert "On this one calibration set FAQ is ahead of AWQ in perplexity on heldout-wiki-512." in said.text
    assert "| :-- |" in said.text and said.n_runs == 3
    assert ("heldout-wiki-512", "kl_divergence", False) in said.metrics


@pytest.mark.filterwarnings("ignore")
def test_the_report_shows_the_sweeps_runs_under_the_names_that_runs_are_logged_with(said):
    api = pytest.importorskip("wandb_workspaces.reports.v2", reason="needs the extra wandb-report")
    report = build(api, said, project="p", entity="e", group="it's")
    assert (report.project, report.entity, report.title) == ("p", "e", said.title)
    assert report.blocks[0].text == said.text
    grids = [block for block in report.blocks if isinstance(block, api.PanelGrid)]
    assert all(grid.runsets[0].filters == "Group == 'its'" for grid in grids)
    panels = [panel for grid in grids for panel in grid.panels]
    bars = {p.metrics[0].name for p in panels if isinstance(p, api.BarPlot)}
    assert {"eval/heldout-wiki-512/perplexity", "eval/piqa_validation/acc", "seconds"} <= bars
    assert any(isinstance(p, api.MediaBrowser) for p in panels)


def test_without_an_account_it_is_one_sentence_with_the_alternative(runs, tmp_path, monkeypatch, capsys):
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    assert main(["wandb-report", "name=study", f"runs={runs}"]) == 2
    error = capsys.readouterr().err
    assert "needs a W&B account" in error and "`faqbench report`" in error


@pytest.mark.parametrize(
    ("arguments", "message"), [([], "needs name=SWEEP"), (["name=x", "select=zzz"], "matches none")]
)
def test_a_mistake_is_one_sentence(runs, arguments, message, capsys):
    assert main(["wandb-report", *arguments, f"runs={runs}"]) == 2
    assert message in capsys.readouterr().err
