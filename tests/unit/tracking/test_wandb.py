"""An offline W&B run of a whole record, read back with W&B's own reader; and a W&B report by code."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import wandb
from offline_runs import config_of, history_of, logged, only, summary_of
from toy_runs import write_toy_run

from faqbench.cli import main
from faqbench.config.experiment import TrackingSection
from faqbench.records import read_run, write_sweep
from faqbench.report import ReportRequest, answer, write_report
from faqbench.tracking import ProgressSample, Tracker
from faqbench.tracking.samples import ProgressWriter
from faqbench.tracking.view import find_baseline, view_of
from faqbench.tracking.wandb import WandbRun, build, stable_id

SECTION = TrackingSection.model_validate(
    {"name": "wandb", "project": "p", "entity": None, "mode": "offline", "group": "g", "tags": ()}
)
FP, FAQ = "smollm2-135m-fp-0123456789", "smollm2-135m-faq-w3-g64-s0-0a1b2c"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wandb")
    write_toy_run(folder, "fp", run_id=FP)
    write_toy_run(folder, "faq")
    writer = ProgressWriter(folder, FAQ, "g")
    for i, activity in enumerate(("load", "quantize", "evaluate")):
        writer.add(
            ProgressSample(seconds=i + 0.5, activity=activity, done=i, total=4, memory_bytes=10**9 + i)
        )
    writer.end("ended")
    for name in (FP, FAQ):
        Tracker(SECTION, folder).log(read_run(folder / name))
    return folder


@pytest.fixture(scope="module")
def records(runs):
    return logged(runs, FAQ)


def table(runs, name):
    (path,) = runs.glob(f"wandb/offline-run-*-{FAQ}/files/media/table/tables/{name}_*.table.json")
    return json.loads(path.read_text())


def test_job_types_tell_the_baseline_from_the_cells(runs, records):
    assert only(records, "run")[0]["job_type"] == "cell"
    assert only(logged(runs, FP), "run")[0]["job_type"] == "baseline"


def test_the_configuration_is_nested_and_has_the_fingerprints(records):
    config = config_of(records)
    assert config["quant"]["preview"]["gamma"] == 0.85
    assert config["fingerprints"]["weights"] == "w" * 64


def test_live_samples_are_history_over_seconds(records):
    history = [row for row in history_of(records) if "live/seconds" in row]
    assert [row["live/activity"] for row in history] == ["load", "quantize", "evaluate"]
    assert [row["live/done_frac"] for row in history] == [0, 0.25, 0.5]
    axes = {m.get("glob_name"): m.get("step_metric") for m in only(records, "metric")}
    assert axes["live/*"] == "live/seconds" and axes["blocks/*"] == "block"


def test_every_block_has_a_step_with_all_curves(records):
    history = [row for row in history_of(records) if "block" in row]
    assert [row["block"] for row in history] == list(range(30))
    curves = {f"blocks/{name}" for name in ("relative_error", "qkv_error", "down_error",
              "alone_error", "added_up_error", "cosine")}  # fmt: skip
    assert all(curves <= set(row) for row in history)


def test_the_summary_holds_results_and_no_point_of_a_curve(records):
    summary = summary_of(records)
    assert not [k for k in summary if k.startswith(("blocks/", "live/", "block"))]
    assert summary["eval/heldout-wiki-512/kl_divergence"] > 0


def test_the_steps_only_ever_grow(records):
    steps = [row["_step"] for row in history_of(records)]
    assert steps == sorted(set(steps))


def test_the_comparison_with_the_baseline_is_a_typed_table_with_intervals(runs):
    found = table(runs, "comparison")
    rows = [dict(zip(found["columns"], row, strict=True)) for row in found["data"]]
    row = next(r for r in rows if r["metric"] == "heldout-wiki-512/perplexity")
    assert row["low"] < row["difference"] < row["high"] and row["unit"] == "%"
    assert row["verdict"] == "behind on this one calibration set" and not row["is_significant"]
    assert row["value"] > row["baseline"]
    assert {r["metric"] for r in rows} >= {"boolq_validation/acc", "mean accuracy/acc"}


def test_linears_and_metrics_are_tables(runs):
    assert len(table(runs, "linears")["data"]) == 210
    assert table(runs, "metrics")["columns"][:3] == ["task", "name", "value"]


def test_key_plots_are_images(runs):
    folder = next(runs.glob(f"wandb/offline-run-*-{FAQ}"))
    names = {p.name.partition("_")[0] for p in folder.glob("files/media/images/plots/*.png")}
    assert names == {"differences", "depth", "linears", "exponents"}


def test_results_are_an_artifact_and_the_baseline_is_named(records):
    artifacts = {a["name"]: a for a in only(records, "artifact")}
    files = artifacts[f"results-{stable_id(FAQ)}"]["manifest"]["contents"]
    assert {f["path"] for f in files} == {"record.json", "config.yaml", "items.parquet", "layers.parquet"}
    assert summary_of(records)["baseline"] == FP


def test_online_the_baselines_results_are_an_input(runs, monkeypatch):
    used, run = [], WandbRun.__new__(WandbRun)
    monkeypatch.setattr(
        run, "run", SimpleNamespace(use_artifact=used.append, log_artifact=id), raising=False
    )
    monkeypatch.setattr(run, "_wandb", wandb, raising=False)
    monkeypatch.setattr(run, "_offline", False, raising=False)
    run._log_artifacts(view_of(read_run(runs / FAQ), runs))
    assert [a.name for a in used] == [f"results-{stable_id(FP)}"]


def test_a_baseline_of_other_weights_is_none(runs):
    record = read_run(runs / FAQ).record
    assert find_baseline(runs, record).run_id == FP
    other = {**record.fingerprints, "weights": "x"}
    assert find_baseline(runs, replace(record, fingerprints=other)) is None
    assert view_of(read_run(runs / FP), runs).baseline is None


def test_a_report_is_a_run_of_its_own_with_its_page(runs, tmp_path):
    paths = write_report(ReportRequest(runs=runs, reports=tmp_path, name="study", select=("*fp*",)))
    Tracker(SECTION, tmp_path).show_report(paths.folder)
    records = logged(tmp_path, "report-study")
    assert only(records, "run")[0]["job_type"] == "report"
    files = {p.name.partition("_")[0] for p in tmp_path.rglob("files/media/**/*") if p.is_file()}
    assert {"page", "cost", "results", "published"} <= files
    assert [a["type"] for a in only(records, "artifact")].count("report") == 1


def test_the_looks_of_a_decision_are_a_run_whose_steps_are_shown_once(tmp_path):
    points = [{"settle/draws": 5.0, "settle/faq - awq/low": -0.1}, {"settle/draws": 6.0}]
    for n in (1, 2):
        shown = Tracker(SECTION, tmp_path).show_points("settle-x", {"question": "?"}, points[:n])
        assert shown
    records = logged(tmp_path, "settle-x")
    assert only(records, "run")[0]["job_type"] == "settle"
    draws = [row["settle/draws"] for row in history_of(records) if "settle/draws" in row]
    assert draws == [5.0, 6.0]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    for method in ("fp", "awq", "faq"):
        write_toy_run(folder, method, run_id=f"toy-{method}")
    write_sweep(folder, "study", ["toy-fp", "toy-awq", "toy-faq", "toy-gone"])
    return folder


@pytest.fixture(scope="module")
def said(swept):
    return answer(ReportRequest(runs=swept, reports=swept, name="study"))


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


def test_without_an_account_it_is_one_sentence_with_the_alternative(swept, tmp_path, monkeypatch, capsys):
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    assert main(["wandb-report", "name=study", f"runs={swept}"]) == 2
    error = capsys.readouterr().err
    assert "needs a W&B account" in error and "`faqbench report`" in error


@pytest.mark.parametrize(
    ("arguments", "message"), [([], "needs name=SWEEP"), (["name=x", "select=zzz"], "matches none")]
)
def test_a_mistake_is_one_sentence(swept, arguments, message, capsys):
    assert main(["wandb-report", *arguments, f"runs={swept}"]) == 2
    assert message in capsys.readouterr().err
